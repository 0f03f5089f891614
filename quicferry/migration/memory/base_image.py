"""Base images: the memory of an idle server of the same version, which every edge has before any move.

Most pages of a server hold what any server of its version has: the interpreter, its modules, their tables.
A move need not carry what both edges know. That is what VM hand-off between edges does with base disks and
base memory (Ha et al., "You Can Teach Elephants to Dance", SEC 2017). A base image is a property of the
program, not of the server that moves: it is made once per version, of a process that has never served
(``twin``), and kept in a directory of the checkout as the program itself is.

Pages are compared by address and content, so servers must be started alike: same arguments, same environment,
no random layout of the address space, a fixed hash seed (``ALIKE``).

On disk a base image is a memory image of CRIU, two files, with the SHA-256 of both in the third.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quicferry.errors import MigrationError
from quicferry.migration.memory.pagemap import (
    NO_PAGES,
    PAGE_BYTES,
    PageMap,
    Pages,
    decode,
    encode,
    entries_of,
)
from quicferry.migration.memory.process_memory import Snapshot
from quicferry.paths import CHECKOUT

#: Starts a program with the layout of its address space that it had the last time.
ALIKE = ("setarch", "-R")
ADDR_NO_RANDOMIZE, ASK_PERSONALITY = 0x0040000, 0xFFFFFFFF  # linux/personality.h
#: Sets of strings are laid out alike. It takes away a protection against clients that choose keys to collide.
ALIKE_ENV = {"PYTHONHASHSEED": "0"}
#: What else of an environment a server is given: its length shifts everything on its heap.
PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX")

PAGES_ID = 1
PAGEMAP, PAGES, DIGEST = "pagemap.img", f"pages-{PAGES_ID}.img", "sha256"
KEPT = 8  # images of other versions that are not thrown away


class BaseImage(NamedTuple):
    """A base image in memory: its digest in hexadecimal, and its pages."""

    sha256: str
    snapshot: Snapshot
    of_files: Pages = NO_PAGES  # those that lie where a file is mapped, which CRIU restores itself


def store() -> Path:
    """Where base images are kept: ``QUICFERRY_BASE_IMAGES``, else a directory of the checkout's cache."""
    named = os.environ.get("QUICFERRY_BASE_IMAGES")
    return Path(named) if named else CHECKOUT / ".cache" / "base-images"


def is_possible() -> bool:
    """Whether servers can be started alike here: a sandbox may forbid it (Docker's usual seccomp profile)."""
    libc = ctypes.CDLL(None)
    present = libc.personality(ASK_PERSONALITY)
    if libc.personality(present | ADDR_NO_RANDOMIZE) == -1:
        return False
    libc.personality(present)
    return True


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server that is to be like others of its version."""
    return {name: inherited[name] for name in PASSED_ON if name in inherited} | ALIKE_ENV


def version_of(argv: Sequence[str], env: Mapping[str, str], kind: str = "") -> str:
    """What a base image is for: the program with all it imports, its arguments and its environment.

    ``kind``: what else decides, such as the kind of container.
    """
    known = (list(argv), sorted(env.items()), sys.version, os.uname().release, kind)
    digest = hashlib.sha256(repr(known).encode())
    for path in sorted(_sources()):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _sources() -> Iterator[Path]:
    """Our own modules, and a file for each installed package that changes with its version."""
    for folder in ("apps", "baselines", "quicferry", "topologies"):
        yield from (CHECKOUT / folder).rglob("*.py")
    for entry in map(Path, sys.path):
        if entry.name == "site-packages" and entry.is_dir():
            yield from entry.glob("*.dist-info")


@contextmanager
def held(version: str) -> Iterator[Path]:
    """The directory of a version's base image, for this process alone. Blocks: to be run in a thread."""
    directory = store() / version
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with directory.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
    except OSError as error:
        raise MigrationError(
            f"base images cannot be kept in {directory.parent}: {error.strerror or error}",
            hint="--no-base-image does without; QUICFERRY_BASE_IMAGES names another directory",
        ) from error


def read(directory: Path) -> BaseImage | None:
    """The base image there; None when there is none, or it is damaged."""
    try:
        sha256 = (directory / DIGEST).read_text()
        pagemap = (directory / PAGEMAP).read_bytes()
        data = np.fromfile(directory / PAGES, np.uint8)
        os.utime(directory)  # the last use, see ``_tidy``
    except OSError:
        return None
    if _digest(pagemap, data.data) != sha256:
        return None
    decoded = decode(pagemap)
    return BaseImage(sha256, Snapshot(decoded.present, data.reshape(-1, PAGE_BYTES)), decoded.eager)


def write(directory: Path, snapshot: Snapshot, of_files: Pages = NO_PAGES) -> BaseImage:
    """Keep the memory of an idle server as a base image. Raises ``OSError``.

    ``of_files``: the pages that lie where a file is mapped. All others can be restored lazily.
    """
    lazy = np.setdiff1d(snapshot.pages, of_files, assume_unique=True)
    pagemap = encode(PageMap(PAGES_ID, entries_of(present=of_files, lazy_present=lazy)))
    data = snapshot.data.reshape(-1)
    sha256 = _digest(pagemap, data.data)
    draft = directory.with_suffix(".new")
    for old in (draft, directory):
        shutil.rmtree(old, ignore_errors=True)
    # keys of a service may be in it: the twin has read them
    draft.mkdir(mode=0o700)
    (draft / PAGEMAP).write_bytes(pagemap)
    data.tofile(draft / PAGES)
    (draft / DIGEST).write_text(sha256)
    draft.rename(directory)
    _tidy(directory)
    return BaseImage(sha256, snapshot, of_files)


def _digest(pagemap: bytes, data: memoryview) -> str:
    digest = hashlib.sha256(pagemap)
    digest.update(data)
    return digest.hexdigest()


def _tidy(latest: Path) -> None:
    """Remove all but the images that were used last."""
    others = [path for path in latest.parent.iterdir() if path.is_dir() and path != latest]
    with suppress(OSError):  # another run has removed one
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
