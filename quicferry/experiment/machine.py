"""Says on what a run is made: the machine, and the source code that plays in it."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from pathlib import Path

import psutil

from quicferry.paths import CHECKOUT

#: What plays in a run. The analysis is left out: it can be done again, with any version.
_PLAYING = ("apps", "baselines", "topologies", "quicferry", "session")
_NOT_PLAYING = (
    "quicferry/analysis",
    "quicferry/inspection",
    "quicferry/capture/quic",
    "quicferry/capture/tls.py",
)


@functools.cache
def machine() -> dict[str, str]:
    """The processor, its number of cores and the memory of this machine, in words."""
    return {
        "cpu": _cpu_name(),
        "cores": str(psutil.cpu_count() or 1),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB",
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


@functools.cache
def source_digest() -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all source files that play in a run."""
    digest = hashlib.sha256()
    for folder in _PLAYING:
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            name = path.relative_to(CHECKOUT).as_posix()
            if not name.startswith(_NOT_PLAYING):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
