"""Reads capture files: UDP and TCP payloads with stamps and addresses.

``DatagramReader`` goes through a file of any size once, ``read_datagrams`` holds all of it, sorted by time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from quicferry.capture.files import links
from quicferry.capture.files.blocks import CaptureReader
from quicferry.capture.files.ip import TCP, UDP, IpReader
from quicferry.capture.files.source import Gap
from quicferry.errors import CaptureError

_ETHERNET = 1
_PLAIN_IPV4 = b"\x08\x00\x45"  # the Ethernet type, version 4, a header of 20 bytes
_UNFRAGMENTED = (b"\0\0", b"\x40\0")

__all__ = ["TCP", "UDP", "Datagram", "DatagramReader", "read_datagrams"]


class Datagram(NamedTuple):
    """One IP packet that carries UDP or TCP."""

    t_ns: int
    protocol: int  # UDP or TCP
    source: str  # "10.0.1.2:4433"
    destination: str
    payload: bytes  # of UDP; of TCP the segment with its header
    wire_bytes: int  # of the frame, as it was on the wire
    interface: str
    number: int = 0  # of the frame in its file, from 1
    interface_index: int = 0
    missing_bytes: int = 0  # of the payload: cut off by the snapshot length, or by who quotes it
    quoted: str = ""  # the ICMP error that quotes this packet; empty for one that was itself captured


class DatagramReader:
    """The UDP and TCP packets of a file in its order, in constant memory. A context manager.

    ``number`` is that of the last frame, ``unreadable`` counts the frames of link types that are not read.
    Raises ``CaptureError`` when the file is missing or is no capture.
    """

    def __init__(self, path: Path, on_secrets: Callable[[bytes], None] | None = None) -> None:
        self.reader = CaptureReader(path, on_secrets)
        self.number = 0
        self.unreadable: dict[int, int] = {}
        self._first_unreadable: dict[int, int] = {}
        self._ip = IpReader()

    def __enter__(self) -> DatagramReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.__exit__(None, None, None)

    def __iter__(self) -> Iterator[Datagram]:
        """Every UDP or TCP packet, also those that an ICMP error quotes."""
        read, locates, endpoint = self._ip.read, links.LINKS, self._ip.endpoint
        known = self._ip.endpoints
        number = self.number
        for t_ns, data, wire_bytes, link_type, interface, index in self.reader:
            number += 1
            self.number = number
            # UDP right behind IPv4 right behind Ethernet, all whole: nearly every packet of nearly every file
            if (
                link_type == _ETHERNET
                and data[12:15] == _PLAIN_IPV4
                and len(data) >= 42
                and data[23] == UDP
                and data[20:22] in _UNFRAGMENTED
            ):
                end = 34 + (data[38] << 8 | data[39])
                if 42 <= end <= 14 + (data[16] << 8 | data[17]) <= len(data):
                    source_key, destination_key = data[26:30] + data[34:36], data[30:34] + data[36:38]
                    yield Datagram(
                        t_ns,
                        UDP,
                        known.get(source_key) or endpoint(source_key),
                        known.get(destination_key) or endpoint(destination_key),
                        data[42:end],
                        wire_bytes,
                        interface,
                        number,
                        index,
                    )
                    continue
            locate = locates.get(link_type)
            if locate is None:
                self.unreadable[link_type] = self.unreadable.get(link_type, 0) + 1
                self._first_unreadable.setdefault(link_type, number)
                continue
            at = locate(data)
            if at < 0:
                continue
            found = read(data, at)
            if found is None:
                continue
            protocol, source, destination, payload, missing, quoted = found
            yield Datagram(
                t_ns,
                protocol,
                source,
                destination,
                payload,
                wire_bytes,
                interface,
                number,
                index,
                missing,
                quoted,
            )

    def gaps(self) -> list[Gap]:
        """What could not be read so far, and why."""
        found = list(self.reader.gaps)
        found += [
            Gap(f"link type {links.name_of(kind)} is not read", self._first_unreadable[kind], count)
            for kind, count in self.unreadable.items()
        ]
        if self._ip.incomplete:
            found.append(Gap("datagrams of which a fragment is missing", 0, self._ip.incomplete))
        return found

    def require_some(self) -> None:
        """Raise ``CaptureError`` when no frame of the file is of a link type that is read."""
        if self.unreadable and sum(self.unreadable.values()) == self.number:
            names = ", ".join(links.name_of(kind) for kind in self.unreadable)
            raise CaptureError(
                f"{self.reader.path}: the link type of its frames is not read: {names}",
                hint="capture at an Ethernet, loopback, tunnel or `any` interface",
            )


def read_datagrams(path: Path, to_monotonic_ns: Callable[[int], int] | None = None) -> list[Datagram]:
    """All UDP and TCP packets of a capture, sorted by time.

    Raises ``CaptureError`` when the file is missing, is no capture, or only has frames of a link type that
    is not read. A last packet that is cut off is left out, and so is what ICMP errors quote.
    """
    found: list[Datagram] = []
    with DatagramReader(path) as reader:
        for datagram in reader:
            if datagram.quoted:
                continue
            if to_monotonic_ns is not None:
                datagram = datagram._replace(t_ns=to_monotonic_ns(datagram.t_ns))
            found.append(datagram)
        reader.require_some()
    found.sort(key=lambda datagram: datagram.t_ns)  # several interfaces may interleave
    return found
