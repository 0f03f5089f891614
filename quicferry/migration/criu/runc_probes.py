"""The probes about containers: runc dumps and restores one here, and what the published procedure needs."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from quicferry.errors import Unsupported
from quicferry.migration.container.oci_container import find_runc, is_crun
from quicferry.migration.container.podman_container import find_podman
from quicferry.migration.criu.command import find_criu
from quicferry.migration.criu.page_server import TRACK_FEATURE
from quicferry.migration.criu.probes import NAMESPACES, has_feature
from quicferry.migration.criu.rsync import find_rsync
from quicferry.migration.criu.versions import criu_version, first_line, name_and_version
from quicferry.paths import CHECKOUT
from quicferry.probe import Probe
from quicferry.process import run

CHECK_S = 60.0
HINT = "docs/containers.md says what runc needs; the engine criu-cold moves the same process without it"


def checkpoint_and_restore() -> str:
    """Probe: a small OCI container is dumped and restored, and answers."""
    runc, criu = _runtime(), find_criu()
    return _tried("runc", f"{name_and_version(runc)} with criu {criu_version(criu)}")


def by_podman() -> str:
    """Probe: the same by Podman."""
    podman, runc, criu = find_podman(), _runtime(), find_criu()
    version = first_line(podman).removeprefix("podman version ")
    return _tried("podman", f"podman {version} with {name_and_version(runc)} and criu {criu_version(criu)}")


def _runtime() -> Path:
    """The runtime. Raises ``Unsupported`` where that is a crun that was built without CRIU."""
    runc = find_runc()
    if is_crun(runc) and "+CRIU" not in run([runc, "--version"], check=False).stdout:
        raise Unsupported(
            f"{name_and_version(runc)} is built without CRIU: it can neither dump nor restore a container",
            hint="that of Debian 12 is; Debian 13's has CRIU, and every runc: unset QUICFERRY_RUNC",
        )
    return runc


def without_memory() -> str:
    """Probe: the runtime can leave memory out of a dump and of a restore."""
    runc = find_runc()
    for step in ("checkpoint", "restore"):
        # an option that is not known is an error, also where only help is asked for
        done = run([runc, step, "--lazy-pages", "--help"], check=False, timeout_s=CHECK_S)
        if done.status != 0:
            raise Unsupported(
                f"{name_and_version(runc)} has no option --lazy-pages for {step}: it dumps and restores all "
                "memory at once",
                hint="runc-cold, published-cold and podman-cold do without; else unset QUICFERRY_RUNC",
            )
    return f"{name_and_version(runc)} has --lazy-pages"


def _tried(tool: str, words: str) -> str:
    """What became of the trial with that tool; ``words`` say which it is. Raises ``Unsupported``."""
    done = run(
        [*NAMESPACES, sys.executable, "-m", "quicferry.migration.criu.runc_trial", tool],
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


def pre_dump() -> str:
    """Probe: runc can dump the memory of a running container ahead, which takes soft-dirty tracking."""
    if not has_feature(TRACK_FEATURE):
        raise Unsupported(
            "this kernel does not track which pages were written (soft-dirty), which runc's --pre-dump needs",
            hint="the engines runc-pre-copy and runc-hybrid do without (leave out --memory-by criu); else a "
            "kernel with CONFIG_MEM_SOFT_DIRTY, such as that of the virtual machine (docs/vagrant.md)",
        )
    return "the kernel tracks written pages (soft-dirty)"


def copy_by_rsync() -> str:
    """Probe: rsync copies a file."""
    program = find_rsync()
    with TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        source.write_text("a file")
        run([program, "-a", source, target], timeout_s=CHECK_S)
        if target.read_text() != "a file":
            raise Unsupported("rsync did not copy a file")
    return run([program, "--version"], timeout_s=CHECK_S).stdout.splitlines()[0].strip()


PROBES = [
    Probe(
        name="oci",
        needed_for="the engines runc-… and published-…: the server's container moves",
        ask=checkpoint_and_restore,
    ),
    Probe(
        name="oci-pre-dump",
        needed_for="published-pre-copy, -hybrid, podman-pre-copy; runc-pre-copy, -hybrid by --memory-by criu",
        ask=pre_dump,
    ),
    Probe(
        name="oci-lazy-pages",
        needed_for="the engines runc-… and published-… but for -cold: memory crosses beside the dump",
        ask=without_memory,
    ),
    Probe(name="podman", needed_for="the engines podman-…: Podman moves the container", ask=by_podman),
    Probe(name="rsync", needed_for="the engines published-…: files cross as published", ask=copy_by_rsync),
]
