"""The probe ``criu``: a child is really dumped and restored, by the judge that the set-up uses too."""

from __future__ import annotations

import sys
from pathlib import Path

from quicferry.errors import Unsupported
from quicferry.migration.criu import CHECKOUT, INSTALL_HINT, find_criu
from quicferry.probe import Probe
from quicferry.process import run

JUDGE = CHECKOUT / "provision" / "criu_check.py"
NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def version_of(program: Path) -> str:
    """What ``criu --version`` calls itself, for example ``4.2.1``."""
    first = run([program, "--version"], check=False).stdout.splitlines()[:1]
    return first[0].removeprefix("Version: ") if first else "of unknown version"


def dump_and_restore() -> str:
    """Dump and restore a child with an UDP socket in namespaces of its own, and ask it for an answer."""
    program = find_criu()
    done = run([*NAMESPACES, sys.executable, "-S", "-E", JUDGE, program], check=False, timeout_s=60)
    if done.status != 0:
        words = (done.stdout or done.stderr).strip().splitlines() or ["no message"]
        raise Unsupported(f"criu {version_of(program)}: {words[-1]}", hint=INSTALL_HINT)
    return f"criu {version_of(program)} dumped and restored a child with an UDP socket"


PROBES = [Probe(name="criu", needed_for="engine criu-cold: the server's process moves", ask=dump_and_restore)]
