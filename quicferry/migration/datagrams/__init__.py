"""Datagrams of clients while the server is on its way, and the address that may move with it.

``forwarder`` sees late datagrams at the source and forwards them; ``waiting_room`` keeps them at the
destination until the server runs; ``icmp`` holds back "port unreachable"; ``moving_address`` moves an
address between hosts and tells the routers.

Nothing here knows of engines, agents or orders. From outside: the four classes, and ``RouteUpdate``.
"""
