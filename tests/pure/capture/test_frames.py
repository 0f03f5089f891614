"""Every frame type is taken apart, ours agree with the codec of the protocol core and with scapy."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.quic import QuicVarIntField

from quicferry.capture.layers import (
    LAYERS,
    SMAbort,
    SMAddress,
    SMMigrated,
    SMPrepare,
    SMReady,
    dissect_frames,
)
from quicferry.capture.quic.frames import Frame, parse_frames
from quicferry.capture.quic.varint import read_varint
from quicferry.errors import CaptureError
from quicferry.quic import wire
from quicferry.quic.request_wire import Reply
from quicferry.quic.standard_wire import AlternativeAddress, Entry
from quicferry.strategies import EXTENSION_STRATEGIES, Strategy


def V(value: int) -> bytes:
    """scapy's encoding, so that reader and writer are not one piece of code."""
    encoded: bytes = QuicVarIntField("", 0).addfield(None, b"", value)
    return encoded


CASES: list[tuple[bytes, Frame]] = [
    (V(0x01), Frame("PING")),
    (V(0x02) + V(900) + V(2) + V(1) + V(5) + V(0) + V(3), Frame("ACK", largest_acked=900, ack_delay_us=16)),
    (
        V(0x03) + V(9) + V(0) + V(0) + V(1) + V(7) + V(8) + V(9),
        Frame("ACK", largest_acked=9, ack_delay_us=0),
    ),
    (V(0x04) + V(4) + V(1) + V(2), Frame("RESET_STREAM", 4)),
    (V(0x05) + V(4) + V(1), Frame("STOP_SENDING", 4)),
    (V(0x06) + V(300) + V(2) + b"ab", Frame("CRYPTO", offset=300, length=2, data=b"ab")),
    (V(0x07) + V(3) + b"tok", Frame("NEW_TOKEN", data=b"tok")),
    (V(0x0A) + V(4) + V(2) + b"ab", Frame("STREAM", 4, 0, 2, False, data=b"ab")),
    (V(0x0F) + V(8) + V(70_000) + V(2) + b"ab", Frame("STREAM", 8, 70_000, 2, True, data=b"ab")),
    (V(0x10) + V(1 << 40), Frame("MAX_DATA")),
    (V(0x11) + V(4) + V(1), Frame("MAX_STREAM_DATA", 4)),
    (V(0x12) + V(4), Frame("MAX_STREAMS")),
    (V(0x13) + V(4), Frame("MAX_STREAMS")),
    (V(0x14) + V(4), Frame("DATA_BLOCKED")),
    (V(0x15) + V(4) + V(1), Frame("STREAM_DATA_BLOCKED", 4)),
    (V(0x16) + V(4), Frame("STREAMS_BLOCKED")),
    (V(0x17) + V(4), Frame("STREAMS_BLOCKED")),
    (
        V(0x18) + V(3) + V(1) + bytes([8]) + b"12345678" + bytes(16),
        Frame("NEW_CONNECTION_ID", data=b"12345678"),
    ),
    (V(0x19) + V(3), Frame("RETIRE_CONNECTION_ID")),
    (V(0x1A) + b"challeng", Frame("PATH_CHALLENGE", data=b"challeng")),
    (V(0x1B) + b"response", Frame("PATH_RESPONSE", data=b"response")),
    (V(0x1C) + V(1) + V(6) + V(3) + b"bad", Frame("CONNECTION_CLOSE", data=b"bad")),
    (V(0x1D) + V(1) + V(3) + b"bye", Frame("CONNECTION_CLOSE", data=b"bye")),
    (V(0x1E), Frame("HANDSHAKE_DONE")),
    (V(0x31) + V(2) + b"dg", Frame("DATAGRAM", length=2, data=b"dg")),
    (
        V(0x1D5845E2) + b"\x00" + V(1) + bytes([10, 0, 2, 2]) + (4433).to_bytes(2, "big"),
        Frame("ALTERNATIVE_SERVER_ADDRESS", address="10.0.2.2:4433"),
    ),
    (
        V(0x1D5845E2)
        + V(9)
        + V(3)
        + V(1)
        + V(0)
        + bytes([10, 0, 2, 2])
        + (4433).to_bytes(2, "big")
        + V(0)
        + V(2)
        + V(70)
        + bytes(15)
        + b"\x01"
        + (4433).to_bytes(2, "big"),
        Frame("ALTERNATIVE_ADDRESS", address="10.0.2.2:4433 * [::1]:4433"),
    ),
    (V(0x1D5845E2) + V(300) + V(1) + V(0), Frame("ALTERNATIVE_ADDRESS", address="*")),
    (
        V(0x1D5845E3) + b"\x80" + V(1) + bytes(15) + b"\x01" + (4433).to_bytes(2, "big"),
        Frame("ALTERNATIVE_SERVER_ADDRESS", address="[::1]:4433"),
    ),
]


def without_data(frame: Frame) -> Frame:
    return frame._replace(data=b"")


@pytest.mark.parametrize(("encoded", "frame"), CASES, ids=[frame.name for _, frame in CASES])
def test_frames_of_the_rfcs(encoded: bytes, frame: Frame) -> None:
    if frame.name.startswith("ALTERNATIVE_"):
        assert [without_data(found) for found in parse_frames(encoded)] == [frame]
    else:
        assert parse_frames(encoded) == [frame]


def test_many_frames_and_padding_in_one_packet() -> None:
    every = b"".join(encoded + bytes(place % 3) for place, (encoded, _) in enumerate(CASES))
    assert [frame.name for frame in parse_frames(every + bytes(20))] == [frame.name for _, frame in CASES]


@pytest.mark.parametrize("kind", [0x08, 0x0C, 0x30])
def test_a_frame_without_length_reaches_to_the_end(kind: int) -> None:
    head = V(kind) + (V(4) if kind < 0x30 else b"") + (V(5) if kind == 0x0C else b"")
    assert parse_frames(head + b"to the end\0\0")[0].length == 12


@pytest.mark.parametrize(("encoded", "frame"), CASES, ids=[frame.name for _, frame in CASES])
def test_a_frame_that_is_cut_off_is_refused(encoded: bytes, frame: Frame) -> None:
    if len(encoded) > 1:
        with pytest.raises(CaptureError):
            parse_frames(encoded[:-1])


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(CaptureError, match="0x1f3a7c15"):
        parse_frames(V(0x1F3A7C15))


@given(st.binary(max_size=200))
def test_no_payload_breaks_it(payload: bytes) -> None:
    try:
        parse_frames(payload)
    except CaptureError:
        return


numbers = st.integers(0, (1 << 62) - 1)
small = st.integers(0, 2000)
ports = st.integers(1, 65_535)


@st.composite
def addresses(draw: st.DrawFn) -> wire.SmAddress:
    v4 = draw(st.booleans())
    v6 = draw(st.booleans()) or not v4
    return wire.SmAddress(
        sequence=draw(numbers),
        ipv4=(str(draw(st.ip_addresses(v=4))), draw(ports)) if v4 else None,
        ipv6=(str(draw(st.ip_addresses(v=6))), draw(ports)) if v6 else None,
        pool=draw(st.booleans()),
        retire=draw(st.booleans()),
    )


prepares = st.builds(
    wire.SmPrepare,
    epoch=numbers,
    strategy=st.sampled_from(EXTENSION_STRATEGIES),
    sequences=st.lists(numbers, max_size=7).map(tuple),
    downtime_ms=small,
    probe_interval_ms=small,
    server_first=st.booleans(),
)
others = st.one_of(
    st.builds(wire.SmReady, epoch=numbers, result=st.sampled_from(list(wire.Result)[:5])),
    st.builds(wire.SmMigrated, epoch=numbers),
    st.builds(wire.SmAbort, epoch=numbers, reason=small),
    st.builds(wire.SmRequest, request=numbers),
    st.builds(wire.SmReply, request=numbers, reply=st.sampled_from(list(Reply))),
)


@given(st.lists(st.one_of(addresses(), prepares, others), max_size=5))
def test_the_extensions_frames_agree_with_the_codec_of_the_protocol_core(frames: list[wire.Frame]) -> None:
    payload = b"\x01".join(frame.encode() for frame in frames)
    found = [frame for frame in parse_frames(payload) if frame.name != "PING"]
    assert [frame.name for frame in found] == [frame.frame_type.name for frame in frames]
    assert [frame.epoch for frame in found] == [getattr(frame, "epoch", None) for frame in frames]
    assert [frame.data for frame in found] == [frame.encode() for frame in frames]
    dissected = dissect_frames(payload)
    assert [layer.build() for layer in dissected] == [frame.encode() for frame in frames]


def test_scapy_builds_what_the_core_reads() -> None:
    address = SMAddress(
        sequence=7, flags="v4+v6", ipv4="10.0.2.2", ipv4_port=4433, ipv6="fd00::2", ipv6_port=1
    )
    assert wire.decode_frame(address.build()) == wire.SmAddress(
        sequence=7, ipv4=("10.0.2.2", 4433), ipv6=("fd00::2", 1)
    )
    prepare = SMPrepare(
        epoch=3, strategy=8, sequences=[1, 300], downtime_ms=500, probe_interval_ms=20, flags="server_first"
    )
    assert wire.decode_frame(prepare.build()) == wire.SmPrepare(
        epoch=3,
        strategy=Strategy.SYMMETRIC,
        sequences=(1, 300),
        downtime_ms=500,
        probe_interval_ms=20,
        server_first=True,
    )
    assert wire.decode_frame(SMReady(epoch=3, result=4).build()) == wire.SmReady(
        epoch=3, result=wire.Result.BUSY
    )
    assert wire.decode_frame(SMMigrated(epoch=3).build()) == wire.SmMigrated(epoch=3)
    assert wire.decode_frame(SMAbort(epoch=3, reason=2).build()) == wire.SmAbort(epoch=3, reason=2)


@given(st.lists(st.tuples(st.ip_addresses(), ports, small), max_size=6), st.integers(0, 6), numbers)
def test_the_drafts_frame_agrees_with_the_codec_of_the_protocol_core(
    found: list[tuple[object, int, int]], better: int, sequence: int
) -> None:
    entries = [Entry((str(host), port), priority) for host, port, priority in found]
    sides = [tuple(sorted(side, key=lambda e: e.priority)) for side in (entries[:better], entries[better:])]
    encoded = AlternativeAddress(sequence=sequence, before=sides[0], after=sides[1]).encode()
    (frame,) = parse_frames(encoded + b"\x01")[:1]
    assert frame.name == "ALTERNATIVE_ADDRESS"
    assert frame.data == encoded
    assert frame.address is not None
    assert frame.address.split(" ").index("*") == len(sides[0])
    (layer,) = dissect_frames(encoded)
    assert layer.build() == encoded
    assert [entry.kind for entry in layer.entries].count(0) == 1


def test_there_is_a_layer_for_every_frame_of_the_core() -> None:
    assert set(LAYERS) == set(wire.FrameType)


@given(numbers)
def test_integers_of_variable_length(value: int) -> None:
    encoded = V(value)
    assert read_varint(b"head" + encoded + b"rest", 4) == (value, 4 + len(encoded))
    assert len(encoded) == next(1 << power for power in range(4) if value < 1 << (8 * (1 << power) - 2))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(struct.error, match=str((1 << 62) - 1)):
        SMMigrated(epoch=1 << 62).build()
    with pytest.raises(IndexError, match="cut off"):
        read_varint(b"\xc0\x01", 0)
    with pytest.raises(ValueError, match="frame type"):
        SMAbort(SMMigrated(epoch=1).build())
