"""``quic-reconnect``: stock QUIC and the name service; the client notices, resolves, and connects anew.

- ``baseline``  the entry of the registry
- ``config``    what the client is told
- ``client``    the client, a process; the server is ``apps.server.server``
- ``attempt``   one connection of several that the client may have
"""
