"""``client-migration``: stock QUIC whose client changes its address while the server stays (RFC 9000 §9).

- ``baseline``  the entry of the registry, and the deployment
- ``client``    the client with two addresses, a process
"""
