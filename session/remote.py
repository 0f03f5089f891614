"""One run on another machine: what a worker of a cluster is asked to do, and what it sends back.

A worker has this checkout and is root. It makes the run in a folder of its own and returns the run's
directory, packed; whoever asked unpacks it into the one store.
"""

from __future__ import annotations

import fcntl
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec
import zstandard

from quicferry.emulation.sandbox.ownership import PARTIAL_SUFFIX
from quicferry.errors import InvalidInput, StoreError
from quicferry.record import RunPaths, RunResult, differing, write_json
from quicferry.spec import RunSpec
from session.session import Session
from session.sweep import conditions_now

LOCK = "quicferry-worker.lock"  # in the folder for temporary files: one run at a time on a machine


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A file or folder of a run's directory."""

    name: str  # relative to the directory, with "/"
    mode: int
    content: bytes | None  # None: a folder


class Parcel(msgspec.Struct, frozen=True):
    """A result, and what is in the run's directory: folders before what is in them."""

    result: RunResult
    name: str  # of the directory; empty when there is none
    entries: list[Entry]


def perform_here(asked: bytes, conditions: dict[str, str]) -> bytes:
    """Perform the run that is asked for (a ``RunSpec`` as JSON); returns what ``pack`` does.

    Waits for a run that goes on on this machine already. Raises ``InvalidInput`` when a run of this machine
    could not be compared with the others, and whatever ``Session`` raises.
    """
    spec = msgspec.json.decode(asked, type=RunSpec)
    differences = differing(conditions, conditions_now())
    if differences:
        raise InvalidInput(
            f"runs of the worker {socket.gethostname()} cannot be compared with the others: "
            + "; ".join(differences),
            hint="let workers of one kind and version take part",
        )
    with _alone(), tempfile.TemporaryDirectory(prefix="quicferry-worker-") as folder:
        result = Session([spec], Path(folder), draw=False).perform(spec, 0)
        return pack(result)


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the machine's lock."""
    with Path(tempfile.gettempdir(), LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pack(result: RunResult) -> bytes:
    """A result with its directory as bytes: a ``Parcel`` as MessagePack, compressed."""
    entries: list[Entry] = []
    name = ""
    if result.run_dir is not None:
        root = Path(result.run_dir)
        name = root.name
        for path in sorted(path for path in root.rglob("*") if path.is_dir() or path.is_file()):
            content = path.read_bytes() if path.is_file() else None
            entries.append(Entry(path.relative_to(root).as_posix(), path.stat().st_mode & 0o777, content))
    return zstandard.compress(msgspec.msgpack.encode(Parcel(result, name, entries)))


def unpack(data: bytes, store: Path) -> RunResult:
    """Put a run that came from elsewhere into a store; whole or not at all. Raises ``StoreError``."""
    parcel = msgspec.msgpack.decode(zstandard.decompress(data), type=Parcel)
    result = parcel.result
    if not parcel.name:
        return result
    final = store / _inside(parcel.name)
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    try:
        partial.mkdir(parents=True)
        for entry in parcel.entries:
            path = partial / _inside(entry.name)
            if entry.content is None:
                path.mkdir()
            else:
                path.write_bytes(entry.content)
            path.chmod(entry.mode)
        result.run_dir = str(final)
        write_json(RunPaths(partial).result, result)
        partial.rename(final)
    except OSError as error:
        raise StoreError(f"cannot write the run {final}: {error.strerror}", hint="make room") from error
    return result


def _inside(name: str) -> str:
    """The name, if it leads nowhere else. Raises ``StoreError``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise StoreError(f"a worker sent a file named {name!r}", hint="is it a worker of quicferry?")
    return name
