"""The emulator on Mininet; nothing else in the project but the topologies imports Mininet.

============ ============================================================
``emulator`` ``MininetEmulator``: deploys a topology and runs programs in it
``nodes``    Mininet's node, switch and link classes as they are needed here
============ ============================================================
"""
