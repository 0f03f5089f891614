"""The server that moves.

- ``shell``          what every server process is: configuration, orders, ballast, standby, frozen, end.
                     Baselines derive their servers from ``ServerShell`` and start them by ``run_server``
- ``service``        ``ApplicationService``: counters, sessions and half-done transfers: what must survive
- ``ballast``        memory that is held and rewritten (``memory_mib``, ``dirty_mib_s``)
- ``server``         the QUIC server, a process: ``python -m apps.server.server``
- ``connections``    its connections and their way to the wire
- ``notice``         what it tells its clients of a move, and what they answer
- ``notice_window``  how it tells something to all its clients, a few at a time
- ``copies``         connections that cross before the freeze
- ``handover``       what crosses at the freeze
- ``collector``      garbage collection, put off while it moves
- ``tickets``        its TLS session tickets as plain data
- ``warm_up``        a hand-off rehearsed in the standby

For import by others: ``shell``, ``service``, ``ballast``. The rest belongs to the QUIC server.
"""
