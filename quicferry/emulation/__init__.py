"""The emulated network: its hosts and links, and the private root in which all of it lives.

============ ============================================================================
``emulator`` the interface ``Emulator``: deploy a topology, run programs in its hosts
``mininet/`` the real one, on Mininet: ``mininet.emulator.MininetEmulator``
``fake``     ``FakeEmulator`` for tests: records what it is asked and fails where it is told to
``links/``   makes and shapes links, by netem or by a process of our own, and measures them
``sandbox/`` private roots, network namespaces, and whose processes are whose
``routing``  routes, neighbours and interface names of a topology (pure)
``drawing``  a topology as text or as a picture
``probes``   can this machine emulate?
============ ============================================================================

A run needs ``emulator``, ``mininet.emulator``, ``links.layer.warnings_about`` and
``sandbox.private_root``; commands also ``drawing`` and ``sandbox.ownership``. The rest is internal.
"""
