"""Packing the stream of a checkpoint: records are compressed at the source and unpacked at the destination.

Both ends do it as the bytes come, in a thread: zstd lets the event loop go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import IO, Protocol, cast

import zstandard

from quicferry.errors import InvalidInput, MigrationError
from quicferry.migration.criu.image_stream import Unpacker
from quicferry.migration.order import CHUNK_BYTES, COMPRESSIONS

#: This much is read and packed before the network gets it: half a millisecond of work.
PACKED_AT_ONCE_BYTES = 1 << 18
#: zstd may make 32 KiB of each byte: what it makes is taken in pieces of this size, one at a time.
UNPACKED_AT_ONCE_BYTES = 1 << 17
#: The memory of a Python server shrinks to a quarter at 400 MB/s, and what cannot shrink passes at
#: 1 GB/s: at 1 Gbit/s this takes more than a third off the downtime. See docs/adr/0004.
ZSTD_LEVELS = {"auto": -1, "zstd": -1, "zstd-1": 1, "zstd-3": 3}


class _Compressor(Protocol):
    """The part of zstd's interface that is used."""

    def compress(self, data: bytes, /) -> bytes:
        """Compress; may keep bytes for later."""

    def flush(self) -> bytes:
        """End the stream; returns the bytes that were kept."""


class _Plain:
    """The compression ``none``: hands bytes through."""

    def compress(self, data: bytes, /) -> bytes:
        """Return the bytes as they are."""
        return data

    def flush(self) -> bytes:
        """Return nothing: no bytes are kept."""
        return b""


class Packer:
    """Compresses records into one stream of chunks. ``compression`` is one of ``order.COMPRESSIONS``."""

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
        """Compress records into chunks; may keep bytes for later. To be run in a thread."""
        packed = self._compressor.compress(data)
        if flush:
            packed += self._compressor.flush()
        if len(packed) <= CHUNK_BYTES:
            return [packed] if packed else []
        return [packed[start : start + CHUNK_BYTES] for start in range(0, len(packed), CHUNK_BYTES)]

    async def pack_all(self, records: Iterator[bytes], *, flush: bool = False) -> AsyncIterator[bytes]:
        """Take records, compress and yield them. Small ones share a visit to the thread, which costs time."""
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
        """Compress records up to ``PACKED_AT_ONCE_BYTES``: the chunks, and whether there are more records."""
        chunks: list[bytes] = []
        taken = 0
        for piece in records:
            chunks += self.pack(piece)
            taken += len(piece)
            if taken >= PACKED_AT_ONCE_BYTES:
                return chunks, True
        return chunks, False


class _Unpacked:
    """What zstd writes to: takes each piece as soon as it is unpacked."""

    def __init__(self, unpacker: Unpacker) -> None:
        self._unpacker = unpacker

    def write(self, data: bytes) -> int:
        """Hand a piece on."""
        self._unpacker.feed(data)
        return len(data)


async def unpack(compression: str, unpacker: Unpacker, chunks: AsyncIterator[bytes]) -> None:
    """Unpack a stream as it comes. Raises ``MigrationError`` for what ``Packer`` cannot have packed."""
    writer = None
    if compression != "none":
        # a writer, not ``decompressobj``, which would return all that a chunk unpacks to in one piece
        writer = zstandard.ZstdDecompressor().stream_writer(
            cast("IO[bytes]", _Unpacked(unpacker)), write_size=UNPACKED_AT_ONCE_BYTES, closefd=False
        )

    def feed(chunk: bytes) -> None:
        if writer is None:
            unpacker.feed(chunk)
            return
        try:
            writer.write(chunk)
        except zstandard.ZstdError as error:
            raise MigrationError(f"the checkpoint is damaged: {error}") from error

    async for chunk in chunks:
        await asyncio.to_thread(feed, chunk)
