"""The datagrams of tap and waiting room: what the filter lets through, what is put on the wire again."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

from quicferry.migration.datagrams.forwarder import Forwarder, service_filter, service_filter_ipv6
from quicferry.migration.datagrams.waiting_room import LEAST_SHARE, MOST_SHARERS, PerClientBuffer, readdress
from quicferry.model import Endpoint

HERE = Endpoint("10.0.2.2", 4433)


def run_filter(program: bytes, packet: bytes) -> int:
    """A classic BPF machine, as far as this filter needs one."""
    code = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    a = x = at = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        try:
            match operation:
                case 0x30:
                    a = packet[k]
                case 0x28:
                    a = struct.unpack_from("!H", packet, k)[0]
                case 0x48:
                    a = struct.unpack_from("!H", packet, x + k)[0]
                case 0xB1:
                    x = 4 * (packet[k] & 0xF)
                case 0x15:
                    at += yes if a == k else no
                case 0x45:
                    at += yes if a & k else no
                case 0x06:
                    return int(k)
                case _:
                    raise AssertionError(hex(operation))
        except (struct.error, IndexError):
            return 0  # a load beyond the end drops the packet


def datagram(port: int = 4433, payload: bytes = b"payload", **ip: object) -> bytes:
    return bytes(IP(src="10.0.0.2", dst="10.0.1.2", **ip) / UDP(sport=50000, dport=port) / payload)


def test_filter_takes_the_service_only() -> None:
    program = service_filter(4433)
    assert run_filter(program, datagram()) == 0xFFFF
    assert run_filter(program, datagram(options=[IPOption_NOP()] * 4)) == 0xFFFF
    assert run_filter(program, datagram(port=4434)) == 0
    assert run_filter(program, datagram(proto=6)) == 0
    assert run_filter(program, datagram(frag=3)) == 0
    assert run_filter(program, datagram(flags="MF")) == 0
    assert run_filter(program, b"\x45" + bytes(8) + b"\x11") == 0


@given(payload=st.binary(max_size=1500), tos=st.integers(0, 255), ttl=st.integers(1, 255))
def test_readdressed_datagrams_are_right(payload: bytes, tos: int, ttl: int) -> None:
    made = readdress(datagram(payload=payload, tos=tos, ttl=ttl), HERE)
    assert made is not None
    seen = IP(made)
    assert (seen.src, seen.dst, seen[UDP].sport, seen[UDP].dport) == ("10.0.0.2", *HERE[:1], 50000, 4433)
    assert (seen.tos, seen.ttl) == (tos, ttl)
    assert bytes(seen[UDP].payload) == payload
    checksum = seen[UDP].chksum
    del seen[UDP].chksum
    assert IP(bytes(seen))[UDP].chksum == checksum


def datagram_ipv6(port: int = 4433, payload: bytes = b"payload", **ip: object) -> bytes:
    return bytes(IPv6(src="fd00::2", dst="fd00:1::2", **ip) / UDP(sport=50000, dport=port) / payload)


def test_filter_takes_the_service_only_in_ipv6() -> None:
    program = service_filter_ipv6(4433)
    assert run_filter(program, datagram_ipv6()) == 0xFFFF
    assert run_filter(program, datagram_ipv6(port=4434)) == 0
    assert run_filter(program, datagram_ipv6(nh=6)) == 0
    fragment = bytes(IPv6(src="fd00::2", dst="fd00:1::2") / IPv6ExtHdrFragment(offset=3) / (b"4433" * 4))
    assert run_filter(program, fragment) == 0
    assert run_filter(program, bytes(6) + b"\x11") == 0


@given(payload=st.binary(max_size=1400), tc=st.integers(0, 255), hlim=st.integers(1, 255))
def test_readdressed_datagrams_are_right_in_ipv6(payload: bytes, tc: int, hlim: int) -> None:
    made = readdress(datagram_ipv6(payload=payload, tc=tc, hlim=hlim) + bytes(9), Endpoint("fd00:2::2", 4433))
    assert made is not None
    seen = IPv6(made)
    assert (seen.src, seen.dst, seen[UDP].sport, seen[UDP].dport) == ("fd00::2", "fd00:2::2", 50000, 4433)
    assert (seen.tc, seen.hlim) == (tc, hlim)
    assert bytes(seen[UDP].payload) == payload
    checksum = seen[UDP].chksum
    del seen[UDP].chksum
    assert IPv6(bytes(seen))[UDP].chksum == checksum


@given(st.binary(max_size=100))
def test_anything_else_is_dropped_or_sound_in_ipv6(data: bytes) -> None:
    made = readdress(data, Endpoint("fd00:2::2", 4433))
    assert made is None or (made[0] >> 4 == 6 and len(made) == 40 + struct.unpack_from("!H", made, 4)[0])
    assert readdress(datagram(), Endpoint("fd00:2::2", 4433)) is None
    assert readdress(datagram_ipv6(), HERE) is None


def test_ip_options_and_padding_are_left_out() -> None:
    made = readdress(datagram(options=[IPOption_NOP()] * 4) + bytes(20), HERE)
    assert made == readdress(datagram(), HERE)


@pytest.mark.parametrize("cut", [0, 1, 19, 20, 27, 30])
def test_cut_off_datagrams_are_dropped(cut: int) -> None:
    assert readdress(datagram()[:cut], HERE) is None


@given(st.binary(max_size=80))
def test_anything_else_is_dropped_or_sound(data: bytes) -> None:
    made = readdress(data, HERE)
    assert made is None or (made[0] == 0x45 and len(made) == struct.unpack_from("!H", made, 2)[0])


def from_client(number: int, payload: bytes) -> bytes:
    return bytes(IP(src="10.0.0.2", dst="10.0.1.2") / UDP(sport=number, dport=4433) / payload)


def test_one_client_may_fill_the_room() -> None:
    buffer = PerClientBuffer(8)
    came = [from_client(1, bytes([number])) for number in range(20)]
    for each in came:
        buffer.add(each, direct=False)
    assert buffer.take() == came[-8:]
    assert buffer.take() == []


def test_many_probes_push_nobody_out() -> None:
    buffer = PerClientBuffer(8)
    asked = [from_client(client, b"request") for client in range(500)]
    for each in asked:
        buffer.add(each, direct=False)
    for number in range(5):
        for client in range(500):
            buffer.add(from_client(client, b"probe %d" % number), direct=True)
    kept = buffer.take()
    assert kept[:500] == asked
    assert len(kept) == 500 * (1 + LEAST_SHARE)
    assert kept[-1] == from_client(499, b"probe 4")


def test_a_room_does_not_grow_with_invented_sources() -> None:
    buffer = PerClientBuffer(8)
    for client in range(MOST_SHARERS + 10):
        buffer.add(from_client(client + 1, b"x"), direct=True)
    kept = buffer.take()
    assert len(kept) == MOST_SHARERS
    assert kept[0] == from_client(11, b"x")


def test_what_is_no_datagram_does_no_harm() -> None:
    buffer = PerClientBuffer(8)
    for each in (b"", b"\x45", b"\x4f" + bytes(30)):
        buffer.add(each, direct=True)
    assert len(buffer.take()) == 3


def test_what_is_handed_on_to_a_host_that_the_server_returns_to_stays_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.setblocking(False)
        there = Endpoint(*other.getsockname())
        forwarder = Forwarder([], 4433)
        assert not forwarder.hand_on(b"before the first move")
        try:
            forwarder.start(there)
            assert forwarder.hand_on(b"the server has left")
            forwarder.server_returns()
            assert not forwarder.hand_on(b"it comes back"), "the other host would send it here again"
            forwarder.close()
            forwarder.start(there)
            assert forwarder.hand_on(b"it has left again")
        finally:
            forwarder.close()
        assert [other.recv(100) for _ in range(2)] == [b"the server has left", b"it has left again"]
        with pytest.raises(BlockingIOError):
            other.recv(100)
