"""Packing the stream of a checkpoint: records are compressed at the source and unpacked at the destination.

Both ends do it as the bytes come, in a thread: zstd lets the event loop go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import zstandard

from quicferry.errors import InvalidInput, MigrationError
from quicferry.migration.criu.image_stream import Unpacker
from quicferry.migration.order import CHUNK_BYTES, COMPRESSIONS

#: This much is read and packed before the network gets it: half a millisecond of work.
PACKED_AT_ONCE_BYTES = 1 << 18
#: The memory of a Python server shrinks to a quarter at 400 MB/s, and what cannot shrink passes at
#: 1 GB/s: at 1 Gbit/s this takes more than a third off the downtime. See docs/adr/0004.
ZSTD_LEVELS = {"auto": -1, "zstd": -1, "zstd-1": 1, "zstd-3": 3}


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    """The compression ``none``."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class Packer:
    """Packs records into one stream. ``compression`` is one of ``order.COMPRESSIONS``."""

    def __init__(self, compression: str) -> None:
        if compression not in COMPRESSIONS:
            raise InvalidInput(
                f"there is no compression {compression!r}", hint="choose from " + ", ".join(COMPRESSIONS)
            )
        level = ZSTD_LEVELS.get(compression)
        self._compressor: _Compressor = (
            _Plain() if level is None else zstandard.ZstdCompressor(level=level).compressobj()
        )

    def pack(self, data: bytes, *, flush: bool = False) -> list[bytes]:
        """Pack records; runs in a thread, as zstd lets others run meanwhile. May keep bytes for later."""
        packed = self._compressor.compress(data)
        if flush:
            packed += self._compressor.flush()
        return [packed[start : start + CHUNK_BYTES] for start in range(0, len(packed), CHUNK_BYTES)]

    async def pack_all(self, records: Iterator[bytes], *, flush: bool = False) -> AsyncIterator[bytes]:
        """Make, pack and yield records. Small ones go together: each visit to the thread costs time."""
        while True:
            chunks, more = await asyncio.to_thread(self._pack_some, records)
            for chunk in chunks:
                yield chunk
            if not more:
                break
        if flush:
            for chunk in self.pack(b"", flush=True):
                yield chunk

    def _pack_some(self, records: Iterator[bytes]) -> tuple[list[bytes], bool]:
        chunks: list[bytes] = []
        taken = 0
        for piece in records:
            chunks += self.pack(piece)
            taken += len(piece)
            if taken >= PACKED_AT_ONCE_BYTES:
                return chunks, True
        return chunks, False


async def unpack(compression: str, unpacker: Unpacker, chunks: AsyncIterator[bytes]) -> None:
    """Unpack a stream as it comes. Raises ``MigrationError`` for what ``Packer`` cannot have packed."""
    decompressor = zstandard.ZstdDecompressor().decompressobj() if compression != "none" else None

    def feed(chunk: bytes) -> None:
        try:
            unpacker.feed(decompressor.decompress(chunk) if decompressor is not None else chunk)
        except zstandard.ZstdError as error:
            raise MigrationError(f"the checkpoint is damaged: {error}") from error

    async for chunk in chunks:
        await asyncio.to_thread(feed, chunk)
