"""The probes of CRIU: ``criu`` really dumps and restores a child, by the judge that the set-up uses too;
the others have CRIU try a feature of the kernel.
"""

from __future__ import annotations

import sys

from quicferry.errors import Unsupported
from quicferry.migration.criu.command import INSTALL_HINT, LAZY_FEATURE, find_criu
from quicferry.migration.criu.versions import criu_version
from quicferry.paths import CHECKOUT, PROVISION
from quicferry.probe import Probe
from quicferry.process import run

JUDGE = PROVISION / "criu_check.py"
TRIAL = "quicferry.migration.criu.page_server_trial"
NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def dump_and_restore() -> str:
    """Probe: a child with an UDP socket is dumped, restored and answers."""
    program = find_criu()
    done = run([*NAMESPACES, sys.executable, "-S", "-E", JUDGE, program], check=False, timeout_s=60)
    if done.status != 0:
        words = (done.stdout or done.stderr).strip().splitlines() or ["no message"]
        raise Unsupported(f"criu {criu_version(program)}: {words[-1]}", hint=INSTALL_HINT)
    return f"criu {criu_version(program)} dumped and restored a child with an UDP socket"


def has_feature(feature: str) -> bool:
    """Whether ``criu check --feature`` finds a feature here; it tries the kernel, not its version."""
    return run([find_criu(), "check", "--feature", feature], check=False, timeout_s=60).status == 0


def lazy_pages() -> str:
    """Probe: memory can follow a restored process (userfaultfd with events)."""
    if not has_feature(LAZY_FEATURE):
        raise Unsupported(
            "CRIU finds no userfaultfd with events of fork, remap and unmap in this kernel",
            hint="a kernel with CONFIG_USERFAULTFD; criu-pre-copy works without, more slowly",
        )
    return "userfaultfd tells of faults, fork, remap and unmap"


def page_server() -> str:
    """Probe: a child is moved whose memory CRIU's page server sends after it."""
    done = run([*NAMESPACES, sys.executable, "-m", TRIAL], check=False, timeout_s=300, cwd=CHECKOUT)
    if done.status != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Unsupported(words[-1], hint="leave out --memory-by criu: the agents move memory themselves")
    return "a child's memory came after it, from CRIU's page server to CRIU's lazy-pages daemon"


def tracking() -> str:
    """Probe: the kernel tracks which pages were written. The agents do without: they compare memory."""
    if not has_feature("mem_dirty_track"):
        raise Unsupported(
            "this kernel does not track which pages were written (soft-dirty)",
            hint="leave out --memory-by criu: the agents compare memory with what they sent before",
        )
    return "the kernel tracks written pages (soft-dirty)"


PROBES = [
    Probe(name="criu", needed_for="the engines criu-…: the server's process moves", ask=dump_and_restore),
    Probe(
        name="criu-lazy-pages",
        needed_for="engines criu-post-copy and criu-hybrid; criu-pre-copy at its best",
        ask=lazy_pages,
    ),
    Probe(
        name="criu-page-server",
        needed_for="engines criu-post-copy and criu-hybrid with --memory-by criu",
        ask=page_server,
    ),
    Probe(
        name="criu-tracking",
        needed_for="engines criu-pre-copy and criu-hybrid with --memory-by criu",
        ask=tracking,
    ),
]
