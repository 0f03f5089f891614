"""Remembers what this machine was found able to do, so that one run after another need not try it again.

A probe does the thing it asks about: all of a run's probes together take longer than the run's own start.
What one has answered with yes stays true as long as the machine runs and nothing that it depends on changes.
So an answer is kept for ``HOLDS_S`` seconds, under a digest of the boot, kernel, namespaces, environment and
programs, and only if it was yes. A run that fails makes all of them be asked again. ``quicferry doctor``
always asks.

``QUICFERRY_ASK=always`` in the environment makes everybody ask always.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from quicferry.experiment.preflight import check
from quicferry.paths import CHECKOUT
from quicferry.process import find_program

VARIABLE = "QUICFERRY_ASK"
ALWAYS = "always"
HOLDS_S = 3600.0
#: What probes and runs start: a program that is installed, removed or replaced makes them be asked again.
PROGRAMS = (
    *(
        "criu",
        "runc",
        "podman",
        "dumpcap",
        "tcpdump",
        "tshark",
        "ip",
        "nft",
        "ss",
        "tc",
        "mnexec",
        "ethtool",
        "ping",
    ),
    *("named", "rsync", "setpriv", "unshare", "nsenter", "mount", "bash", "ifconfig", "which"),
)
_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD")  # and all of this project's own
_NAMESPACES = ("user", "mnt", "net", "pid", "cgroup")


class _Known(msgspec.Struct):
    """The file: the digest of the conditions, and when each probe said yes (CLOCK_BOOTTIME, seconds)."""

    conditions: str
    said_yes_s: dict[str, float]


def check_unless_known(names: Iterable[str], file: Path | None = None) -> None:
    """As ``preflight.check``, but for what this machine was found able to do lately.

    Raises ``Unsupported`` for the first probe that says no.
    """
    path = file or _file()
    asked = list(names)
    now_s, conditions = time.clock_gettime(time.CLOCK_BOOTTIME), _conditions()
    known = _read(path, conditions)
    missing = [name for name in asked if not 0 <= now_s - known.said_yes_s.get(name, -HOLDS_S - 1) <= HOLDS_S]
    if os.environ.get(VARIABLE) == ALWAYS:
        missing = asked
    if not missing:
        return
    check(missing)
    known.said_yes_s |= dict.fromkeys(missing, now_s)
    _write(path, known)


def forget(file: Path | None = None) -> None:
    """Let all be asked again: something did not go as the answers promised."""
    with suppress(OSError):
        (file or _file()).unlink(missing_ok=True)


def _file() -> Path:
    return CHECKOUT / ".cache" / "known-answers.json"


def _read(path: Path, conditions: str) -> _Known:
    with suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(path.read_bytes(), type=_Known)
        if known.conditions == conditions:
            return known
    return _Known(conditions, {})


def _write(path: Path, known: _Known) -> None:
    """Write it if that can be done: who cannot, asks again the next time."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(msgspec.json.encode(known))
        fresh.replace(path)


def _conditions() -> str:
    """A digest of all that an answer depends on, as far as it can be seen at once."""
    words: list[Sequence[object]] = [platform.uname(), sorted(os.sched_getaffinity(0))]
    own = [name for name in os.environ if name.startswith("QUICFERRY_")]
    words.append([(name, os.environ.get(name)) for name in (*_VARIABLES, *sorted(own))])
    for name in _NAMESPACES:
        with suppress(OSError):
            words.append([name, Path(f"/proc/self/ns/{name}").readlink()])
    for fact in ("/proc/sys/kernel/random/boot_id", "/proc/self/status", "/proc/modules"):
        with suppress(OSError):
            lines = Path(fact).read_text().splitlines()
            words.append([line for line in lines if not fact.endswith("status") or line.startswith("Cap")])
    for place in (CHECKOUT / ".cache" / "criu" / "bin" / "criu", *map(find_program, PROGRAMS)):
        words.append([place])
        with suppress(OSError, AttributeError):  # not installed: that is a fact, too
            status = place.stat()  # type: ignore[union-attr]
            words.append([status.st_ino, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(repr(words).encode()).hexdigest()
