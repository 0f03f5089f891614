"""Writes pcapng: named interfaces, nanosecond stamps, embedded secrets (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import struct
from typing import BinaryIO

from quicferry.capture.files.pcapng_format import (
    BYTE_ORDER_MAGIC,
    ENHANCED_PACKET,
    INTERFACE,
    SECRETS,
    SECTION_HEADER,
    TLS_KEY_LOG,
)

_APPLICATION, _IF_NAME, _IF_DESCRIPTION, _IF_RESOLUTION = 4, 2, 3, 9
_NANOSECONDS = b"\x09"


class PcapngWriter:
    """One section in little-endian order. Secrets go before the packets that they open."""

    def __init__(self, file: BinaryIO, application: str) -> None:
        self._file = file
        self._interfaces = 0
        head = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
        self._block(SECTION_HEADER, head + _options((_APPLICATION, application.encode())))

    def interface(self, name: str, link_type: int, description: str = "") -> int:
        """Describe an interface; returns its number."""
        options = [(_IF_NAME, name.encode()), (_IF_RESOLUTION, _NANOSECONDS)]
        if description:
            options.insert(1, (_IF_DESCRIPTION, description.encode()))
        self._block(INTERFACE, struct.pack("<HHI", link_type, 0, 0) + _options(*options))
        self._interfaces += 1
        return self._interfaces - 1

    def secrets(self, log: bytes) -> None:
        """Embed a key log."""
        self._block(SECRETS, struct.pack("<II", TLS_KEY_LOG, len(log)) + log)

    def packet(self, interface: int, t_ns: int, data: bytes, wire_bytes: int) -> None:
        """Write a captured frame; ``t_ns`` is since the epoch."""
        head = struct.pack("<IIIII", interface, t_ns >> 32, t_ns & 0xFFFFFFFF, len(data), wire_bytes)
        self._block(ENHANCED_PACKET, head + data)

    def _block(self, kind: int, body: bytes) -> None:
        padding = -len(body) % 4
        length = 12 + len(body) + padding
        self._file.write(struct.pack("<II", kind, length) + body + bytes(padding) + struct.pack("<I", length))


def _options(*options: tuple[int, bytes]) -> bytes:
    parts = [
        struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)
        for code, value in (*options, (0, b""))
    ]
    return b"".join(parts)
