"""``ip-move-quic`` and ``ip-move-tcp``: the service's address moves with the server.

What one gets with the network under one's own control.

- ``quic``, ``tcp``  the entries of the registry
- ``deployment``     ``IpMoveDeployment``: agents that move the address, a process on each router
- ``router``         changes a router's route, a process
- ``tcp_server``     the TCP server whose connections go along, a process
"""
