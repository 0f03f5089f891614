"""Groups of processes of cgroup v2, made for a run and removed with it (cgroups(7)).

A group is a directory in a tree that belongs to the whole machine: unlike everything else of a run it
does not go with the run's namespaces. So its name says which run made it and which tool began that run
(``ownership``), and three look after it: whoever made it, the tool when the run is over, and
``quicferry clean`` when the tool was killed.

The tree is reached by a mount that is attached nowhere (fsopen(2), fsmount(2)): no directory is needed
for it, nobody sees it, and it ends with its descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from quicferry.emulation.sandbox.ownership import RUN_TAG, TOOL_TAG, tool_is_gone, tool_tag
from quicferry.errors import Unsupported

PREFIX = "quicferry"
#: ``quicferry.<tool's PID>.<its start>.<its PID namespace>.<run>.<label>.<token>``
NAME = re.compile(rf"{PREFIX}\.(\d+)\.(\d+)\.(\d+)\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)\.[0-9a-f]+")
REMOVE_S = 1.0  # a group is populated until the last process in it is reaped
REMOVE_POLL_S = 0.01

# the same numbers on all architectures (include/uapi/asm-generic/unistd.h), flags of linux/mount.h
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_CMD_CREATE = 6

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextmanager
def _tree() -> Iterator[int]:
    """A descriptor of the root of the tree, as this process's cgroup namespace has it.

    Raises ``Unsupported``.
    """
    try:
        system = _call(_FSOPEN, b"cgroup2", _CLOEXEC)
        try:
            _call(_FSCONFIG, system, _CMD_CREATE, None, None, 0)
            mounted = _call(_FSMOUNT, system, _CLOEXEC, 0)
        finally:
            os.close(system)
    except OSError as error:
        raise Unsupported(
            f"cgroup v2 cannot be mounted: {error.strerror}",
            hint="it takes root and a kernel with cgroup v2; in a container, one that is privileged",
        ) from error
    try:
        yield mounted
    finally:
        os.close(mounted)


def own_group(pid: int | str = "self") -> PurePosixPath:
    """The path of a process's group, as this process's cgroup namespace has it; "/" when it is outside.

    Raises ``OSError`` when there is no such process.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return PurePosixPath(path if not path.startswith("/..") else "/")
    return PurePosixPath("/")


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)[:64]


def make(label: str) -> PurePosixPath:
    """Make an empty group below this process's own, named after its run and ``label``; returns its path.

    Raises ``Unsupported`` where that cannot be done.
    """
    tool = os.environ.get(TOOL_TAG) or tool_tag()
    run = _word(os.environ.get(RUN_TAG, ""))
    name = ".".join((PREFIX, *tool.split(":"), run, _word(label), secrets.token_hex(4)))
    path = own_group() / name
    with _tree() as root:
        try:
            os.mkdir(_inside(path), 0o755, dir_fd=root)
        except OSError as error:
            raise Unsupported(
                f"the group {path} of cgroup v2 cannot be made: {error.strerror}",
                hint="its tree must be writable for root",
            ) from error
    return path


def open_procs(path: PurePosixPath) -> int:
    """A descriptor: a process that writes "0" to it joins the group. Raises ``Unsupported``, ``OSError``."""
    with _tree() as root:
        return os.open(f"{_inside(path)}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)


def remove(path: PurePosixPath, within_s: float = REMOVE_S) -> bool:
    """Remove a group and those in it, once their processes have ended; whether it is gone.

    Only groups whose name is of ``make`` are touched.
    """
    if NAME.fullmatch(path.name) is None:
        return False
    try:
        with _tree() as root:
            return _remove_in(root, path, within_s)
    except (OSError, Unsupported):
        return False


def _remove_in(root: int, path: PurePosixPath, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            _remove_below(root, _inside(path))
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return False
            time.sleep(REMOVE_POLL_S)


def _remove_below(root: int, path: str) -> None:
    for name in _groups_in(root, path):
        _remove_below(root, f"{path}/{name}")
    os.rmdir(path, dir_fd=root)


def _groups_in(root: int, path: str) -> list[str]:
    """The names of the groups in a group."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        with os.scandir(descriptor) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(descriptor)


def _inside(path: PurePosixPath) -> str:
    return str(path.relative_to("/")) if path != PurePosixPath("/") else "."


def _tool_of(name: str) -> str:
    return ":".join(name.split(".")[1:4])


def remove_of_run(run_id: str) -> list[str]:
    """Remove the groups of a run that *this* tool began and that is over; the names of those still there."""
    run, tool = _word(run_id), tool_tag()
    return _remove_all(lambda name: _tool_of(name) == tool and name.split(".")[4] == run)


def remove_orphans(*, dry_run: bool = False) -> tuple[list[str], list[str]]:
    """Remove the groups of runs whose tool is gone: what is removed (or would be), and what could not be."""
    if dry_run:
        return [name for name in _names() if tool_is_gone(_tool_of(name))], []
    before = [name for name in _names() if tool_is_gone(_tool_of(name))]
    left = _remove_all(lambda name: name in before) if before else []
    return [name for name in before if name not in left], left


def _names() -> list[str]:
    """Groups of any run that lie in this process's own group."""
    with contextlib.suppress(OSError, Unsupported), _tree() as root:
        return [name for name in _groups_in(root, _inside(own_group())) if NAME.fullmatch(name)]
    return []


def _remove_all(wanted: Callable[[str], bool]) -> list[str]:
    """Remove the groups of ours whose name is wanted; the names of those that could not be removed."""
    return [name for name in _names() if wanted(name) and not remove(own_group() / name)]
