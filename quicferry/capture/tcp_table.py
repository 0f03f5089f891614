"""Makes the same data frame of TLS over TCP as of QUIC: one row per item that a segment brought.

``space`` is ``tcp``, ``packet_number`` the relative sequence number. ``frame`` names TCP flags, TLS
handshake messages and ``APPLICATION_DATA``, whose ``new_bytes`` are the plaintext's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl

from quicferry.capture.pcap import TCP, Datagram
from quicferry.capture.quic.keys import KeyLog
from quicferry.capture.quic.packets import Direction
from quicferry.capture.quic.table import SCHEMA
from quicferry.capture.tcp_checksum import is_damaged
from quicferry.capture.tls import APPLICATION_DATA, TcpTraffic

SPACE = "tcp"


class TcpTable(NamedTuple):
    """The TCP traffic of a capture."""

    frame: pl.DataFrame  # columns as in quic.table.SCHEMA
    segments: int
    undecrypted: int  # segments that complete a record which no secret opens


def tabulate_tcp(datagrams: Iterable[Datagram], keylog: KeyLog, port: int) -> TcpTable:
    """Open the TLS connections to a port; ``datagrams`` is sorted by time."""
    traffic = TcpTraffic(keylog, port)
    rows: list[dict[str, Any]] = []
    count = 0
    for datagram in datagrams:
        if datagram.protocol != TCP:
            continue
        source, destination = datagram.source, datagram.destination
        if not datagram.missing_bytes and is_damaged(source, destination, datagram.payload):
            continue  # its receiver throws it away
        segment = traffic.feed(source, destination, datagram.payload)
        if segment is None:
            continue
        count += 1
        head = {
            "t_ns": datagram.t_ns,
            "connection": segment.connection,
            "source": source,
            "destination": destination,
            "direction": (Direction.TO_SERVER if segment.to_server else Direction.TO_CLIENT).value,
            "space": SPACE,
            "packet_number": segment.sequence,
            "generation": 0,
            "packet_bytes": datagram.wire_bytes,
            "repeated": False,
            "nonce_reused": False,
        }
        for item in segment.items:
            is_data = item.name == APPLICATION_DATA
            rows.append(
                head
                | {
                    "frame": item.name,
                    "offset": item.offset if is_data else None,
                    "length": item.size_bytes,
                    "new_bytes": item.size_bytes if is_data else None,
                    "address": item.address,
                }
            )
    return TcpTable(pl.DataFrame(rows, schema=SCHEMA), count, traffic.undecrypted)
