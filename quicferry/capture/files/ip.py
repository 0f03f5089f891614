"""Finds UDP and TCP in an IP packet: through extension headers, fragments, tunnels and ICMP errors.

The common case, UDP or TCP right behind an IPv4 or IPv6 header, is one straight function: a capture has
hundreds of thousands of those.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import NamedTuple

UDP = 17
TCP = 6
_ICMP, _ICMPV6, _IPIP, _IPV6_IN_IP, _FRAGMENT, _AUTHENTICATION, _NONE = 1, 58, 4, 41, 44, 51, 59
#: extension headers whose length is in units of eight bytes, without the first (RFC 8200 §4)
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
#: ICMP errors quote the packet that they are about (RFC 792, RFC 4443 §2.1)
_ICMP_ERRORS = {
    3: "destination unreachable",
    4: "source quench",
    5: "redirect",
    11: "time exceeded",
    12: "parameter problem",
}
_ICMPV6_ERRORS = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
}
_UNREACHABLE = {0: "network", 1: "host", 2: "protocol", 3: "port", 13: "administratively"}
_UNREACHABLE_V6 = {0: "no route", 1: "administratively", 3: "address", 4: "port"}
_MOST_NESTED = 8
_MOST_REASSEMBLIES = 1024
_MOST_ENDPOINTS = 65_536


class Transported(NamedTuple):
    """What an IP packet carries."""

    protocol: int  # UDP or TCP
    source: str  # "10.0.1.2:4433"
    destination: str
    payload: bytes  # of UDP; of TCP the segment with its header
    missing_bytes: int  # cut off by the capture's snapshot length, or by who quotes it
    quoted: str  # empty, or the ICMP error that quotes the packet


class _Fragments:
    """The parts of one datagram."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.total: int | None = None

    def add(self, offset: int, data: bytes, *, last: bool) -> bytes | None:
        """Take in a part; returns the whole once it is there."""
        self.parts.setdefault(offset, data)
        if last:
            self.total = offset + len(data)
        if self.total is None:
            return None
        whole = b""
        for begin in sorted(self.parts):
            if begin > len(whole):
                return None
            whole += self.parts[begin][len(whole) - begin :]
        return whole[: self.total] if len(whole) >= self.total else None


class IpReader:
    """Reads IP packets; remembers fragments until their datagram is whole."""

    def __init__(self) -> None:
        self.endpoints: dict[bytes, str] = {}
        self._fragments: dict[tuple[bytes, bytes, int, int], _Fragments] = {}

    @property
    def incomplete(self) -> int:
        """How many datagrams still wait for a fragment."""
        return len(self._fragments)

    def read(self, frame: bytes, at: int) -> Transported | None:
        """What the packet at an offset carries; None for what is neither UDP nor TCP, or not whole yet."""
        return self._read(frame, at, 0, "")

    def _read(self, frame: bytes, at: int, depth: int, quoted: str) -> Transported | None:
        have = len(frame)
        version = frame[at] >> 4 if have > at else 0
        if version == 4:
            if have < at + 20:
                return None
            protocol, begin = frame[at + 9], at + 4 * (frame[at] & 0x0F)
            source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
            total = frame[at + 2] << 8 | frame[at + 3]
            # zero: the network card was to cut a larger packet into pieces, after the capture saw it
            end = at + total if total else have
            if (frame[at + 6] & 0x3F or frame[at + 7]) and not quoted:
                whole = self._reassembled(frame[at : at + 20], frame[begin:end])
                if whole is None:
                    return None
                frame, begin, end = whole, 0, len(whole)
        elif version == 6:
            if have < at + 40:
                return None
            protocol, begin = frame[at + 6], at + 40
            source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
            length = frame[at + 4] << 8 | frame[at + 5]
            end = begin + length if length else have
            if protocol not in (UDP, TCP):
                found = self._extensions(frame, at, protocol, begin, end, quoted)
                if found is None:
                    return None
                frame, protocol, begin, end = found
        else:
            return None
        if protocol in (UDP, TCP):
            return self._transport(protocol, frame, begin, end, source, destination, quoted)
        if depth >= _MOST_NESTED:
            return None
        if protocol in (_IPIP, _IPV6_IN_IP):
            return self._read(frame[:end], begin, depth + 1, quoted)
        if protocol in (_ICMP, _ICMPV6) and not quoted and len(frame) >= begin + 8:
            about = _icmp_error(protocol, frame[begin], frame[begin + 1])
            if about is not None:
                who = _host(source)
                return self._read(frame[:end], begin + 8, depth + 1, f"{about} from {who}")
        return None

    def _transport(
        self,
        protocol: int,
        frame: bytes,
        begin: int,
        end: int,
        source: bytes,
        destination: bytes,
        quoted: str,
    ) -> Transported | None:
        have = len(frame)
        if have < begin + 8:
            return None
        if protocol == UDP:
            length = frame[begin + 4] << 8 | frame[begin + 5]
            if length >= 8 and begin + length < end:  # what follows is padding, or a trailer
                end = begin + length
            payload = frame[begin + 8 : end]
        else:
            payload = frame[begin:end]
        known = self.endpoints
        from_key, to_key = source + frame[begin : begin + 2], destination + frame[begin + 2 : begin + 4]
        from_text = known.get(from_key) or self.endpoint(from_key)
        to_text = known.get(to_key) or self.endpoint(to_key)
        missing = end - have if end > have else 0
        return Transported(protocol, from_text, to_text, payload, missing, quoted)

    def _extensions(
        self, frame: bytes, at: int, protocol: int, begin: int, end: int, quoted: str
    ) -> tuple[bytes, int, int, int] | None:
        """Behind IPv6's extension headers: the bytes, the protocol, and where its header begins and ends."""
        while len(frame) >= begin + 8:
            if protocol in _EXTENSIONS:
                protocol, begin = frame[begin], begin + 8 * (frame[begin + 1] + 1)
            elif protocol == _AUTHENTICATION:
                protocol, begin = frame[begin], begin + 4 * (frame[begin + 1] + 2)
            elif protocol == _FRAGMENT:
                field = frame[begin + 2] << 8 | frame[begin + 3]
                following, more = frame[begin], bool(field & 1)
                if (field & 0xFFF8 or more) and not quoted:
                    key = (frame[at + 8 : at + 24], frame[at + 24 : at + 40], following)
                    identity = int.from_bytes(frame[begin + 4 : begin + 8], "big")
                    whole = self._add((*key, identity), field & 0xFFF8, frame[begin + 8 : end], last=not more)
                    if whole is None:
                        return None
                    frame, begin, end = whole, -8, len(whole)
                protocol, begin = following, begin + 8
            else:
                return frame, protocol, begin, end
        return None

    def _reassembled(self, header: bytes, data: bytes) -> bytes | None:
        field = (header[6] << 8 | header[7]) & 0x3FFF
        offset, more = 8 * (field & 0x1FFF), bool(field & 0x2000)
        identity = header[4] << 8 | header[5]
        key = (header[12:16], header[16:20], header[9], identity)
        return self._add(key, offset, data, last=not more)

    def _add(
        self, key: tuple[bytes, bytes, int, int], offset: int, data: bytes, *, last: bool
    ) -> bytes | None:
        waiting = self._fragments.get(key)
        if waiting is None:
            if len(self._fragments) >= _MOST_REASSEMBLIES:  # the oldest will hardly be completed any more
                del self._fragments[next(iter(self._fragments))]
            waiting = self._fragments[key] = _Fragments()
        whole = waiting.add(offset, data, last=last)
        if whole is not None:
            del self._fragments[key]
        return whole

    def endpoint(self, key: bytes) -> str:
        """An address and port as text, from their bytes; remembered in ``endpoints``."""
        if len(self.endpoints) >= _MOST_ENDPOINTS:
            self.endpoints.clear()
        host, port = _host(key[:-2]), key[-2] << 8 | key[-1]
        text = self.endpoints[key] = f"{host}:{port}" if len(key) == 6 else f"[{host}]:{port}"
        return text


def _host(address: bytes) -> str:
    if len(address) == 4:
        return f"{address[0]}.{address[1]}.{address[2]}.{address[3]}"
    return str(IPv6Address(address))


def _icmp_error(protocol: int, kind: int, code: int) -> str | None:
    """The words for an ICMP error; None for a message that quotes no packet."""
    if protocol == _ICMP:
        words = _ICMP_ERRORS.get(kind)
        more = _UNREACHABLE.get(code) if kind == 3 else None
        if kind == 3 and code == 4:
            return "ICMP fragmentation needed"
    else:
        words = _ICMPV6_ERRORS.get(kind)
        more = _UNREACHABLE_V6.get(code) if kind == 1 else None
    if words is None:
        return None
    name = "ICMP" if protocol == _ICMP else "ICMPv6"
    return f"{name} {words} ({more})" if more else f"{name} {words}"
