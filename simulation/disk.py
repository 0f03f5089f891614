"""Files with faults: what may go wrong between a program and its disk.

The files are real ones, in a directory in memory; what is put between them and the code is the module
``os``: writes can be short, the disk can be full, and what was not synced can be lost with the power.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulation.process import current

PRIVATE = "/run/"  # a container has its own


class Disk:
    """One host's disk, a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.full = False
        self.short_writes = 0  # so many writes to come write half of what they should
        # lengths that would survive a loss of power: by the latest fsync, and by the one before it
        self._synced: dict[Path, tuple[int, int]] = {}
        self.on_write: Callable[[Path, bytes], None] | None = None

    def path(self, inside: str) -> Path:
        """A path of the host as one of this machine."""
        return self.root / inside.lstrip("/")

    def wrote(self, path: Path, data: bytes) -> None:
        """Something was written."""
        if self.on_write is not None:
            self.on_write(path, data)

    def synced(self, path: Path) -> None:
        """All of the file would survive now."""
        latest, _ = self._synced.get(path, (0, 0))
        self._synced[path] = (path.stat().st_size if path.exists() else 0, latest)

    def tear(self, path: Path) -> bool:
        """Cut the last line of a file in half, as a crash in the middle of a write does."""
        if not path.exists():
            return False
        content = path.read_bytes()
        last = content[:-1].rfind(b"\n") + 1
        if last >= len(content):
            return False
        os.truncate(path, last + (len(content) - last) // 2)
        return True

    def lose_power(self, *, sync_lost: bool = False) -> None:
        """What was not synced is gone; with ``sync_lost`` the disk lied about each last sync."""
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                kept = self._synced.get(path, (0, 0))[sync_lost]
                if kept < path.stat().st_size:
                    os.truncate(path, kept)


class FaultyOs:
    """Stands where a module has imported ``os``. The disk is that of the host whose process runs."""

    def __init__(self, disks: dict[str, Disk]) -> None:
        self._disks = disks
        self._open: dict[int, tuple[Disk, Path]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _disk(self) -> Disk | None:
        process = current()
        return None if process is None else self._disks.get(process.host)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """As ``os.open``."""
        disk = self._disk()
        if disk is not None and str(path).startswith(PRIVATE):
            path = disk.path(str(path))
        descriptor = os.open(path, flags, mode)
        if disk is not None:
            self._open[descriptor] = (disk, Path(path))
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        """As ``os.write``, which may write less than it was asked to."""
        known = self._open.get(descriptor)
        if known is None:
            return os.write(descriptor, data)
        disk, path = known
        process = current()
        if process is not None and not process.alive:
            return len(data)  # killed in the middle of a callback: what follows has no effect
        if disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if disk.short_writes and len(data) > 1:
            disk.short_writes -= 1
            data = bytes(data[: len(data) // 2])
        written = os.write(descriptor, data)
        disk.wrote(path, data)
        return written

    def close(self, descriptor: int) -> None:
        """As ``os.close``."""
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def fsync(self, descriptor: int) -> None:
        """As ``os.fsync``; real syncing is not needed, and slow."""
        known = self._open.get(descriptor)
        if known is not None:
            known[0].synced(known[1])

    def fdopen(self, descriptor: int, mode: str) -> Any:
        """As ``os.fdopen``."""
        known = self._open.get(descriptor)
        if known is not None and known[0].full:
            os.close(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(known[1]))
        return os.fdopen(descriptor, mode)
