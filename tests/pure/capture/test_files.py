"""Capture files of every kind: formats, byte orders, link types, fragments, errors that quote, and damage."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from scapy.layers.dot11 import RadioTap
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from quicferry.capture.files import CaptureReader
from quicferry.capture.files.writer import PcapngWriter
from quicferry.capture.pcap import Datagram, DatagramReader, read_datagrams
from quicferry.errors import CaptureError

PAYLOADS = [b"first", b"second one", b"third!"]
STAMPS = [1_700_000_000_000_001_000, 1_700_000_000_500_002_000, 1_700_000_001_000_003_000]


def packet(payload: bytes, **fields: object) -> bytes:
    return bytes(IP(src="10.0.0.2", dst="10.0.1.2", **fields) / UDP(sport=50_000, dport=4433) / Raw(payload))


def ether(payload: bytes) -> bytes:
    return bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02"))[:12] + b"\x08\x00" + packet(payload)


def pcap(
    frames: list[bytes], *, order: str = "<", nano: bool = False, link: int = 1, magic: int = 0
) -> bytes:
    number = magic or (0xA1B23C4D if nano else 0xA1B2C3D4)
    parts = [struct.pack(order + "IHHiIII", number, 2, 4, 0, 0, 262_144, link)]
    for stamp, frame in zip(STAMPS, frames, strict=False):
        rest = stamp % 1_000_000_000 // (1 if nano else 1000)
        parts.append(struct.pack(order + "IIII", stamp // 1_000_000_000, rest, len(frame), len(frame)))
        parts.append(bytes(8) if magic == 0xA1B2CD34 else b"")
        parts.append(frame)
    return b"".join(parts)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int = 1, resolution: bytes = b"\x09") -> bytes:
    options = struct.pack(order + "HH", 9, 1) + resolution + bytes(3) + struct.pack(order + "HH", 0, 0)
    return block(order, 1, struct.pack(order + "HHI", link, 0, 0) + options)


def enhanced(order: str, frame: bytes, ticks: int) -> bytes:
    head = struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(order, 6, head + frame)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def payloads(path: Path) -> list[bytes]:
    return [datagram.payload for datagram in read_datagrams(path)]


FRAMES = [ether(payload) for payload in PAYLOADS]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_of_either_byte_order_and_resolution(tmp_path: Path, order: str, nano: bool) -> None:
    found = read_datagrams(write(tmp_path / "a.pcap", pcap(FRAMES, order=order, nano=nano)))
    assert [each.payload for each in found] == PAYLOADS
    assert [each.t_ns for each in found] == STAMPS
    assert {(each.source, each.destination) for each in found} == {("10.0.0.2:50000", "10.0.1.2:4433")}


def test_the_old_patched_pcap(tmp_path: Path) -> None:
    assert payloads(write(tmp_path / "a.pcap", pcap(FRAMES, magic=0xA1B2CD34))) == PAYLOADS


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("resolution", "per_s"), [(b"\x09", 10**9), (b"\x06", 10**6), (b"\x8a", 1 << 10)])
def test_pcapng_of_either_byte_order_and_any_resolution(
    tmp_path: Path, order: str, resolution: bytes, per_s: int
) -> None:
    parts = [section(order), interface(order, resolution=resolution)]
    parts += [enhanced(order, f, t * per_s // 10**9) for f, t in zip(FRAMES, STAMPS, strict=True)]
    found = read_datagrams(write(tmp_path / "a.pcapng", b"".join(parts)))
    assert [each.payload for each in found] == PAYLOADS
    assert all(abs(each.t_ns - t) <= 10**9 // per_s for each, t in zip(found, STAMPS, strict=True))


def test_simple_and_obsolete_blocks_sections_and_blocks_that_are_not_known(tmp_path: Path) -> None:
    first, second, third = FRAMES
    obsolete = struct.pack(">HHIIII", 0, 0, 0, 5, len(third), len(third)) + third
    data = section("<") + block("<", 0x0BAD, b"what") + interface("<") + enhanced("<", first, STAMPS[0])
    data += block("<", 3, struct.pack("<I", len(second)) + second)
    data += section(">") + interface(">") + block(">", 2, obsolete)
    with DatagramReader(write(tmp_path / "a.pcapng", data)) as reader:
        found = list(reader)
        assert reader.gaps() == []
    assert [each.payload for each in found] == PAYLOADS
    assert found[1].t_ns == STAMPS[0]  # a simple block has no stamp of its own
    assert [each.interface_index for each in found] == [0, 0, 1]


def test_embedded_secrets_are_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file, "test")
        writer.secrets(b"# a key log\n")
        number = writer.interface("client-eth0", 1, "host client")
        for frame, stamp in zip(FRAMES, STAMPS, strict=True):
            writer.packet(number, stamp, frame, len(frame) + 7)
    got: list[bytes] = []
    with DatagramReader(path, got.append) as reader:
        found = list(reader)
    assert got == [b"# a key log\n"]
    assert [(each.t_ns, each.interface, each.payload) for each in found] == [
        (stamp, "client-eth0", payload) for stamp, payload in zip(STAMPS, PAYLOADS, strict=True)
    ]
    assert found[0].wire_bytes == len(FRAMES[0]) + 7


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_packed_captures(tmp_path: Path, pack: object) -> None:
    assert payloads(write(tmp_path / "a", pack(pcap(FRAMES)))) == PAYLOADS  # type: ignore[operator] # a callable
    many = section("<") + interface("<")
    many += b"".join(enhanced("<", ether(random.Random(n).randbytes(1000)), n) for n in range(1000))
    packed = pack(many)  # type: ignore[operator] # a callable
    with DatagramReader(write(tmp_path / "cut", packed[: len(packed) // 2])) as reader:
        assert 300 < len(list(reader)) < 700
        assert reader.gaps()


INSIDE = packet(b"inside")
INSIDE_6 = bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=50_000, dport=4433) / Raw(b"inside"))
MAC = b"\x02" + bytes(5)
LLC = b"\xaa\xaa\x03\0\0\0\x08\x00"
LINKS = {
    "NULL, little-endian": (0, b"\x02\0\0\0" + INSIDE),
    "NULL, big-endian": (0, b"\0\0\0\x02" + INSIDE),
    "NULL, IPv6 of Darwin": (0, b"\x1e\0\0\0" + INSIDE_6),
    "VLAN": (1, bytes(Ether() / Dot1Q(vlan=5))[:12] + b"\x81\x00\x00\x05\x08\x00" + INSIDE),
    "two VLANs": (1, MAC + MAC + b"\x88\xa8\0\x01\x81\x00\0\x02\x08\x00" + INSIDE),
    "PPPoE": (1, MAC + MAC + b"\x88\x64\x11\0\0\x01\0\x1e\x00\x21" + INSIDE),
    "MPLS": (1, MAC + MAC + b"\x88\x47\0\x01\0\x40\0\x02\x01\x40" + INSIDE),
    "LLC": (1, MAC + MAC + struct.pack("!H", 8 + len(INSIDE)) + LLC + INSIDE),
    "PPP, compressed": (9, b"\x21" + INSIDE),
    "PPP": (9, b"\xff\x03\x00\x21" + INSIDE),
    "PPP of Cisco, IPv6": (50, b"\xff\x03\x00\x57" + INSIDE_6),
    "PPP over Ethernet": (51, b"\x11\0\0\x01\0\x1e\x00\x21" + INSIDE),
    "RAW": (101, INSIDE),
    "RAW, IPv6": (101, INSIDE_6),
    "C-HDLC": (104, b"\x0f\x00\x08\x00" + INSIDE),
    "802.11": (105, b"\x88\x01" + bytes(22) + b"\0\0" + LLC + INSIDE),
    "LOOP": (108, b"\0\0\0\x02" + INSIDE),
    "ENC": (109, b"\x02\0\0\0" + bytes(8) + INSIDE),
    "SLL": (113, bytes(14) + b"\x08\x00" + INSIDE),
    "PFLOG": (117, bytes([61, 2]) + bytes(62) + INSIDE),
    "radiotap": (127, bytes(RadioTap())[:8] + b"\x08\x01" + bytes(22) + LLC + INSIDE),
    "pppd": (166, b"\x00\x03\x00\x21" + INSIDE),
    "PPP with direction": (204, b"\x01\xff\x03\x00\x21" + INSIDE),
    "IPV4": (228, INSIDE),
    "IPV6": (229, INSIDE_6),
    "NFLOG": (239, b"\x02\0\0\0" + b"\x08\0\x01\0abcd" + struct.pack("<HH", 4 + len(INSIDE), 9) + INSIDE),
    "PKTAP": (258, struct.pack("<III", 16, 1, 101) + bytes(4) + INSIDE),
    "SLL2": (276, b"\x08\x00" + bytes(18) + INSIDE),
    "SLL2 with VLAN": (276, b"\x81\x00" + bytes(18) + b"\0\x05\x08\x00" + INSIDE),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_link_types(tmp_path: Path, name: str) -> None:
    link, frame = LINKS[name]
    assert payloads(write(tmp_path / "a.pcap", pcap([frame], link=link))) == [b"inside"]


def test_a_link_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pcap", pcap(FRAMES, link=189))
    with pytest.raises(CaptureError, match=r"USB_LINUX \(189\)"):
        read_datagrams(path)
    other = section("<") + interface("<", link=189) + enhanced("<", b"usb", 1) + section("<") + interface("<")
    with DatagramReader(write(tmp_path / "b.pcapng", other + enhanced("<", FRAMES[0], 2))) as reader:
        assert [each.payload for each in reader] == PAYLOADS[:1]
        assert "USB_LINUX" in reader.gaps()[0].reason


def frames_of(*packets: Packet) -> list[bytes]:
    return [bytes(each) for each in packets]


def read_raw(tmp_path: Path, *packets: Packet) -> list[Datagram]:
    data = section("<") + interface("<", link=101)
    data += b"".join(enhanced("<", frame, number) for number, frame in enumerate(frames_of(*packets)))
    with DatagramReader(write(tmp_path / "a.pcapng", data)) as reader:
        return list(reader)


def test_fragments_are_put_together_in_whatever_order(tmp_path: Path) -> None:
    whole = IP(src="10.0.0.2", dst="10.0.1.2", id=7) / UDP(sport=1, dport=2) / Raw(bytes(range(250)) * 10)
    pieces = fragment(whole, fragsize=600)
    other = IP(src="10.0.0.3", dst="10.0.1.2", id=7) / UDP(sport=1, dport=2) / Raw(b"whole")
    found = read_raw(tmp_path, pieces[2], other, pieces[0], pieces[0], *pieces[3:], pieces[1])
    assert [each.payload for each in found] == [b"whole", bytes(range(250)) * 10]
    with DatagramReader(tmp_path / "a.pcapng") as reader:
        assert len(list(reader)) == 2
        assert reader.gaps() == []


def test_a_missing_fragment_is_a_gap(tmp_path: Path) -> None:
    pieces = fragment(IP(dst="10.0.1.2", id=7) / UDP(sport=1, dport=2) / Raw(bytes(3000)), fragsize=1000)
    assert read_raw(tmp_path, *pieces[1:]) == []
    with DatagramReader(tmp_path / "a.pcapng") as reader:
        assert list(reader) == []
        assert [gap.reason for gap in reader.gaps()] == ["datagrams of which a fragment is missing"]


def test_extension_headers_and_fragments_of_ipv6(tmp_path: Path) -> None:
    base = IPv6(src="fd00::1", dst="fd00::2")
    inner = UDP(sport=50_000, dport=4433) / Raw(b"behind")
    plain = base / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / inner
    pieces = fragment6(base / IPv6ExtHdrFragment(id=9) / UDP(sport=1, dport=2) / Raw(b"6" * 3000), 1280)
    found = read_raw(tmp_path, plain, *pieces)
    assert [each.payload for each in found] == [b"behind", b"6" * 3000]
    assert found[0].source == "[fd00::1]:50000"


def test_what_an_icmp_error_quotes_is_told_as_such_and_kept_from_the_analysis(tmp_path: Path) -> None:
    lost = IP(src="10.0.0.2", dst="10.0.1.2") / UDP(sport=50_000, dport=4433) / Raw(b"lost")
    lost_6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=50_000, dport=4433) / Raw(b"big")
    found = read_raw(
        tmp_path,
        IP(src="10.0.1.1", dst="10.0.0.2") / ICMP(type=3, code=3) / lost,
        IPv6(src="fd00::9", dst="fd00::1") / ICMPv6PacketTooBig() / lost_6,
        IP(src="10.0.1.1", dst="10.0.0.2") / ICMP() / Raw(b"a ping"),
    )
    assert [(each.payload, each.quoted) for each in found] == [
        (b"lost", "ICMP destination unreachable (port) from 10.0.1.1"),
        (b"big", "ICMPv6 packet too big from fd00::9"),
    ]
    assert found[0].source == "10.0.0.2:50000"
    assert read_datagrams(tmp_path / "a.pcapng") == []


def test_ip_in_ip_and_tcp(tmp_path: Path) -> None:
    inner = IP(src="10.0.0.2", dst="10.0.1.2") / TCP(sport=50_000, dport=80)
    found = read_raw(tmp_path, IP(src="1.1.1.1", dst="2.2.2.2") / inner)
    assert [(each.protocol, each.destination) for each in found] == [(6, "10.0.1.2:80")]


def test_what_the_snapshot_length_cut_off_is_counted(tmp_path: Path) -> None:
    whole = packet(b"x" * 100)
    found = read_raw(tmp_path, Raw(whole[:60]))
    assert (len(found[0].payload), found[0].missing_bytes) == (32, 68)


def _may_end(data: bytes) -> set[int]:
    """Where a file may end without anything being cut off."""
    is_ng = data.startswith(b"\x0a\x0d\x0d\x0a")
    at = 0 if is_ng else 24
    ends = {at}
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8] if is_ng else data[at + 8 : at + 12], "little")
        at += length if is_ng else 16 + length
        ends.add(at)
    return ends


@pytest.mark.parametrize("data", [pcap(FRAMES), section("<") + interface("<") + enhanced("<", FRAMES[0], 1)])
def test_a_file_that_is_cut_anywhere_is_read_up_to_there(tmp_path: Path, data: bytes) -> None:
    path, ends = tmp_path / "a", sorted(_may_end(data))
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            with DatagramReader(path) as reader:
                found = [each.payload for each in reader]
                gaps = reader.gaps()
        except CaptureError:
            assert size < 24
            continue
        assert found == PAYLOADS[: len(found)]
        assert bool(gaps) == (size not in ends), size


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data + struct.pack("<II", 6, 0xFFFFFFF0), "wrong length"),
        (lambda data: data + struct.pack("<II", 6, 13) + bytes(20), "wrong length"),
        (lambda data: data[:-4] + b"\0\0\0\1", "at its end"),
        (lambda data: data + enhanced("<", b"x", 1)[:8] + b"\x07" + enhanced("<", b"x", 1)[9:], "interface"),
        (lambda data: data + b"\x0a\x0d\x0d\x0a" + bytes(40), "byte order"),
        (lambda data: data[:-3], "cut off"),
        (lambda data: data + b"ab", "cut off"),
    ],
)
def test_damage_is_named_and_what_stands_before_it_is_read(
    tmp_path: Path, damage: object, words: str
) -> None:
    data = section("<") + interface("<") + b"".join(enhanced("<", f, 1) for f in FRAMES)
    with DatagramReader(write(tmp_path / "a", damage(data))) as reader:  # type: ignore[operator] # a callable
        assert [each.payload for each in reader][:2] == PAYLOADS[:2]
        assert words in " ".join(gap.reason for gap in reader.gaps())


def test_a_wrong_length_in_pcap_is_named(tmp_path: Path) -> None:
    data = pcap(FRAMES) + struct.pack("<IIII", 1, 1, 0x7FFFFFFF, 1)
    with DatagramReader(write(tmp_path / "a", data)) as reader:
        assert [each.payload for each in reader] == PAYLOADS
        assert "wrong length" in reader.gaps()[0].reason


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "it is empty"),
        (b"#!/bin/sh\n", "which no capture does"),
        (b"snoop\0\0\0" + bytes(50), "snoop"),
        (b"PK\x03\x04" + bytes(50), "zip"),
    ],
)
def test_what_is_no_capture_is_said_to_be_what_it_is(tmp_path: Path, head: bytes, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        CaptureReader(write(tmp_path / "a", head))


def test_ten_gigabytes_of_something_else_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with path.open("wb") as file:  # zeros that take no room on the disk
        file.truncate(10 << 30)
    with pytest.raises(CaptureError, match="no readable capture"):
        CaptureReader(path)
    with path.open("r+b") as file:
        file.write(section("<") + interface("<") + enhanced("<", FRAMES[0], 1))
    tracemalloc.start()
    with DatagramReader(path) as reader:
        assert [each.payload for each in reader] == PAYLOADS[:1]
        assert "wrong length" in reader.gaps()[0].reason
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_reading_takes_the_same_memory_however_long_the_file_is(tmp_path: Path) -> None:
    head, frame = section("<") + interface("<"), enhanced("<", ether(bytes(1200)), 1)
    peaks = []
    for count in (4_000, 24_000):
        path = write(tmp_path / "a", head + frame * count)
        tracemalloc.start()
        with DatagramReader(path) as reader:
            assert sum(1 for _ in reader) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20)
