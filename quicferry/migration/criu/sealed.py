"""Memory that is received and then sealed: from then on nobody can write it, so it need be checked once only.

A file that was checked can be changed before it is read. So what is in files is checked directly before, in
the downtime, all of it. Here the order is turned round: bytes are kept in a memfd (memfd_create(2)), that
is sealed (F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_SEAL: fcntl(2)), and *then* compared with the
digests that were taken as the bytes came. The kernel takes no seal off, and refuses every write from then on,
root's as well; nor can a mapping be made through which it could be written. What was compared is what will be
read, however much later (docs/adr/0019-memory-that-is-sealed.md).

Neither does it have a name by which somebody could remove it: it lasts as long as a descriptor is open.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

from quicferry.errors import MigrationError
from quicferry.migration.criu.received import BLOCK_BYTES, PARALLEL_BYTES, WORKERS, BlockDigests, digest_of

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SealedMemory:
    """Named pieces of memory, received one after another; ``seal``, then ``check``, then ``content``."""

    def __init__(self, name: str) -> None:
        """``name``: by which the memory is seen in ``/proc``."""
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._digests: dict[str, BlockDigests] = {}
        self._offsets: dict[str, int] = {}
        self._size_bytes = 0
        self._mapping: mmap.mmap | None = None

    @property
    def names(self) -> list[str]:
        """What has come, in the order in which it began."""
        return list(self._offsets)

    @property
    def size_bytes(self) -> int:
        """How many bytes have come."""
        return self._size_bytes

    def append(self, name: str, piece: memoryview) -> None:
        """Take in bytes of ``name``, which begins with the first. Raises ``MigrationError``."""
        if name not in self._offsets:
            self._offsets[name], self._digests[name] = self._size_bytes, BlockDigests()
        if self._offsets[name] + self._digests[name].size_bytes != self._size_bytes:
            raise MigrationError(f"the checkpoint goes back to {name}, which had come to its end")
        written = 0
        while written < len(piece):
            try:
                written += os.write(self.descriptor, piece[written:])
            except OSError as error:
                raise MigrationError(
                    f"there is no room here for the checkpoint: {self._size_bytes} bytes of it are in memory",
                    hint="free memory, or move less",
                ) from error
        self._digests[name].append(piece)
        self._size_bytes += len(piece)

    def seal(self) -> None:
        """Let the kernel refuse every write from now on. Raises ``MigrationError``."""
        if self._mapping is not None:
            return
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS)
            self._mapping = mapped(self.descriptor)
        except OSError as error:
            raise MigrationError(f"what was received cannot be sealed: {error}") from error

    def check(self) -> int:
        """Compare the sealed memory with what has come; returns the bytes that were read.

        To be run in a thread if it is much; it uses several. Raises ``MigrationError``, also when nothing was
        sealed: what is compared before that may be written after it.
        """
        seals = fcntl.fcntl(self.descriptor, fcntl.F_GET_SEALS)
        if self._mapping is None or seals & SEALS != SEALS:
            raise MigrationError("what was received is not sealed")
        if os.fstat(self.descriptor).st_size != self._size_bytes:
            raise MigrationError("the memory that was received has another size")
        blocks = [
            (name, self._offsets[name] + number * BLOCK_BYTES, size, digest)
            for name, digests in self._digests.items()
            for number, (size, digest) in enumerate(digests.blocks())
        ]
        if self._size_bytes < PARALLEL_BYTES:  # threads cost more than they give
            for block in blocks:
                self._check_block(*block)
            return self._size_bytes
        with ThreadPoolExecutor(WORKERS) as workers:
            list(workers.map(lambda block: self._check_block(*block), blocks))
        return self._size_bytes

    def _check_block(self, name: str, offset: int, size: int, digest: bytes) -> None:
        if digest_of(memoryview(self._mapping or b"")[offset : offset + size]) != digest:
            raise MigrationError(
                f"{name} is not what was received: it differs within {size} bytes from {offset} on",
                hint="nothing is restored from it; the server goes on at the source",
            )

    def place(self, name: str) -> tuple[int, int]:
        """Where a piece is in the memory, and how long it is, in bytes. Raises ``MigrationError``."""
        if name not in self._offsets:
            raise MigrationError(f"the checkpoint lacks {name}")
        return self._offsets[name], self._digests[name].size_bytes

    def content(self, name: str) -> memoryview:
        """The bytes of a piece, in the memory itself: nothing is copied. Only what is sealed can be read."""
        if self._mapping is None:
            raise MigrationError("what was received is not sealed")
        offset, size = self.place(name)
        return memoryview(self._mapping)[offset : offset + size]

    def close(self) -> None:
        """Let go of the memory; what ``content`` gave stays as long as it is used."""
        self._mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def mapped(descriptor: int) -> mmap.mmap:
    """The sealed memory behind a descriptor. Raises ``OSError``."""
    size = os.fstat(descriptor).st_size
    if not size:
        return mmap.mmap(-1, 1, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    # private: before Linux 6.7 a shared mapping of what has F_SEAL_WRITE is refused, even one to read
    return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
