"""Looks at the frame of capture files only: whether they are whole, and if not, what is missing where.

A reader that stops at the first thing it does not understand gives fewer packets, and says nothing. Here the
lengths are followed from block to block (pcapng, draft-ietf-opsawg-pcapng §3.1) or from record to record
(pcap, draft-ietf-opsawg-pcap §5).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_NG_SECTION = b"\x0a\x0d\x0d\x0a"
_NG_ORDER = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_PCAP_ORDER = {
    b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">",
}  # fmt: skip
_LEAST_BLOCK = 12  # type, length, length again
_PCAP_HEADER, _PCAP_RECORD = 24, 16
_LARGEST_RECORD = 1 << 26


def damage_of(path: Path) -> str | None:
    """What is wrong with a capture file, in words that name it; None when it is whole.

    Raises ``OSError``.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return f"{path.name} is empty"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            words = _ng_damage(content) if content[:4] == _NG_SECTION else _pcap_damage(content)
    return f"{path.name} {words}" if words is not None else None


def _ng_damage(content: mmap.mmap) -> str | None:
    at, size, order = 0, len(content), "<"
    while at < size:
        if content[at : at + 4] == _NG_SECTION:
            order = _NG_ORDER.get(content[at + 8 : at + 12], order)
        if at + _LEAST_BLOCK > size:
            return _cut(at, size)
        (length,) = struct.unpack_from(f"{order}I", content, at + 4)
        if length < _LEAST_BLOCK or length % 4:
            return _broken(at)
        if at + length > size:
            return _cut(at, size) if length < _LARGEST_RECORD else _broken(at)
        (again,) = struct.unpack_from(f"{order}I", content, at + length - 4)
        if again != length:
            return _broken(at)
        at += length
    return None


def _pcap_damage(content: mmap.mmap) -> str | None:
    order = _PCAP_ORDER.get(content[:4])
    if order is None:
        return "is no capture file"
    at, size = _PCAP_HEADER, len(content)
    while at < size:
        if at + _PCAP_RECORD > size:
            return _cut(at, size)
        (length,) = struct.unpack_from(f"{order}I", content, at + 8)
        if length > _LARGEST_RECORD:
            return _broken(at)
        if at + _PCAP_RECORD + length > size:
            return _cut(at, size)
        at += _PCAP_RECORD + length
    return None if at == size else _cut(0, size)


def _cut(at: int, size: int) -> str:
    return f"is cut off: its last packet begins at byte {at} and does not end by byte {size}"


def _broken(at: int) -> str:
    return f"is damaged at byte {at}: what comes after it cannot be read"
