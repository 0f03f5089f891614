"""The probe ``oci``: runc really moves a container; and the versions of what moves one, for the record."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from quicferry.errors import Unsupported
from quicferry.migration.container.oci_bundle import find_runc
from quicferry.migration.criu.command import find_criu
from quicferry.migration.criu.probes import NAMESPACES, version_of
from quicferry.paths import CHECKOUT
from quicferry.probe import Probe
from quicferry.process import run

CHECK_S = 60.0
HINT = "docs/oci.md says what runc needs; the engine criu-cold moves the same process without it"


def runc_version(program: Path) -> str:
    """What ``runc --version`` calls itself, for example ``1.1.5+ds1``."""
    first = run([program, "--version"], check=False).stdout.splitlines()[:1]
    return first[0].removeprefix("runc version ") if first else "of unknown version"


def engine_versions(engine: str) -> dict[str, str]:
    """The versions of the programs that move the server's process with that engine."""
    versions = {}
    if engine.startswith(("criu-", "runc-")):
        versions["criu"] = version_of(find_criu())
    if engine.startswith("runc-"):
        versions["runc"] = runc_version(find_runc())
    return versions


def checkpoint_and_restore() -> str:
    """Move a small OCI container from itself to itself."""
    runc, criu = find_runc(), find_criu()
    words = f"runc {runc_version(runc)} with criu {version_of(criu)}"
    done = run(
        [*NAMESPACES, sys.executable, "-m", "quicferry.migration.criu.oci_check"],
        check=False,
        timeout_s=CHECK_S,
        cwd=CHECKOUT,
    )
    try:
        told = msgspec.json.decode(done.stdout, type=dict[str, str | None])
    except msgspec.DecodeError:
        last = done.stderr.strip().splitlines()[-1:]
        raise Unsupported(f"{words}: {last[0] if last else 'no message'}", hint=HINT) from None
    if told.get("error"):
        raise Unsupported(f"{words}: {told['error']}", hint=told.get("hint") or HINT)
    return f"{words} dumped and restored a container with an UDP socket"


PROBES = [
    Probe(
        name="oci",
        needed_for="the engine runc-cold: the server's container moves",
        ask=checkpoint_and_restore,
    )
]
