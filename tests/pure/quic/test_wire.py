"""The bytes of the extension."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from aioquic.buffer import Buffer
from hypothesis import given
from hypothesis import strategies as st

from quicferry.paths import CHECKOUT
from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.request_wire import Reply, SmReply, SmRequest
from quicferry.quic.wire import (
    MAX_ADDRESSES,
    TRANSPORT_PARAMETER_ID,
    VARINT_MAX,
    AbortReason,
    FrameType,
    Parameter,
    Result,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    SmReady,
    decode_frame,
    find_parameter,
    pull_frame,
)
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

varints = st.integers(0, VARINT_MAX)
numbers = varints.filter(bool)  # 0 names nothing
ports = st.integers(0, 65535)
ipv4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
ipv6 = st.tuples(st.ip_addresses(v=6).map(str), ports)
addresses = st.one_of(
    st.builds(
        SmAddress,
        sequence=numbers,
        ipv4=ipv4,
        ipv6=st.none() | ipv6,
        pool=st.booleans(),
        retire=st.booleans(),
    ),
    st.builds(SmAddress, sequence=numbers, ipv6=ipv6, pool=st.booleans(), retire=st.booleans()),
)
prepares = st.builds(
    SmPrepare,
    epoch=varints,
    strategy=st.sampled_from(EXTENSION_STRATEGIES),
    sequences=st.lists(varints, max_size=MAX_ADDRESSES).map(tuple),
    downtime_ms=varints,
    probe_interval_ms=varints,
    server_first=st.booleans(),
)
crossing = [Result.OK, Result.REFUSED, Result.ADDRESS_FILTERED, Result.NO_CID, Result.BUSY]
frames = st.one_of(
    addresses,
    prepares,
    st.builds(SmReady, epoch=varints, result=st.sampled_from(crossing)),
    st.builds(SmMigrated, epoch=varints),
    st.builds(SmAbort, epoch=varints, reason=varints),
    st.builds(SmRequest, request=varints),
    st.builds(SmReply, request=varints, reply=st.sampled_from(Reply)),
)
parameters = st.builds(
    Parameter,
    strategies=st.frozensets(st.sampled_from(EXTENSION_STRATEGIES)),
    max_addresses=st.integers(1, MAX_ADDRESSES),
    flags=varints,
)


@given(frames)
def test_a_frame_survives_the_wire(frame):
    assert decode_frame(frame.encode()) == frame


@given(st.lists(frames, max_size=5))
def test_frames_can_follow_each_other(sequence):
    buf = Buffer(data=b"".join(frame.encode() for frame in sequence))
    seen = []
    while not buf.eof():
        seen.append(pull_frame(buf.pull_uint_var(), buf))
    assert seen == sequence


@given(frames, st.data())
def test_a_frame_that_is_cut_off_is_an_encoding_error(frame, data):
    encoded = frame.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(PeerError) as caught:
        decode_frame(encoded[:cut])
    assert caught.value.code is ErrorCode.FRAME_ENCODING_ERROR


@given(st.binary(max_size=80))
def test_any_bytes_are_a_frame_or_an_error(data):
    for frame_type in FrameType:
        buf = Buffer(data=data)
        try:
            pull_frame(frame_type, buf)
        except PeerError as error:
            assert error.code is ErrorCode.FRAME_ENCODING_ERROR


@given(parameters)
def test_the_parameter_survives_the_wire(parameter):
    value = find_parameter(parameter.encode())
    assert value is not None
    assert Parameter.decode(value) == parameter


@given(st.binary(max_size=60))
def test_any_bytes_are_a_parameter_or_an_error(data):
    for read in (Parameter.decode, find_parameter):
        try:
            read(data)
        except PeerError as error:
            assert error.code is ErrorCode.TRANSPORT_PARAMETER_ERROR


def test_the_parameter_is_found_among_others():
    other = bytes([0x01, 0x02, 0x40, 0x64])  # max_idle_timeout
    ours = Parameter(strategies=frozenset({Strategy.POOL})).encode()
    assert find_parameter(other) is None
    assert find_parameter(other + ours) == find_parameter(ours + other) != None  # noqa: E711  (a chain)
    with pytest.raises(PeerError, match="twice"):
        find_parameter(ours + other + ours)


def test_unknown_strategies_and_flags_are_left_for_later_versions():
    #: wire-format 3.1: Other bits MUST be ignored
    #: wire-format 3.1: The others MUST be sent as 0
    value = Buffer(capacity=32)
    for number in (1, 0x20 | RULES[Strategy.POOL].wire_bit, 7, 0x3FFF):
        value.push_uint_var(number)
    assert Parameter.decode(value.data).strategies == {Strategy.POOL}


@pytest.mark.parametrize("numbers", [(1, 1, 0, 0), (1, 1, 8, 0), (1, 1, 7), (1, 1, 7, 0, 0)])
def test_a_parameter_out_of_range_is_refused(numbers):
    value = Buffer(capacity=32)
    for number in numbers:
        value.push_uint_var(number)
    with pytest.raises(PeerError) as caught:
        Parameter.decode(value.data)
    assert caught.value.code is ErrorCode.TRANSPORT_PARAMETER_ERROR


def test_the_bytes_are_those_of_the_specification():
    assert TRANSPORT_PARAMETER_ID == 0x29F5C3A17B
    assert (
        Parameter(strategies=frozenset(EXTENSION_STRATEGIES)).encode().hex() == "c0000029f5c3a17b04011f0700"
    )
    assert SmAddress.of(1, ("10.0.2.2", 4433), pool=True).encode().hex() == "9f3a7c1001050a0002021151"
    prepare = SmPrepare(
        epoch=1,
        strategy=Strategy.PROACTIVE_EXPLICIT,
        sequences=(1,),
        downtime_ms=200,
        probe_interval_ms=10,
        server_first=True,
    )
    assert prepare.encode().hex() == "9f3a7c1101010101" + "40c80a01"
    assert SmReady(epoch=1, result=Result.NO_CID).encode().hex() == "9f3a7c120103"
    assert SmMigrated(epoch=300).encode().hex() == "9f3a7c13412c"
    assert SmAbort(epoch=1, reason=AbortReason.RESTORE_FAILED).encode().hex() == "9f3a7c140102"


def test_frame_types_are_not_grease():
    """RFC 9000 §22.1.1 and RFC 9287: types of the form 31 * N + 27 are reserved for exercise."""
    assert all(frame_type % 31 != 27 for frame_type in FrameType)
    assert TRANSPORT_PARAMETER_ID % 31 != 27


@pytest.mark.parametrize(
    "body",
    [
        "9f3a7c10010c",
        "9f3a7c10010001",
        "9f3a7c1101030000000000",
        "9f3a7c110101080102030405060708",
        "9f3a7c120109",
        "01",
    ],
)
def test_what_cannot_be_meant_is_refused(body):
    with pytest.raises(PeerError) as caught:
        decode_frame(bytes.fromhex(body))
    assert caught.value.code is ErrorCode.FRAME_ENCODING_ERROR


def test_abort_reasons_have_names():
    assert AbortReason.named("restore-failed") is AbortReason.RESTORE_FAILED
    assert AbortReason.named("the disk burned") is AbortReason.UNSPECIFIED


def test_an_address_goes_into_the_field_of_its_family():
    assert SmAddress.of(1, ("2001:db8::1", 1)).ipv4 is None
    assert SmAddress.of(1, (str(ipaddress.IPv4Address(1 << 24)), 1)).ipv6 is None


def test_the_specification_has_the_numbers_of_the_code():
    text = (CHECKOUT / "docs" / "wire-format.md").read_text()
    text = " ".join(text.split())
    for frame_type in FrameType:
        assert f"{frame_type.name} (0x{frame_type:x})" in text
        assert f"Type (i) = 0x{frame_type:x}," in text
    assert f"`server_migration` (0x{TRANSPORT_PARAMETER_ID:x})" in text
    for strategy, bit in ((name, rules.wire_bit) for name, rules in RULES.items()):
        assert f"0x{bit:02x} {RULES[strategy].title}" in text
    for code in ErrorCode:
        assert f"| 0x{code:02x} | {code.name} |" in text
    for number, reason in enumerate(AbortReason):
        assert reason == number
        assert f"{number} {reason.name.lower().replace('_', ' ')}" in text


def test_the_number_0_says_where_the_server_is_and_nothing_else():
    here = SmAddress(sequence=0, ipv4=("10.0.2.2", 4433), here=True)
    assert decode_frame(here.encode()) == here
    for wrong in ({"here": False}, {"pool": True}, {"retire": True}):
        with pytest.raises(PeerError) as caught:
            decode_frame(dataclasses.replace(here, **wrong).encode())
        assert caught.value.code is ErrorCode.FRAME_ENCODING_ERROR
