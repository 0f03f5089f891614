"""The probe ``oci``: runc dumps and restores a container here."""

from __future__ import annotations

import sys

import msgspec

from quicferry.errors import Unsupported
from quicferry.migration.container.oci_container import find_runc
from quicferry.migration.criu.command import find_criu
from quicferry.migration.criu.probes import NAMESPACES
from quicferry.migration.criu.versions import criu_version, runc_version
from quicferry.paths import CHECKOUT
from quicferry.probe import Probe
from quicferry.process import run

CHECK_S = 60.0
HINT = "docs/oci.md says what runc needs; the engine criu-cold moves the same process without it"


def checkpoint_and_restore() -> str:
    """Probe: a small OCI container is dumped and restored, and answers."""
    runc, criu = find_runc(), find_criu()
    words = f"runc {runc_version(runc)} with criu {criu_version(criu)}"
    done = run(
        [*NAMESPACES, sys.executable, "-m", "quicferry.migration.criu.runc_trial"],
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
