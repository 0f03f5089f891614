"""Reads capture files: UDP and TCP payloads with stamps and addresses.

The fast way: scapy's raw reader takes the blocks apart (it knows interfaces and stamp resolutions),
the few header fields that are needed are read here. Dissecting each packet with scapy would be a
hundred times slower.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

from quicferry.errors import CaptureError
from quicferry.units import NS_PER_S

UDP = 17
TCP = 6
_ETHERNET, _RAW_IP, _LINUX_SLL, _IPV4_ONLY = 1, 101, 113, 228
_VLAN = (0x8100, 0x88A8)


class Datagram(NamedTuple):
    """One IP packet that carries UDP or TCP."""

    t_ns: int
    protocol: int  # UDP or TCP
    source: str  # "10.0.1.2:4433"
    destination: str
    payload: bytes  # of UDP; of TCP the segment with its header
    wire_bytes: int  # of the frame, as it was on the wire
    interface: str


def read_datagrams(path: Path, to_monotonic_ns: Callable[[int], int] | None = None) -> list[Datagram]:
    """All UDP and TCP packets of a capture, sorted by time.

    Raises ``CaptureError`` when the file is missing or is no capture. A last packet that is cut off
    is left out.
    """
    found = list(_read(path, to_monotonic_ns))
    found.sort(key=lambda datagram: datagram.t_ns)  # several interfaces may interleave
    return found


def _read(path: Path, to_monotonic_ns: Callable[[int], int] | None) -> Iterator[Datagram]:
    # scapy warns on import about things that do not matter to a reader of files
    logging.getLogger("scapy").setLevel(logging.ERROR)
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    names: dict[bytes, str] = {}
    hosts: dict[bytes, str] = {}
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))  # by us: scapy leaves it open when it is no capture
            # a map, whose ``read`` ends where the file does: scapy believes the length of a block, and a
            # damaged one would have it ask for gibibytes
            content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            reader = RawPcapReader(content)  # type: ignore[arg-type] # its metaclass takes files too
        except (OSError, ValueError, Scapy_Exception, EOFError) as error:  # ValueError: an empty file
            raise CaptureError(
                f"{path} is no readable capture: {error}", hint="was the run's capture started at all?"
            ) from error
        is_ng = isinstance(reader, RawPcapNgReader)
        fraction = 1 if getattr(reader, "nano", False) else 1_000
        meta: Any  # scapy's two readers have metadata of different kinds
        for frame, meta in reader:
            if is_ng:
                ticks = ((meta.tshigh or 0) << 32) | (meta.tslow or 0)
                stamp = ticks * NS_PER_S // meta.tsresol
                label = meta.ifname or b""
                if label not in names:
                    names[label] = label.decode(errors="replace").rstrip("\0")
                name, link_type = names[label], meta.linktype
            else:
                stamp = meta.sec * NS_PER_S + meta.usec * fraction
                name, link_type = "", reader.linktype
            where = _ip_offset(frame, link_type)
            if where is None:
                continue
            parsed = _transport(frame, where, hosts)
            if parsed is None:
                continue
            t_ns = to_monotonic_ns(stamp) if to_monotonic_ns is not None else stamp
            yield Datagram(t_ns, *parsed, meta.wirelen, name)


def _ip_offset(frame: bytes, link_type: int) -> int | None:
    """Where the IP header begins; None for anything else."""
    if link_type == _ETHERNET:
        offset = 14
        while int.from_bytes(frame[offset - 2 : offset], "big") in _VLAN:
            offset += 4
        return offset if frame[offset - 2 : offset] in (b"\x08\x00", b"\x86\xdd") else None
    if link_type in (_RAW_IP, _IPV4_ONLY):
        return 0
    if link_type == _LINUX_SLL:
        return 16 if frame[14:16] in (b"\x08\x00", b"\x86\xdd") else None
    return None


def _transport(frame: bytes, at: int, hosts: dict[bytes, str]) -> tuple[int, str, str, bytes] | None:
    """Protocol, source, destination and payload; None for what is neither UDP nor TCP, or a fragment."""
    version = frame[at] >> 4 if len(frame) > at else 0
    if version == 4:
        if len(frame) < at + 20 or frame[at + 6] & 0x1F or frame[at + 7]:
            return None
        protocol, begin = frame[at + 9], at + 4 * (frame[at] & 0x0F)
        source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        end = at + int.from_bytes(frame[at + 2 : at + 4], "big")
    elif version == 6:
        protocol, begin = frame[at + 6] if len(frame) > at + 40 else 0, at + 40
        source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        end = begin + int.from_bytes(frame[at + 4 : at + 6], "big")
    else:
        return None
    if protocol not in (UDP, TCP) or len(frame) < begin + 8:
        return None
    ports = frame[begin : begin + 4]
    payload = frame[begin + 8 : end] if protocol == UDP else frame[begin:end]
    return (
        protocol,
        _endpoint(source, ports[:2], hosts),
        _endpoint(destination, ports[2:], hosts),
        payload,
    )


def _endpoint(host: bytes, port: bytes, known: dict[bytes, str]) -> str:
    key = host + port
    text = known.get(key)
    if text is None:
        number = int.from_bytes(port, "big")
        text = (
            f"{host[0]}.{host[1]}.{host[2]}.{host[3]}:{number}"
            if len(host) == 4
            else f"[{IPv6Address(host)}]:{number}"
        )
        known[key] = text
    return text
