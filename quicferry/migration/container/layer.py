"""The files that a container has written: its layer over the image, and its volumes. They move with it.

On each host the container's root is an overlay: the image below, which is there already, and above it a layer
on the private ``/run`` (Documentation/filesystems/overlayfs.rst). A volume is a directory beside that layer.

What moves is told by the layer alone: every file in it was written by the container. It is sent twice: all of
it while the container runs, and what differs by then while it stands still. What arrives is written
*through* the overlay, and so is what was removed: that is the only way in which a mounted overlay may change.
Files go by GNU tar, with owners, times, holes and extended attributes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.migration.container.processes import Completed, ContainerNamespaces

HOME = PurePosixPath("/run/oci/layer")
UPPER, WORK, VOLUMES = HOME / "upper", HOME / "work", HOME / "volumes"
#: How the overlay marks a directory that hides all that is below it.
OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
TAR_S = 300.0
CHANGED_AS_READ = 1  # tar's exit status when a file changed as it was read


class Sign(NamedTuple):
    """How a file looked when it was seen: whatever is done to it changes one of these."""

    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with an archive: paths below its tree that are gone, removed before it is unpacked."""

    removed: list[str] = []
    files: int = 0


class Part(NamedTuple):
    """One tree of files: where the container's writes end up, and where it is read and written as a whole."""

    name: str
    written: PurePosixPath
    whole: PurePosixPath


class Layer:
    """The layer and the volumes of one container on one host. Paths are those in the host's container."""

    def __init__(
        self, box: ContainerNamespaces, root: PurePosixPath, image: str, volumes: Sequence[str]
    ) -> None:
        """``root``: where the overlay is mounted; ``image``: what is below; ``volumes``: their names."""
        self._box = box
        self._root = root
        self._image = image
        self._volumes = list(volumes)
        self._sent: dict[str, dict[str, Sign]] = {}
        self.parts = [Part("root", UPPER, root), Part("volumes", VOLUMES, VOLUMES)]

    async def mount(self) -> None:
        """Make an empty layer, in place of what was there, and mount it. Raises ``MigrationError``."""
        await self.unmount()
        for part in (UPPER, WORK, VOLUMES):
            shutil.rmtree(self._box.path(str(part)), ignore_errors=True)
            self._box.path(str(part)).mkdir(parents=True, mode=0o755)
        for name in self._volumes:
            self._box.path(str(VOLUMES / name)).mkdir(mode=0o755)
        await self.remount()
        self._sent.clear()

    async def remount(self) -> None:
        """Mount the overlay over the layer as it is. Raises ``MigrationError``."""
        await self.unmount()
        options = f"lowerdir={self._image},upperdir={UPPER},workdir={WORK}"
        done = await self._box.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(self._root)], timeout_s=TAR_S
        )
        if done.status != 0:
            raise MigrationError(
                f"the layer over {self._image} cannot be mounted on {self._box.edge}: {done.stderr.strip()}",
                hint="it takes a kernel with overlayfs, and a path without a colon or a comma",
            )

    @property
    def is_mounted(self) -> bool:
        """Whether the overlay is there."""
        return self._box.path(str(self._root)).is_mount()

    async def unmount(self) -> None:
        """Take the overlay down; nothing when there is none."""
        if self.is_mounted:
            done = await self._box.run(["umount", "-l", str(self._root)])
            if done.status != 0:
                raise MigrationError(f"the layer on {self._box.edge} is in use: {done.stderr.strip()}")

    # the source

    async def pack(self, directory: PurePosixPath, number: int, *, quiet: bool) -> list[str]:
        """Write what differs from what was sent before into files of that directory; their names.

        ``quiet``: nobody writes meanwhile. Else a move begins, and all of it is written: its destination has
        an empty layer, whatever an earlier move, which was called off, had sent. Raises ``MigrationError``.
        """
        if not quiet:
            self._sent.clear()
        names = []
        for part in self.parts:
            seen = dict(self._seen(part))
            before = self._sent.get(part.name, {})
            changed = [path for path, sign in seen.items() if before.get(path) != sign]
            removed = [path for path in before if path not in seen and not stat.S_ISCHR(before[path].mode)]
            removed += [path for path in changed if stat.S_ISCHR(seen[path].mode)]
            kept = [path for path in changed if not stat.S_ISCHR(seen[path].mode)]
            removed += [hidden for path in kept for hidden in self._hidden(part, path, seen)]
            if not kept and not removed:
                continue
            stem = f"layer-{number}-{part.name}"
            names += [f"{stem}.json", f"{stem}.tar"]
            told = Changes(removed=removed, files=len(kept))
            self._box.path(str(directory / f"{stem}.json")).write_bytes(msgspec.json.encode(told))
            await self._tar(part, directory / stem, kept, quiet=quiet)
            self._sent[part.name] = seen
        return names

    def _seen(self, part: Part) -> Iterator[tuple[str, Sign]]:
        """All that is in the layer: path below its root, and how it looks."""
        top = str(self._box.path(str(part.written)))
        waiting = [""]
        while waiting:
            below = waiting.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(top, below)) as entries:  # noqa: PTH118
                for entry in entries:
                    path = f"{below}/{entry.name}" if below else entry.name
                    with contextlib.suppress(FileNotFoundError):  # it was removed while we looked
                        found = entry.stat(follow_symlinks=False)
                        yield (
                            path,
                            Sign(
                                mode=found.st_mode,
                                owner=(found.st_uid, found.st_gid),
                                size=found.st_size,
                                mtime_ns=found.st_mtime_ns,
                                ctime_ns=found.st_ctime_ns,
                                inode=found.st_ino,
                            ),
                        )
                        if stat.S_ISDIR(found.st_mode):
                            waiting.append(path)

    def _hidden(self, part: Part, path: str, seen: dict[str, Sign]) -> Iterator[str]:
        """What of the image a directory of the layer hides: it was removed and made again."""
        if part.name != "root" or not stat.S_ISDIR(seen[path].mode):
            return
        inside = self._box.path(str(part.written / path))
        with contextlib.suppress(OSError):
            if os.getxattr(inside, OPAQUE_ATTRIBUTE, follow_symlinks=False) != b"y":
                return
            for name in os.listdir(os.path.join(self._image, path)):  # noqa: PTH118, PTH208
                if f"{path}/{name}" not in seen:
                    yield f"{path}/{name}"

    async def _tar(self, part: Part, stem: PurePosixPath, paths: list[str], *, quiet: bool) -> None:
        """Pack these paths, directories before what is in them."""
        listed = self._box.path(f"{stem}.list")
        listed.write_bytes(b"".join(path.encode(errors="surrogateescape") + b"\0" for path in sorted(paths)))
        words = [
            *("tar", "--create", f"--file={stem}.tar", f"--directory={part.whole}", "--no-recursion"),
            *("--null", f"--files-from={stem}.list", "--numeric-owner", "--xattrs", "--sparse"),
            *([] if quiet else ["--ignore-failed-read", "--warning=no-file-changed"]),
        ]
        done = await self._box.run(words, timeout_s=TAR_S)
        listed.unlink()
        if done.status != 0 and (quiet or done.status != CHANGED_AS_READ):
            raise _failed("the files of the container cannot be packed", self._box.edge, done)

    # the destination

    async def apply(self, directory: PurePosixPath, number: int) -> None:
        """Bring files that have come into the layer and the volumes. Raises ``MigrationError``."""
        for part in self.parts:
            stem = directory / f"layer-{number}-{part.name}"
            told = self._box.path(f"{stem}.json")
            if not told.exists():
                continue
            try:
                changes = msgspec.json.decode(told.read_bytes(), type=Changes)
            except UNDECODABLE as error:
                raise MigrationError(f"the list of the container's files is damaged: {error}") from error
            whole = self._box.path(str(part.whole))
            for path in changes.removed:
                _remove(whole, path)
            if changes.files:
                words = ["tar", "--extract", f"--file={stem}.tar", f"--directory={part.whole}"]
                more = ["--preserve-permissions", "--numeric-owner", "--xattrs", "--overwrite"]
                done = await self._box.run([*words, *more], timeout_s=TAR_S)
                if done.status != 0:
                    raise _failed("the files of the container cannot be written", self._box.edge, done)


def _failed(what: str, edge: str, done: Completed) -> MigrationError:
    words = (done.stderr or done.stdout).strip().splitlines()
    first = words[0] if words else f"tar ended with status {done.status}"
    return MigrationError(f"{what} on {edge}: {first}", hint="is there room? `--disk-mib`, /run is in memory")


def _remove(root: Path, path: str) -> None:
    """Remove what is at a path below ``root``; no link on the way is followed out of it."""
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise MigrationError(f"the list of the container's files leads out of it: {path!r}")
    target = root
    for step in inside.parts[:-1]:
        target = target / step
        if target.is_symlink():
            return
    target = target / inside.name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
