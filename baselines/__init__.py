"""The alternatives to the extension, as real and as well built: TCP with DNS, MPTCP, and the rest.

A baseline runs in the same topology, with the same service, load, captures and metrics as a QUIC
strategy. ``names()`` and ``get(name)`` are the registry.

- ``registry``          ``Baseline``: an entry, with the axes that it reads and refuses
- ``no_migration``      nothing moves
- ``client_migration``  the client moves instead
- ``quic_reconnect``, ``tcp_dns``  connections are left behind, the name says where the server is (``dns``)
- ``ip_move``           the address moves with the server
- ``mptcp``             the server's network namespace moves
- ``addresses``         addresses besides a topology's own; ``repeating``: exchanges that outlive connections
"""

from baselines.registry import Baseline, check_engine, get, names

__all__ = ["Baseline", "check_engine", "get", "names"]
