"""Opening files below a directory whose contents somebody else may have made: no link is followed.

The agent is root and reaches a container's files by ``/proc/<init>/root``. What runs in the container may
have put a symbolic link in the place of any directory or file there, which the kernel would resolve
against the *agent's* root. So each step of a path is opened on its own, relative to the one before, with
O_NOFOLLOW. (openat2(2) with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS is the same in one call, which
Python does not have.)
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from quicferry.errors import MigrationError

STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def directory_beneath(root: Path, inside: PurePosixPath, *, make: bool = False) -> Iterator[int]:
    """A descriptor of a directory below ``root``; with ``make``, those that are missing are made (0700).

    Raises ``MigrationError`` when a step of the path is a link, and ``OSError``.
    """
    parts = _parts(inside)
    # the root itself may be a link of the kernel's (/proc/<pid>/root)
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
            step = _step(part, STEP, descriptor, inside)
            os.close(descriptor)
            descriptor = step
        yield descriptor
    finally:
        os.close(descriptor)


def open_beneath(root: Path, inside: PurePosixPath, flags: int, mode: int = 0o600) -> int:
    """Open a file below ``root``. Raises ``OSError``, and ``MigrationError`` for a link on its path."""
    with directory_beneath(root, inside.parent) as parent:
        return _step(inside.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, parent, inside, mode)


def remove_beneath(root: Path, inside: PurePosixPath) -> None:
    """Remove a file or link below ``root``; nothing when there is none. Raises as ``open_beneath``.

    A directory in its place is a ``MigrationError``.
    """
    with suppress(FileNotFoundError), directory_beneath(root, inside.parent) as parent:
        try:
            os.unlink(inside.name, dir_fd=parent)
        except IsADirectoryError as error:
            raise MigrationError(f"{inside} is a directory, and no file can be put there") from error


def _parts(inside: PurePosixPath) -> tuple[str, ...]:
    parts = inside.relative_to("/").parts if inside.is_absolute() else inside.parts
    if ".." in parts:
        raise MigrationError(f"{inside} leads out of the container")
    return parts


def _step(name: str, flags: int, parent: int, inside: PurePosixPath, mode: int = 0o600) -> int:
    try:
        return os.open(name, flags, mode, dir_fd=parent)
    except OSError as error:
        # a link is ELOOP, or ENOTDIR where a directory was asked for
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and flags & os.O_DIRECTORY):
            raise MigrationError(
                f"{inside}: {name} is a link or no directory, and is not followed",
                hint="something in the container has put it there",
            ) from error
        raise


def read_beneath(root: Path, inside: PurePosixPath, most_bytes: int) -> bytes:
    """What a file below ``root`` holds. Raises as ``content_beneath``."""
    return content_beneath(root, inside, most_bytes)[0]


def content_beneath(root: Path, inside: PurePosixPath, most_bytes: int) -> tuple[bytes, int]:
    """What a file below ``root`` holds, and its permissions.

    Raises as ``open_beneath``; ``MigrationError`` also for what is no regular file (a pipe would be waited at
    for ever) or is longer than that.
    """
    # without O_NONBLOCK, opening a pipe waits for whoever writes to it
    descriptor = open_beneath(root, inside, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MigrationError(f"{inside} is no file", hint="something in the container has put it there")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise MigrationError(f"{inside} is longer than {most_bytes} bytes", hint="it is not read")
    return content, stat.S_IMODE(status.st_mode)


def write_beneath(root: Path, files: Mapping[str, bytes]) -> None:
    """Make files of mode 0600 anew, in directories that are there. Raises as ``open_beneath``."""
    for name, content in files.items():
        inside = PurePosixPath(name)
        remove_beneath(root, inside)
        descriptor = open_beneath(root, inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def names_beneath(root: Path, pattern: PurePosixPath) -> list[PurePosixPath]:
    """The paths in a directory below ``root`` whose last part fits a pattern (``*``, ``?``), sorted.

    Empty when there is no such directory. Raises ``MigrationError`` for a link on the way to it.
    """
    with suppress(FileNotFoundError), directory_beneath(root, pattern.parent) as directory:
        names = [path.name for path in Path(f"/proc/self/fd/{directory}").iterdir()]
        return [pattern.parent / name for name in sorted(fnmatch.filter(names, pattern.name))]
    return []
