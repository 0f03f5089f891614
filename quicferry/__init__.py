"""The core of quicferry: the QUIC extension, the emulation, the migration engines and the measuring.

Nothing in this package imports the folders above it (topologies, apps, baselines, cli).
"""

__version__ = "0.1.0"
