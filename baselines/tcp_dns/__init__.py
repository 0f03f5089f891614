"""``tcp-dns``: HTTP/1.1 over TLS 1.3 over TCP, and the name service that says where the server is.

- ``baseline``    the entry of the registry
- ``config``      what the client is told
- ``server``      ``TcpServer``, a process; ``mptcp`` and ``ip_move`` derive theirs from it
- ``client``      the client with its pool of connections, a process; ``mptcp`` and ``ip_move`` use it, too
- ``connection``  one of these connections
"""
