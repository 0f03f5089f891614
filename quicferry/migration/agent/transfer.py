"""The checkpoint on its way: pieces with a digest at the end, and back pressure in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, TypeVar

from quicferry.errors import MigrationError
from quicferry.migration.criu.digest import Digest
from quicferry.migration.order import CHUNK_BYTES
from quicferry.migration.rpc.messages import PIECE_BYTES, End, Piece

M = TypeVar("M")

QUEUE_PIECES = 8  # 8 MiB between the network and an engine that writes
#: Once so much of a transfer has left, the network has enough to do: what counts then is what a byte costs,
#: and a message costs each end 0.2 ms of processor time whatever its size.
SMALL_UNTIL_BYTES = 1 << 20


def pieces(chunk: bytes, sent_bytes: int) -> Iterator[Piece]:
    """Cut an engine's chunk into messages. ``sent_bytes``: how much of the transfer has left before."""
    size = PIECE_BYTES if sent_bytes < SMALL_UNTIL_BYTES else CHUNK_BYTES
    if len(chunk) <= size:
        yield Piece(chunk)
        return
    view = memoryview(chunk)
    for start in range(0, len(chunk), size):
        yield Piece(bytes(view[start : start + size]))


class Writer(Protocol):
    """The source's end of the stream of a move."""

    async def write(self, message: Piece) -> None:
        """Send one message."""


async def write_chunk(stream: Writer, chunk: bytes, tally: Tally) -> None:
    """Send one chunk of an engine in pieces. Raises ``FerryError``."""
    for piece in pieces(chunk, tally.size_bytes):
        await stream.write(piece)
        # while the network sends it
        tally.add(piece.data)


def checked(answer: object, kind: type[M], peer: str) -> M:
    """A message of ``peer``, which must be of that type. Raises ``MigrationError``."""
    if not isinstance(answer, kind):
        raise MigrationError(f"{peer} answered {type(answer).__name__} before {kind.__name__}")
    return answer


async def close(chunks: AsyncIterator[bytes]) -> None:
    """Close an asynchronous generator early, so that the engine can clean up."""
    end = getattr(chunks, "aclose", None)
    if end is not None:
        await end()


class Tally:
    """Counts and digests the bytes of one transfer. ``key``: of the digest, the same at both ends."""

    def __init__(self, key: bytes) -> None:
        self.size_bytes = 0
        self._digest = Digest(key)

    def add(self, data: bytes) -> None:
        """Take in bytes that were sent or have arrived."""
        self.size_bytes += len(data)
        self._digest.add(data)

    @property
    def digest(self) -> str:
        """The digest of all bytes, in hexadecimal; no more may follow."""
        return self._digest.value.hex()


class Inbox:
    """The destination's end: the network puts pieces in, the engine iterates over ``chunks()``.

    The iterator ends only when End has come and agrees with what was received; otherwise it raises
    ``MigrationError``, so that an engine cannot resume what is incomplete. ``key``: the sender's, of the
    digest.
    """

    def __init__(self, key: bytes) -> None:
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(QUEUE_PIECES)
        self._tally = Tally(key)
        self.complete = False

    @property
    def size_bytes(self) -> int:
        """How many bytes have arrived so far."""
        return self._tally.size_bytes

    @property
    def has_room(self) -> bool:
        """Whether ``put`` will not wait."""
        return not self._queue.full()

    async def put(self, piece: Piece | End) -> None:
        """Take in one piece; waits while the engine is behind."""
        self._tally.add(piece.data)
        await self._queue.put(piece.data)

    def check(self, end: End) -> None:
        """Compare with the sender's length and digest. Raises ``MigrationError``; call ``break_off`` then."""
        if (self._tally.size_bytes, self._tally.digest) != (end.size_bytes, end.digest):
            raise MigrationError(
                f"the checkpoint was damaged on its way: {self._tally.size_bytes} of {end.size_bytes} bytes "
                f"came, digest {self._tally.digest[:12]} for {end.digest[:12]}"
            )

    async def close(self) -> None:
        """Let the engine's iterator end: everything has arrived and was checked."""
        self.complete = True
        await self._queue.put(None)

    def break_off(self, error: Exception) -> None:
        """Let the engine's iterator raise ``error`` at once: nothing more will arrive."""
        if self.complete:
            return
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the pieces in the order of their arrival."""
        while True:
            item = await self._queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
