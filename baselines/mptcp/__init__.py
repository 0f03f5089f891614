"""``mptcp``: Multipath TCP of the kernel, and a server whose network namespace moves, sockets and all.

- ``baseline``      the entry of the registry, the deployment and how the namespace moves
- ``pod``           the namespace and the plugs by which it is joined to an edge
- ``path_manager``  the kernel's path manager, by netlink
- ``orders``        orders to the server in its namespace
- ``server``        the server, a process; the client is that of ``tcp_dns``
"""
