"""Tells segments that were damaged on their way from whole ones, as their receiver does (RFC 9293, 3.1).

A damaged segment is thrown away by who receives it and sent again; a reader that took its bytes would have
other ones than the receiver, and could open no record of the stream any more.
"""

from __future__ import annotations

import functools
from ipaddress import ip_address

from quicferry.capture.files.ip import TCP
from quicferry.model import host_of

_CHECKSUM = slice(16, 18)
_HEADER_BYTES = 20
_ONES = 0xFFFF  # the modulus of ones' complement sums of 16 bits


def is_damaged(source: str, destination: str, segment: bytes) -> bool:
    """Whether the checksum of a segment, whole and with its header, is that of other bytes.

    ``source`` and ``destination`` are endpoints such as ``10.0.1.2:4433``. What a kernel hands on within a
    machine has the sum of the pseudo header only, or none, as an interface would complete it: nothing
    damages that. A segment whose header is cut off has no checksum.
    """
    given = int.from_bytes(segment[_CHECKSUM], "big")
    if len(segment) < _HEADER_BYTES or not given:
        return False
    pseudo = _host_sum(source) + _host_sum(destination) + TCP + len(segment)
    padded = segment if len(segment) % 2 == 0 else segment + b"\0"
    return (pseudo + int.from_bytes(padded, "big")) % _ONES != 0 and (pseudo - given) % _ONES != 0


@functools.lru_cache(maxsize=4096)
def _host_sum(endpoint: str) -> int:
    return int.from_bytes(ip_address(host_of(endpoint)).packed, "big") % _ONES
