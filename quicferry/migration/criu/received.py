"""What a destination has received, and whether it still is what it was: checked directly before it is read.

The transfer has its digest, compared at its end. Between that and the moment at which CRIU reads the files
they lie in memory that others can reach, and the memory of a server must not be restored with one wrong byte
in it. So a digest of every block is taken from the bytes as they came, and compared with the files once more
when they are about to be read (docs/adr/0014-one-owner.md). Its key is drawn by this process and does not
leave it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.criu.digest import Digest, new_key

BLOCK_BYTES = 1 << 20
READ_BYTES = 1 << 16
PARALLEL_BYTES = 2 << 20
WORKERS = min(4, os.cpu_count() or 1)
_KEY = new_key()


class BlockDigests:
    """The digests of the blocks of one piece of data, which only grows, and does not after it was checked."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.digests: list[Digest] = []

    def append(self, piece: memoryview) -> None:
        while piece:
            filled = self.size_bytes % BLOCK_BYTES
            if not filled:
                self.digests.append(Digest(_KEY))
            part, piece = piece[: BLOCK_BYTES - filled], piece[BLOCK_BYTES - filled :]
            self.digests[-1].add(part)
            self.size_bytes += len(part)

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """The size of each block in bytes, and its digest."""
        for number, digest in enumerate(self.digests):
            yield min(BLOCK_BYTES, self.size_bytes - number * BLOCK_BYTES), digest.value


def digest_of(data: memoryview) -> bytes:
    """The digest of one block."""
    digest = Digest(_KEY)
    digest.add(data)
    return digest.value


class ReceivedFiles:
    """The digests of all files of one move."""

    def __init__(self) -> None:
        self._files: dict[Path, BlockDigests] = {}

    def begin(self, path: Path) -> None:
        """A file is made anew."""
        self._files[path] = BlockDigests()

    def append(self, path: Path, piece: memoryview) -> None:
        """These bytes were appended to a file that has begun."""
        self._files[path].append(piece)

    def write(self, path: Path, content: memoryview | bytes) -> None:
        """Write a file anew, as one of those that were received: it is checked like them."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)
        self.begin(path)
        self.append(path, memoryview(content))

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return list(self._files)

    def check(self, paths: list[Path] | None = None) -> int:
        """Compare files with what has come, all unless told which; returns the bytes that were read.

        To be run in a thread; it uses several. Raises ``MigrationError`` for a file that has changed.
        """
        chosen = self.paths if paths is None else [path for path in paths if path in self._files]
        tasks = [task for path in chosen for task in self._tasks(path)]
        # for a few small files, threads cost more than they give
        if sum(size for _, _, size, _ in tasks) < PARALLEL_BYTES:
            return sum(_check_block(*task) for task in tasks)
        with ThreadPoolExecutor(WORKERS) as workers:
            return sum(workers.map(lambda task: _check_block(*task), tasks))

    def _tasks(self, path: Path) -> Iterator[tuple[Path, int, int, bytes | None]]:
        """What is to be read of a file: path, offset, size, digest; None: nothing must be there."""
        known = self._files[path]
        for number, (size, digest) in enumerate(known.blocks()):
            yield path, number * BLOCK_BYTES, size, digest
        yield path, known.size_bytes, 1, None


def _check_block(path: Path, offset: int, size: int, digest: bytes | None) -> int:
    try:
        read, found = _digest(path, offset, size)
    except OSError as error:
        raise MigrationError(f"{path.name} was received and cannot be read: {error.strerror}") from error
    wanted = 0 if digest is None else size
    if read != wanted or (digest is not None and found != digest):
        raise MigrationError(
            f"{path.name} is not what was received: it differs within {size} bytes from {offset} on",
            hint="nothing is restored from it; the server goes on at the source",
        )
    return read


def _digest(path: Path, offset: int, size: int) -> tuple[int, bytes]:
    """How many bytes of a block are there, and their digest. Raises ``OSError``."""
    # one buffer for all of it: memory that is touched for the first time costs more than the digest
    buffer = memoryview(bytearray(min(size, READ_BYTES)))
    read, digest = 0, Digest(_KEY)
    with path.open("rb", buffering=0) as file:
        while read < size:
            got = os.preadv(file.fileno(), [buffer[: size - read]], offset + read)
            if not got:
                break
            digest.add(buffer[:got])
            read += got
    return read, digest.value
