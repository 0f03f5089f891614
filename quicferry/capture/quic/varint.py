"""The variable-length integer of QUIC (RFC 9000 §16)."""

from __future__ import annotations


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer that begins at an offset, and the offset behind it. Raises ``IndexError`` when cut off."""
    first = data[at]
    if first < 0x40:  # one byte: by far the commonest
        return first, at + 1
    length = 1 << (first >> 6)
    end = at + length
    if end > len(data):
        raise IndexError("a variable-length integer is cut off")
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * length - 2)) - 1), end
