"""MPTCP in a capture: subflows of one connection are one stream of data, and signals are named."""

from __future__ import annotations

import hashlib
import secrets
import socket
import struct

import polars as pl
import pytest

from quicferry.analysis.timeline import arrivals, multipath_signals
from quicferry.capture import mptcp
from quicferry.capture.mptcp import (
    DataPiece,
    Multipath,
    PathSignal,
    first_data_sequence,
    options,
    read_add_addr,
)
from quicferry.capture.pcap import TCP, Datagram
from quicferry.capture.tcp_table import tabulate_tcp

CLIENT_KEY, SERVER_KEY = bytes(range(8)), bytes(range(8, 16))
SYN, ACK = 0x02, 0x10


def option(subtype: int, rest: bytes, low: int = 0) -> bytes:
    """An MPTCP option; ``low`` are the four bits beside the subtype."""
    return bytes([30, 3 + len(rest), subtype << 4 | low]) + rest


def capable(*keys: bytes, size: int | None = None) -> bytes:
    rest = b"\x01" + b"".join(keys) + (struct.pack("!H", size) if size is not None else b"")
    return option(0, rest, low=1)


def join(token: bytes = b"", *, answer: bool = False) -> bytes:
    return option(1, bytes(1 + 8 + 4) if answer else b"\0" + token + bytes(4))


def dss(
    data_sequence: int, subflow_sequence: int, length: int, *, long: bool = True, ack: bool = True
) -> bytes:
    flags = 0x04 | (0x08 if long else 0) | (0x01 if ack else 0)
    body = bytes([flags]) + (bytes(4) if ack else b"")
    body += struct.pack("!Q" if long else "!I", data_sequence)
    return option(2, body + struct.pack("!IH", subflow_sequence, length))


def segment(sequence: int, flags: int, *made: bytes, payload: bytes = b"") -> bytes:
    """A TCP segment with options, padded by no-operations."""
    words = b"".join(made)
    words += b"\x01" * (-len(words) % 4)
    offset = (20 + len(words)) // 4
    head = struct.pack("!HHIIBBHHH", 1, 2, sequence & 0xFFFFFFFF, 0, offset << 4, flags, 0, 0, 0)
    return head + words + payload


def feed(
    paths: Multipath, number: int, to_server: bool, made: bytes, payload: bytes = b""
) -> mptcp.SubflowSegment:
    placed = paths.feed(number, to_server, made + payload, payload)
    assert placed is not None
    return placed


def handshake(paths: Multipath, *, isn: int = 0xFFFFFFF0) -> None:
    """Subflow 0, whose sequence numbers soon wrap around."""
    assert [s.name for s in feed(paths, 0, True, segment(isn, SYN, capable())).signals] == ["MP_CAPABLE"]
    feed(paths, 0, False, segment(700, SYN | ACK, capable(SERVER_KEY)))
    assert not feed(paths, 0, True, segment(isn + 1, ACK, capable(CLIENT_KEY, SERVER_KEY))).signals


def test_a_connection_is_known_by_its_keys_and_the_first_data_is_mapped_by_the_option_itself() -> None:
    paths = Multipath()
    handshake(paths)
    begin = first_data_sequence(CLIENT_KEY)
    assert begin == (int.from_bytes(hashlib.sha256(CLIENT_KEY).digest()[-8:], "big") + 1) % (1 << 32)
    first = feed(
        paths, 0, True, segment(0xFFFFFFF1, ACK, capable(CLIENT_KEY, SERVER_KEY, size=5)), payload=b"hello"
    )
    assert first.pieces == [DataPiece(begin, b"hello")]
    assert paths.begins == {(0, True): begin, (0, False): first_data_sequence(SERVER_KEY)}


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("ack", [True, False])
def test_payload_finds_its_place_by_the_mapping_also_when_sequence_numbers_wrap(
    long: bool, ack: bool
) -> None:
    paths = Multipath()
    handshake(paths)
    begin = first_data_sequence(CLIENT_KEY)
    sequence = begin + 100 if long else (begin + 100) & 0xFFFFFFFF
    # relative subflow sequence 11 is sequence number 0xFFFFFFF0 + 11, past the wrap for its second half
    one = dss(sequence, 11, 20, long=long, ack=ack)
    placed = feed(paths, 0, True, segment(0xFFFFFFF0 + 11, ACK, one), payload=b"0123456789")
    assert placed.pieces == [DataPiece((begin + 100) & 0xFFFFFFFF, b"0123456789")]
    # the rest of the mapped bytes comes in a segment of its own, without the option
    rest = feed(paths, 0, True, segment(0xFFFFFFF0 + 21, ACK), payload=b"abcdefghij")
    assert rest.pieces == [DataPiece((begin + 110) & 0xFFFFFFFF, b"abcdefghij")]


def test_bytes_without_a_mapping_have_no_place() -> None:
    paths = Multipath()
    handshake(paths)
    assert feed(paths, 0, True, segment(0xFFFFFFF1, ACK), payload=b"lost").pieces == []


def test_a_subflow_belongs_to_the_connection_whose_token_it_names() -> None:
    paths = Multipath()
    handshake(paths)
    token = hashlib.sha256(SERVER_KEY).digest()[:4]
    placed = feed(paths, 7, True, segment(5, SYN, join(token)))
    assert (placed.owner, placed.signals) == (0, [PathSignal("MP_JOIN")])
    feed(paths, 7, False, segment(9000, SYN | ACK, join(answer=True)))
    begin = first_data_sequence(SERVER_KEY)
    data = feed(paths, 7, False, segment(9001, ACK, dss(begin + 3, 1, 4)), payload=b"data")
    assert (data.owner, data.pieces) == (0, [DataPiece((begin + 3) & 0xFFFFFFFF, b"data")])


def test_what_names_an_unknown_token_or_no_option_at_all_is_no_subflow() -> None:
    paths = Multipath()
    handshake(paths)
    assert paths.feed(3, True, segment(5, SYN, join(b"none")), b"") is None
    assert paths.feed(4, True, segment(5, SYN), b"") is None


@pytest.mark.parametrize(
    ("made", "signals"),
    [
        (option(3, b"\x01" + socket.inet_aton("10.0.2.3") + bytes(8)), [PathSignal("ADD_ADDR", "10.0.2.3")]),
        (
            option(3, b"\x01" + socket.inet_aton("10.0.2.3") + b"\x11\x51" + bytes(8)),
            [PathSignal("ADD_ADDR", "10.0.2.3")],
        ),
        (option(3, b"\x01" + socket.inet_aton("10.0.2.3"), low=1), [PathSignal("ADD_ADDR-ECHO", "10.0.2.3")]),
        (
            option(3, b"\x01" + socket.inet_pton(socket.AF_INET6, "fd00::7") + bytes(8)),
            [PathSignal("ADD_ADDR", "fd00::7")],
        ),
        (option(4, b"\x00\x02"), [PathSignal("REMOVE_ADDR", "0"), PathSignal("REMOVE_ADDR", "2")]),
        (option(7, bytes(9)), [PathSignal("MP_FASTCLOSE")]),
        (option(5, b"\x01"), []),  # MP_PRIO
    ],
)
def test_signals_are_named(made: bytes, signals: list[PathSignal]) -> None:
    paths = Multipath()
    handshake(paths)
    assert feed(paths, 0, False, segment(701, ACK, made)).signals == signals


def test_a_data_fin_alone_is_no_mapping() -> None:
    assert mptcp.read_mapping(dss(77, 0, 1)) is None
    assert mptcp.read_mapping(option(2, b"\x01" + bytes(4))) is None  # an acknowledgement


def test_any_bytes_can_be_read() -> None:
    for _ in range(2_000):
        junk = secrets.token_bytes(secrets.randbelow(80))
        found = list(options(junk))
        assert all(len(each) == each[1] for each in found)
        if len(junk) >= 20:
            paths = Multipath()
            handshake(paths)
            paths.feed(0, True, junk, b"")
    for size in range(4, 40):
        read_add_addr(option(3, bytes(size - 3)))


class Wire:
    """Two subflows of one connection, as a capture would have them. Plain bytes: no TLS inside."""

    OLD, NEW, CLIENT = "10.0.1.3:4433", "10.0.2.3:4433", "10.0.0.2"

    def __init__(self) -> None:
        self.segments: list[Datagram] = []
        self._t_ns = 0
        self.begin = first_data_sequence(SERVER_KEY)
        self.add(self.OLD, True, segment(10, SYN, capable()))
        self.add(self.OLD, False, segment(700, SYN | ACK, capable(SERVER_KEY)))
        self.add(self.OLD, True, segment(11, ACK, capable(CLIENT_KEY, SERVER_KEY)))
        self.add(self.OLD, False, segment(701, ACK, option(3, b"\1" + bytes([10, 0, 2, 3]) + bytes(8))))
        token = hashlib.sha256(SERVER_KEY).digest()[:4]
        self.add(self.NEW, True, segment(20, SYN, join(token)))
        self.add(self.NEW, False, segment(900, SYN | ACK, join(answer=True)))

    def add(self, server: str, to_server: bool, made: bytes) -> None:
        self._t_ns += 1_000
        client = f"{self.CLIENT}:{50000 if server == self.OLD else 50001}"
        ends = (client, server) if to_server else (server, client)
        self.segments.append(Datagram(self._t_ns, TCP, *ends, made, 60, "eth0"))

    def record(self, server: str, at: int, subflow_at: int, body: bytes) -> int:
        """A TLS alert record (they cross in the clear before the keys): returns its size."""
        data = b"\x15\x03\x03" + struct.pack("!H", len(body)) + body
        start = 700 if server == self.OLD else 900
        mapping = dss(self.begin + at, subflow_at, len(data))
        self.add(server, False, segment(start + subflow_at, ACK, mapping, payload=data))
        return len(data)


def test_what_two_subflows_carry_is_one_stream_and_what_both_carry_counts_once() -> None:
    wire = Wire()
    size = wire.record(wire.OLD, 0, 1, b"one")
    wire.record(wire.NEW, 2 * size, 1, b"tri")  # the third comes before the second
    wire.record(wire.NEW, size, 1 + size, b"two")
    wire.record(wire.OLD, size, 1 + size, b"two")  # and once more on the old subflow
    table = tabulate_tcp(wire.segments, {}, 4433).frame
    alerts = table.filter(pl.col("frame") == "ALERT")
    assert alerts["source"].to_list() == [wire.OLD, wire.NEW, wire.NEW]
    assert alerts["t_ns"].to_list() == [7_000, 9_000, 9_000]
    assert table["connection"].unique().to_list() == [0]
    assert arrivals(table).is_empty()


def test_the_signals_of_a_move_are_moments() -> None:
    wire = Wire()
    wire.add(wire.NEW, False, segment(901, ACK, option(4, b"\0")))
    table = tabulate_tcp(wire.segments, {}, 4433).frame
    assert [(m.name, m.t_ns) for m in multipath_signals(table)] == [
        ("add_addr", 4_000),
        ("mp_join", 5_000),
        ("remove_addr", 7_000),
    ]
    announced = table.filter(pl.col("frame") == "ADD_ADDR")
    assert announced["address"].to_list() == ["10.0.2.3"]


def test_a_capture_without_mptcp_has_no_signals() -> None:
    assert multipath_signals(tabulate_tcp([], {}, 4433).frame) == []
