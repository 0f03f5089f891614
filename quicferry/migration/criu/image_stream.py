"""Checkpoint images as a stream of bytes between the agents.

The stream is a sequence of records. A record is a 4-byte big-endian length, a msgpack header of
that length (``Header``), and ``header.size`` bytes that are appended to the file ``header.name``.
A file that is still growing can thus be sent in pieces, between those of others. The first record
is always the ``CheckpointManifest``, the last one has the kind ``end``.

The format is ours because tar wants to know the size of a file before its first byte.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.migration.container.beneath import directory_beneath, open_beneath, remove_beneath
from quicferry.migration.criu import page_delta
from quicferry.migration.criu.received import ReceivedFiles
from quicferry.migration.criu.sealed import SealedMemory

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
NAME_MAX_BYTES = 255  # NAME_MAX of limits.h: what one step of a path may have
MAX_MANIFEST_BYTES = 4 << 20
MAX_RECORDS = 10_000_000  # a terabyte of memory in pieces of 256 KiB, and as many files
LENGTH = struct.Struct(">I")

#: Without this image CRIU restores into the time namespace it runs in. With it, CLOCK_MONOTONIC would
#: stand still during the move, and stamps of before and after could not be compared.
LEFT_BEHIND = ("timens-0.img", "dump.log", "restore.log", "stats-dump", "stats-restore")


class RecordKind(enum.StrEnum):
    """What the data of a record is."""

    MANIFEST = "manifest"  # the data is a CheckpointManifest
    IMAGE = "image"  # a piece of a file of the image directory or one of its rounds; name is relative
    DELTA = "delta"  # pages of such a file, as differences from what the destination has (``page_delta``)
    #: changes of the base image that is kept in memory (``page_patch``), with no name; or pages of a round,
    #: as changes of what the rounds before it have
    PATCH = "patch"
    PARENT = "parent"  # no data; name is "child=parent": two image directories, "." or round-N
    FILE = "file"  # a piece of a file the process has open; name is an absolute path under /run
    END = "end"  # nothing follows


#: An image file: of the image directory itself, or of a pre-copy round's directory in it.
IMAGE_NAME = re.compile(r"(round-\d+/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: The memory of a round, which no program but the agent need ever read.
ROUND_PAGES = re.compile(r"round-\d+/pages-\d+\.img")
PARENT_NAME = re.compile(r"(\.|round-\d+)=(round-\d+)")


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The header of a record: kind, name, size of the data in bytes, mode."""

    kind: RecordKind
    name: str
    size: int
    mode: int = 0o600  # permission bits; CRIU refuses an open file whose mode has changed


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the checkpoint is: enough for the destination to refuse one that it cannot restore."""

    format_version: int = FORMAT_VERSION
    epoch: int
    pid: int  # of the server, in the images (engines that need none: at the source)
    files: list[str]  # regular files under /run that the process holds open
    rounds: int = 0  # how many incremental images came before this one
    portions: int = 0  # how many of these, the last ones, were read from the stopped process
    lazy: dict[int, int] = {}  # PID inside the container -> pages that are still at the source
    base: str = ""  # digest of the base image that is the first round; empty: there is none
    stopped: bool = False  # the process was dumped stopped and needs SIGCONT


def record(kind: RecordKind, name: str, data: bytes | memoryview, mode: int = 0o600) -> bytes:
    """Encode one record."""
    header = msgspec.msgpack.encode(Header(kind, name, len(data), mode))
    return b"".join((LENGTH.pack(len(header)), header, data))


def memory_of_this_machine() -> int:
    """Physical memory in bytes: a checkpoint that unpacks to more cannot be restored here."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Appended:
    """The file that a record's data is being appended to, open until the record is complete.

    To open it anew for every piece costs more than to write the piece: each directory on the way to it is
    opened on its own (``beneath``).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: memoryview) -> None:
        """Append all of the data. Raises ``OSError``."""
        written = 0
        while written < len(data):
            written += os.write(self._descriptor, data[written:])

    def close(self) -> None:
        """Close the file; may be repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()  # of a stream that was cut off in the middle of a record


class Unpacker:
    """Reads the stream of records as it comes and writes the files.

    ``images`` is the image directory, ``root`` the container's root directory, both as this process
    sees them. Data of a record is written piece by piece; nothing is held back but a record's header.
    ``received`` gets the checksums of all that is written. Links that are there are not followed.
    ``base``: the pages of the base image or of rounds, for a stream that has differences from them; ``patch``
    takes the data of a record that changes the base image itself, or gives the pages that it makes of it.
    ``sealed`` takes the memory of rounds, in place of files.
    """

    def __init__(
        self,
        images: Path,
        root: Path,
        received: ReceivedFiles | None = None,
        base: page_delta.KnownPages | None = None,
        patch: Callable[[bytearray], bytes | memoryview | None] | None = None,
        sealed: SealedMemory | None = None,
    ) -> None:
        self._sealed = sealed
        self._base = base
        self._patch = patch
        self._delta = bytearray()
        self._images = images
        self._root = root
        self._received = received if received is not None else ReceivedFiles()
        self._buffer = bytearray()
        self._header: Header | None = None
        self._left = 0
        self._seen: set[Path] = set()
        self._appended: _Appended | None = None
        self._records = 0
        self._manifest_bytes = bytearray()
        self._complete = False
        self.received_bytes = 0
        self.most_bytes = memory_of_this_machine()

    @property
    def complete(self) -> bool:
        """Whether the last record has come."""
        return self._complete

    def manifest(self) -> CheckpointManifest:
        """The manifest. Raises ``MigrationError`` unless the stream is complete and its format known."""
        if not self._complete:
            raise MigrationError("the checkpoint is cut off", hint="the source stopped sending it")
        try:
            manifest = msgspec.json.decode(self._manifest_bytes, type=CheckpointManifest)
        except UNDECODABLE as error:
            raise MigrationError(f"the checkpoint has no readable manifest: {error}") from error
        if manifest.format_version != FORMAT_VERSION:
            raise MigrationError(
                f"the checkpoint has format {manifest.format_version}, this host reads {FORMAT_VERSION}",
                hint="run the same version on all hosts",
            )
        return manifest

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream. Raises ``MigrationError`` for what cannot be a checkpoint."""
        self.received_bytes += len(data)
        if self.received_bytes > self.most_bytes:
            raise MigrationError(
                f"the checkpoint unpacks to more than {self.most_bytes} bytes",
                hint="that is more memory than this machine has: it could not be restored",
            )
        view = memoryview(data)
        while view:
            if self._complete:
                raise MigrationError("the checkpoint goes on after its end")
            if self._header is None:
                view = self._feed_header(view)
            else:
                piece, view = view[: self._left], view[self._left :]
                self._write(self._header, piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._header = None
                    self._close()

    def _feed_header(self, view: memoryview) -> memoryview:
        """Complete the header from the beginning of ``view``; returns the rest."""
        wanted = LENGTH.size
        if len(self._buffer) >= LENGTH.size:
            wanted += LENGTH.unpack_from(self._buffer)[0]
            if wanted > MAX_HEADER_BYTES:
                raise MigrationError("the checkpoint is damaged: a record's header is too long")
            if wanted == LENGTH.size:
                raise MigrationError("the checkpoint is damaged: a record's header is empty")
        missing = wanted - len(self._buffer)
        self._buffer += view[:missing]
        if len(self._buffer) == wanted > LENGTH.size:
            try:
                header = msgspec.msgpack.decode(memoryview(self._buffer)[LENGTH.size :], type=Header)
            except UNDECODABLE as error:
                raise MigrationError(f"the checkpoint is damaged: {error}") from error
            self._buffer.clear()
            self._begin(header)
        return view[missing:]

    def _begin(self, header: Header) -> None:
        """Act on a complete header: kinds without data are done with it."""
        self._records += 1
        if self._records > MAX_RECORDS:
            raise MigrationError(f"the checkpoint has more than {MAX_RECORDS} records")
        if header.size < 0:
            raise MigrationError(f"the checkpoint is damaged: a record of {header.size} bytes")
        if header.kind is RecordKind.END:
            self._complete = True
        elif header.size:
            self._header, self._left = header, header.size
        elif header.kind is RecordKind.PARENT:
            self._link(header.name)
        elif header.kind is not RecordKind.MANIFEST:
            self._write(header, memoryview(b""))
            self._close()

    def _link(self, name: str) -> None:
        """Link an image directory to the one whose pages it builds upon (CRIU's ``parent``)."""
        names = PARENT_NAME.fullmatch(name)
        if names is None:
            raise MigrationError(f"the checkpoint links what it must not link: {name!r}")
        root, inside = self._beneath(self._images / names[1] / "parent")
        with directory_beneath(root, inside.parent, make=True) as directory:
            remove_beneath(root, inside)
            target = names[2] if names[1] == "." else f"../{names[2]}"
            os.symlink(target, inside.name, dir_fd=directory)

    def _target(self, header: Header) -> Path:
        """The file that a record may write. Raises ``MigrationError`` for any other."""
        parts = header.name.split("/")
        if "\0" in header.name or any(len(part.encode()) > NAME_MAX_BYTES for part in parts):
            raise MigrationError(f"the checkpoint names a file that cannot be: {header.name[:40]!r}…")
        if header.kind is RecordKind.IMAGE and IMAGE_NAME.fullmatch(header.name):
            return self._images / header.name
        inside = parts[:2] == ["", "run"] and len(parts) > 2 and not {"", ".", ".."} & set(parts[2:])
        if header.kind is RecordKind.FILE and inside:
            return self._root / header.name.lstrip("/")
        raise MigrationError(f"the checkpoint names a file that it must not write: {header.name!r}")

    def _write(self, header: Header, piece: memoryview) -> None:
        """Append data to the record's file, which the first piece makes anew."""
        if header.kind is RecordKind.MANIFEST:
            self._manifest_bytes += piece
            if len(self._manifest_bytes) > MAX_MANIFEST_BYTES:
                raise MigrationError("the checkpoint's manifest is too long")
            return
        if header.kind in (RecordKind.DELTA, RecordKind.PATCH):
            self._take_differences(header, piece)
            return
        if self._sealed is not None and ROUND_PAGES.fullmatch(header.name):
            self._sealed.append(header.name, piece)
            return
        path = self._target(header)
        try:
            if self._appended is None:
                self._appended = self._open(path, header.mode & 0o777)
            self._appended.write(piece)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MigrationError(
                f"there is no room here for the checkpoint: {self.received_bytes} bytes of it have come",
                hint="it is kept in memory, on the destination's /run: free memory, or move less",
            ) from error
        self._received.append(path, piece)

    def _open(self, path: Path, mode: int) -> _Appended:
        """Open a file to append to it; one that this stream has not named yet is made anew."""
        root, inside = self._beneath(path)
        flags = os.O_WRONLY | os.O_APPEND
        is_new = path not in self._seen
        if is_new:
            self._seen.add(path)
            with directory_beneath(root, inside.parent, make=True):
                remove_beneath(root, inside)
            flags |= os.O_CREAT | os.O_EXCL
            self._received.begin(path)
        descriptor = open_beneath(root, inside, flags, mode)
        appended = _Appended(descriptor)
        if is_new:
            os.fchmod(descriptor, mode)  # open heeds the umask
        return appended

    def _close(self) -> None:
        """Close the file of a record that is complete."""
        if self._appended is not None:
            self._appended.close()
            self._appended = None

    def _take_differences(self, header: Header, piece: memoryview) -> None:
        """Collect a record of differences; once it is whole, write its pages or patch the base image."""
        if self._base is None or header.size > page_delta.MOST_BYTES:
            raise MigrationError(
                "the checkpoint has differences from a base image that is not here",
                hint="the same version must run on all hosts; --no-base-image does without",
            )
        self._delta += piece
        if len(self._delta) < header.size:
            return
        whole, self._delta = self._delta, bytearray()
        if header.kind is RecordKind.DELTA:
            pages = page_delta.restored(whole, self._base)
            self._write(Header(RecordKind.IMAGE, header.name, len(pages), header.mode), memoryview(pages))
        elif self._patch is None:
            raise MigrationError("the checkpoint has patches where none can be taken")
        else:
            patched = self._patch(whole)
            if patched is not None:
                self._write(
                    Header(RecordKind.IMAGE, header.name, len(patched), header.mode), memoryview(patched)
                )

    def _beneath(self, path: Path) -> tuple[Path, PurePosixPath]:
        """A file as the directory that this process trusts, and the path below it, which others may make."""
        root = self._root if path.is_relative_to(self._root) else self._images
        return root, PurePosixPath(path.relative_to(root))
