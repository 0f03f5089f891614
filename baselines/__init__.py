"""The alternatives to the extension, as real and as well built: TCP with DNS, MPTCP, and the rest.

A baseline plays in the same topology, with the same service, load, captures and metrics as a QUIC
strategy. ``names()`` and ``get(name)`` are the registry.
"""

from baselines.registry import Baseline, check_engine, get, names

__all__ = ["Baseline", "check_engine", "get", "names"]
