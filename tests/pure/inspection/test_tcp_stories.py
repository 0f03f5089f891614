"""TCP and MPTCP, segment by segment: versions, tokens, mappings, what is sent again."""

from __future__ import annotations

import hashlib
import struct

import pytest

from quicferry.capture.pcap import TCP, Datagram
from quicferry.capture.tcp_options import read_options
from quicferry.inspection.tcp_stories import TcpInspector, TcpTold, token_of

CLIENT, SERVER, SECOND = "10.0.0.2:50000", "10.0.1.2:443", "10.0.2.2:443"
SYN, ACK, PSH, FIN = 0x02, 0x10, 0x08, 0x01


def option(subtype: int, low: int, rest: bytes) -> bytes:
    return bytes([30, 3 + len(rest), subtype << 4 | low]) + rest


def segment(flags: int, sequence: int, ack: int = 0, options: bytes = b"", payload: bytes = b"") -> bytes:
    options += b"\x01" * (-len(options) % 4)
    head = struct.pack("!HHIIBBHHH", 1, 2, sequence, ack, (20 + len(options)) // 4 << 4, flags, 5000, 0, 0)
    return head + options + payload


class Wire:
    """Feeds segments in order."""

    def __init__(self) -> None:
        self.inspector = TcpInspector({})
        self.t_ns = 0

    def send(self, source: str, destination: str, data: bytes) -> TcpTold:
        self.t_ns += 1
        told = self.inspector.feed(Datagram(self.t_ns, TCP, source, destination, data, len(data), ""), 0)
        assert told is not None
        return told

    def shake(self, **options: bytes) -> None:
        self.send(CLIENT, SERVER, segment(SYN, 0xFFFFFFF0, options=options.get("syn", b"")))
        self.send(SERVER, CLIENT, segment(SYN | ACK, 100, 0xFFFFFFF1, options=options.get("syn_ack", b"")))
        self.send(CLIENT, SERVER, segment(ACK, 0xFFFFFFF1, 101, options=options.get("ack", b"")))


def test_handshake_data_retransmission_and_wrap_around() -> None:
    wire = Wire()
    wire.shake()
    first = wire.send(CLIENT, SERVER, segment(ACK | PSH, 0xFFFFFFF1, 101, payload=bytes(20)))
    again = wire.send(CLIENT, SERVER, segment(ACK | PSH, 0xFFFFFFF1, 101, payload=bytes(20)))
    ahead = wire.send(CLIENT, SERVER, segment(ACK | PSH, 15, 101, payload=bytes(5)))
    filled = wire.send(CLIENT, SERVER, segment(ACK | PSH, 5, 101, payload=bytes(10)))
    wire.send(CLIENT, SERVER, segment(ACK | FIN, 20, 101))
    assert (first.sequence, first.length, first.note) == (1, 20, "")
    assert again.note == "retransmission"
    assert (ahead.sequence, ahead.note) == (31, "a segment before it is missing")
    assert filled.sequence == 21
    (story,) = wire.inspector.stories
    assert story.handshake
    assert story.retransmissions >= 1
    assert (story.bytes[True], story.closed) == (35, "FIN")


def test_a_connection_without_its_handshake_has_a_server_by_its_port() -> None:
    wire = Wire()
    told = wire.send(SERVER, CLIENT, segment(ACK, 5_000, 77, payload=b"late"))
    assert (told.to_server, told.sequence) == (False, 1)
    (story,) = wire.inspector.stories
    assert (story.client, story.server, story.handshake) == (CLIENT, SERVER, False)


@pytest.mark.parametrize("version", [0, 1])
def test_both_versions_of_mptcp_join_by_their_tokens(version: int) -> None:
    ours, theirs = bytes(range(8)), bytes(range(8, 16))
    wire = Wire()
    wire.shake(
        syn=option(0, version, b"\x01" + (ours if version == 0 else b"")),
        syn_ack=option(0, version, b"\x01" + theirs),
        ack=option(0, version, b"\x01" + ours + theirs),
    )
    digest = hashlib.sha256(theirs) if version else hashlib.sha1(theirs, usedforsecurity=False)
    assert token_of(theirs, version) == digest.digest()[:4]
    joined = wire.send(
        CLIENT, SECOND, segment(SYN, 1, options=option(1, 0, b"\x02" + digest.digest()[:4] + bytes(4)))
    )
    master, subflow = wire.inspector.stories
    assert master.protocol == subflow.protocol == f"MPTCP v{version}"
    assert subflow.master == master.index
    assert joined.options.mptcp[0].name == "MP_JOIN"


def test_a_mapping_may_be_longer_than_the_segment_that_carries_it() -> None:
    wire = Wire()
    wire.shake()
    mapping = option(2, 0, b"\x0f" + struct.pack("!QQIH", 900, 5000, 1, 3000))
    told = wire.send(CLIENT, SERVER, segment(ACK, 0xFFFFFFF1, 101, mapping, bytes(1000)))
    (dss,) = told.options.mptcp
    assert (dss.data_ack, dss.data_sequence, dss.subflow_sequence, dss.data_length) == (900, 5000, 1, 3000)
    assert told.length == 1000


@pytest.mark.parametrize(
    ("value", "address", "echo"),
    [
        (option(3, 4, b"\x02" + bytes([10, 0, 2, 2])), "10.0.2.2", False),  # version 0
        (option(3, 4, b"\x02" + bytes([10, 0, 2, 2, 0x11, 0x51])), "10.0.2.2:4433", False),
        (option(3, 0, b"\x02" + bytes([10, 0, 2, 2]) + bytes(8)), "10.0.2.2", False),  # version 1
        (option(3, 0, b"\x02" + bytes([10, 0, 2, 2, 0x11, 0x51]) + bytes(8)), "10.0.2.2:4433", False),
        (option(3, 1, b"\x02" + bytes([10, 0, 2, 2])), "10.0.2.2", True),
        (option(3, 0, b"\x02" + bytes(15) + b"\x01" + bytes(8)), "::1", False),
        (option(3, 6, b"\x02" + bytes(15) + b"\x01"), "::1", False),
    ],
)
def test_addresses_are_announced_in_both_versions(value: bytes, address: str, echo: bool) -> None:
    (found,) = read_options(value).mptcp
    assert (found.address, found.echo, found.address_id) == (address, echo, 2)


def test_plain_options_and_what_is_cut_off() -> None:
    options = read_options(
        b"\x02\x04\x05\xb4\x01\x03\x03\x07\x04\x02\x08\x0a\0\0\0\x01\0\0\0\x02\x05\x0a\0\0\0\x0a\0\0\0\x14\xfe\x02"
    )
    assert (options.mss, options.window_scale, options.sack_permitted) == (1460, 7, True)
    assert (options.timestamps, options.sack, options.others) == ((1, 2), ((10, 20),), ("OPTION_254",))
    for size in range(30):
        read_options(b"\x1e\x1a\x20\x0f" + bytes(range(size)))
        read_options(bytes([30, size + 2]) + bytes(size))
