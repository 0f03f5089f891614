"""What a run may have left in a node of a network that is kept: takes it away, and reads what is there.

``tidied`` takes away what every run leaves behind by its nature: sockets that wait for their end, entries of
caches, filters of agents, files below ``/run``, mounts. ``state_of`` reads what a run may have changed.
A node whose state is not that of its deployment is not used for another run (``kept.KeptEmulator``).
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from quicferry.emulation.sandbox.namespaces import network_of
from quicferry.errors import CommandFailed
from quicferry.process import run

#: What ``ip`` tells of a node. Counters and life times are not among it.
_TELL = ("link show", "address show", "route show table all", "rule show", "neighbour show nud permanent")
#: Also of kernels with Multipath TCP; those without refuse these two, hence ``-force``.
_TELL_MPTCP = ("mptcp endpoint show", "mptcp limits show")
#: Caches by which a connection would know what a former one has learnt: neighbours that were asked for,
#: windows and round-trip times of TCP by address (ip-tcp_metrics(8)).
_FORGET = ("neighbour flush all", "tcp_metrics flush")
#: The same for routes: path MTUs that were told by ICMP.
_FLUSH = ("ipv4/route/flush", "ipv6/route/flush")
_SOCKETS = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet")


def state_of(pid: int, settings: tuple[str, ...]) -> tuple[str, ...]:
    """The state of a node that a run may have changed: its network, its mounts, its ``/run``, its sockets.

    ``pid`` holds the node's namespaces; ``settings`` are names below ``/proc/sys/net``. Two states are equal
    when nothing has changed. Raises ``CommandFailed`` and ``OSError`` when the node cannot be read.
    """
    return _state(pid, settings, _told(pid), _filters(pid))


def tidied(pid: int, before: frozenset[str], settings: tuple[str, ...]) -> tuple[str, ...]:
    """Take away what every run leaves in a node; returns its state then, as ``state_of``.

    Its processes have ended, the holder ``pid`` excepted. ``before`` are the mounts of the deployment. What
    cannot be taken away is in the state. Each program that is started here costs milliseconds of all nodes:
    what is not there is not taken away.
    """
    on_node = ["mnexec", "-a", str(pid)]
    if _open_sockets(pid):
        # sockets without a process: they wait (TIME-WAIT), or still want to tell a peer of their end
        run([*on_node, "ss", "--kill", "--all", "--tcp", "--numeric", "--no-header"], check=False)
    filters = _filters(pid)
    if filters:
        run([*on_node, "nft", "flush", "ruleset"], check=False)
        filters = _filters(pid)
    with network_of(pid):
        for name in _FLUSH:
            with contextlib.suppress(OSError):  # a kernel without IPv6
                Path("/proc/sys/net", name).write_text("1")
    for place in reversed(_mounts(pid)):
        if place not in before:
            run(["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "umount", "--lazy", place], check=False)
    for entry in _run_of(pid).iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return _state(pid, settings, _told(pid, _FORGET), filters)


def _state(pid: int, settings: tuple[str, ...], told: str, filters: str) -> tuple[str, ...]:
    with network_of(pid):
        values = [f"{name} {_setting(name)}" for name in settings]
    return (
        told,
        filters,
        *values,
        *(entry.name for entry in sorted(_run_of(pid).iterdir())),
        *_mounts(pid),
        *_open_sockets(pid),
    )


def _told(pid: int, first: tuple[str, ...] = ()) -> str:
    """What ``ip`` tells of a node, after these lines. Raises ``CommandFailed``."""
    lines = "\n".join((*first, *_TELL, *_TELL_MPTCP)) + "\n"
    told = run(["mnexec", "-a", str(pid), "ip", "-force", "-batch", "-"], stdin=lines, check=False).stdout
    if not told:
        raise CommandFailed(["ip", "-batch"], 1, "it told nothing of the node")
    return told


def _filters(pid: int) -> str:
    """The filters of a node; none on a machine without nftables."""
    return run(["mnexec", "-a", str(pid), "nft", "list", "ruleset"], check=False).stdout


def mounts_of(pid: int) -> frozenset[str]:
    """Where something is mounted in a node."""
    return frozenset(_mounts(pid))


def _mounts(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines]  # proc_pid_mountinfo(5): the mount point


def _run_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/root/run")


def _open_sockets(pid: int) -> list[str]:
    """The sockets of a node's network, a line each."""
    found = []
    for kind in _SOCKETS:
        with contextlib.suppress(OSError):  # a kernel without IPv6
            rows = Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
            found += [f"{kind} {' '.join(row.split()[1:4])}" for row in rows]
    return found


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys/net", name).read_text().strip()
    except OSError:
        return "not there"
