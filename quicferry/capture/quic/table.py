"""Makes a data frame of a capture: one row per frame of each QUIC packet.

Computed on the way: ``new_bytes``, the stream bytes of a frame that had not been seen before at
this vantage point. Retransmissions and overlaps count nothing, so that the bytes towards the client
in the client's capture are what its application could gain from each packet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from quicferry.capture.pcap import UDP, Datagram, read_datagrams
from quicferry.capture.quic.decrypt import Decryptor
from quicferry.capture.quic.frames import Frame
from quicferry.capture.quic.packets import Packet
from quicferry.capture.quic.ranges import RangeSet

SCHEMA: dict[str, type[pl.DataType]] = {
    "t_ns": pl.Int64,  # CLOCK_MONOTONIC
    "connection": pl.Int32,  # -1: unknown
    "source": pl.String,  # "10.0.1.2:4433"
    "destination": pl.String,
    "direction": pl.String,  # to-server, to-client
    "space": pl.String,  # initial, 0-rtt, handshake, retry, 1-rtt
    "packet_number": pl.Int64,
    "generation": pl.Int32,  # of the keys; 0 before the first key update
    "key_phase": pl.Int8,
    "packet_bytes": pl.Int32,
    "destination_cid": pl.String,
    "repeated": pl.Boolean,  # the same packet was seen before
    "nonce_reused": pl.Boolean,  # another packet has this key and number
    "frame": pl.String,  # null: not decrypted
    "stream_id": pl.Int64,
    "offset": pl.Int64,
    "length": pl.Int64,
    "fin": pl.Boolean,
    "new_bytes": pl.Int64,  # of DATAGRAM: all; of STREAM: those never seen before at this vantage point
    "new_fin": pl.Boolean,  # of STREAM: the stream's end, seen for the first time
    "largest_acked": pl.Int64,
    "ack_delay_us": pl.Int64,  # as the sender states it
    "epoch": pl.Int64,
    "address": pl.String,
    "data": pl.String,  # of PATH_CHALLENGE and PATH_RESPONSE, hexadecimal
}


class TrafficTable(NamedTuple):
    """The QUIC traffic of a capture."""

    frame: pl.DataFrame  # columns as in SCHEMA
    decryptor: Decryptor  # for other captures of the same run
    datagrams: int
    undecrypted: int  # packets that no secret opens


def read_traffic(
    path: Path,
    decryptor: Decryptor,
    *,
    port: int | None = None,
    to_monotonic_ns: Callable[[int], int] | None = None,
) -> TrafficTable:
    """Decrypt the QUIC packets of a capture; ``port`` keeps other UDP traffic out.

    Raises ``CaptureError`` when the file cannot be read.
    """
    return tabulate(read_datagrams(path, to_monotonic_ns), decryptor, port=port)


def tabulate(datagrams: list[Datagram], decryptor: Decryptor, *, port: int | None = None) -> TrafficTable:
    """As ``read_traffic``, from datagrams that were read already."""
    rows: list[tuple[Any, ...]] = []
    seen: dict[tuple[int, str | None, int | None], RangeSet] = {}
    fins: set[tuple[int, str | None, int | None]] = set()
    suffix = f":{port}" if port is not None else ""
    count = 0
    for datagram in datagrams:
        if datagram.protocol != UDP or not (
            datagram.source.endswith(suffix) or datagram.destination.endswith(suffix)
        ):
            continue
        count += 1
        for packet in decryptor.feed(datagram.t_ns, datagram.source, datagram.destination, datagram.payload):
            head = _head(packet)
            if not packet.frames:
                rows.append((*head, *_NO_FRAME))
                continue
            for frame in packet.frames:
                new, new_fin = None, None
                if frame.name == "STREAM":
                    new, new_fin = _news(packet, frame, seen, fins)
                elif frame.name == "DATAGRAM":
                    new = 0 if packet.repeated else frame.length
                rows.append((*head, *_tail(frame, new, new_fin)))
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    data = {
        name: pl.Series(name, values, dtype=kind)
        for (name, kind), values in zip(SCHEMA.items(), columns, strict=True)
    }
    return TrafficTable(pl.DataFrame(data), decryptor, count, decryptor.undecrypted)


def _news(
    packet: Packet,
    frame: Frame,
    seen: dict[tuple[int, str | None, int | None], RangeSet],
    fins: set[tuple[int, str | None, int | None]],
) -> tuple[int, bool]:
    key = (packet.connection, packet.direction, frame.stream_id)
    ranges = seen.get(key)
    if ranges is None:
        ranges = seen[key] = RangeSet()
    offset = frame.offset or 0
    new = ranges.add(offset, offset + (frame.length or 0))
    new_fin = bool(frame.fin) and key not in fins
    if new_fin:
        fins.add(key)
    return new, new_fin


_NO_FRAME: tuple[None, ...] = (None,) * 12


def _head(packet: Packet) -> tuple[Any, ...]:
    return (
        packet.t_ns,
        packet.connection,
        packet.source,
        packet.destination,
        packet.direction,
        packet.space,
        packet.packet_number,
        packet.generation,
        packet.generation & 1 if packet.generation is not None else None,
        packet.size_bytes,
        packet.destination_cid.hex(),
        packet.repeated,
        packet.nonce_reused,
    )


def _tail(frame: Frame, new_bytes: int | None, new_fin: bool | None) -> tuple[Any, ...]:
    return (
        frame.name,
        frame.stream_id,
        frame.offset,
        frame.length,
        frame.fin,
        new_bytes,
        new_fin,
        frame.largest_acked,
        frame.ack_delay_us,
        frame.epoch,
        frame.address,
        frame.data.hex() if frame.name.startswith("PATH_") else None,
    )
