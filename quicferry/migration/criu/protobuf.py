"""The part of protobuf's encoding that CRIU's image files use: varints and sub-messages.

Wire types 0 (varint) and 2 (length-delimited) only. Format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message as (number, value): an ``int``, or ``bytes`` for a sub-message.

    Raises ``IndexError`` for a message that is cut off, ``ValueError`` for a wire type that CRIU's images
    do not have.
    """
    position = 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        key = read_varint()
        if key & 7 == 0:
            yield key >> 3, read_varint()
        elif key & 7 == 2:
            size = read_varint()
            if position + size > len(data):
                raise IndexError(f"a field of {size} bytes in a message of {len(data)}")
            yield key >> 3, data[position : position + size]
            position += size
        else:
            raise ValueError(f"wire type {key & 7}")


def varint(value: int) -> bytes:
    """Encode a non-negative number as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """Encode a field of wire type 0."""
    return varint(field << 3) + varint(value)
