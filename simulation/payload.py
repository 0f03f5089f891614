"""Bytes that say where they belong: each exchange has its own pattern, so that a byte that is lost,
doubled or out of place is seen at once.
"""

from __future__ import annotations

import struct

_PERIOD = 251  # a prime: no packet size is a multiple of it
_STEP = 97
_CYCLE = bytes(range(_PERIOD)) * 280  # longer than one piece
_PIECE = _PERIOD * 260
HEADER = struct.Struct("!II")  # number of the exchange, size of the answer


def pattern(number: int, start: int, size: int) -> bytes:
    """Bytes ``start`` to ``start + size`` of the pattern with that number."""
    out = bytearray()
    while size > 0:
        phase = (number * _STEP + start) % _PERIOD
        piece = min(size, _PIECE)
        out += _CYCLE[phase : phase + piece]
        start += piece
        size -= piece
    return bytes(out)


def request(number: int, answer_bytes: int, size: int) -> bytes:
    """A request of ``size`` bytes that asks for ``answer_bytes``."""
    head = HEADER.pack(number, answer_bytes)
    return head + pattern(number, HEADER.size, max(0, size - HEADER.size))
