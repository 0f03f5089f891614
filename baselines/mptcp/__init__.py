"""Multipath TCP of the kernel, and a server whose network namespace moves, sockets and all."""
