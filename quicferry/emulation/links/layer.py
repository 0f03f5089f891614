"""The link layer: makes the links of a topology and shapes them.

A link whose two directions do nothing is one veth pair between its two hosts. Any other link is two
veth pairs: the outer ends are the hosts' interfaces, the inner ends (*wire ends*) stay in the
namespace that made them, and there delay, jitter, rate, loss and queue are applied. A capture at a
host so sees each packet when the host sent or received it.

Two backends shape: ``netem`` where the kernel has it, else ``cable``, a process of this project
(``quicferry.emulation.links.cable``). What was asked of either is read back with ``LinkLayer.readings``.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from quicferry.emulation.links import netem
from quicferry.emulation.links.cable.client import CableProcess
from quicferry.emulation.links.cable.config import CableLink, CableStats, DirectionCounters
from quicferry.emulation.links.cable.frames import open_wire_end
from quicferry.emulation.sandbox.namespaces import in_new_netns
from quicferry.errors import EmulationError, InvalidInput, Unsupported
from quicferry.fork_server import ForkServer
from quicferry.model import Link, LinkReading, Shape

BACKENDS = ("netem", "cable")
WIRE_TAG = "qfw"  # interfaces with names of this beginning were made here
LATE_P99_LIMIT_US = 1_000.0
"""A run whose cable was later than this at the 99th percentile deserves a warning."""
GSO_MAX_SEGMENTS = 65_535
_LONGEST_TRAIN_US = 250.0

T = TypeVar("T")
ReadBack = dict[str, str | int | float | None]


def choose_backend(wanted: str = "auto", links: Iterable[Link] = ()) -> str:
    """``netem`` or ``cable``: as wanted, or with ``auto`` the best that this machine has for these links.

    Raises ``InvalidInput`` for any other word and ``Unsupported`` when the machine cannot do it.
    """
    if wanted not in ("auto", *BACKENDS):
        raise InvalidInput(f"there is no link backend {wanted!r}", hint="use auto, netem or cable")
    try:
        beyond = any(netem.why_not(shape) for link in links for shape in (link.a_to_b, link.b_to_a))
        if wanted != "cable" and not (wanted == "auto" and beyond) and in_new_netns(netem.is_there):
            return "netem"
        if wanted == "netem":
            raise Unsupported(
                "this kernel has no netem",
                hint="load the module sch_netem, or use the link backend cable (auto does)",
            )
        in_new_netns(lambda: open_wire_end("lo").close())
    except PermissionError as error:
        raise Unsupported(
            "shaped links need to be root (CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW)",
            hint="run as root on a machine of your own",
        ) from error
    return "cable"


def train_segments(shape: Shape, mtu_bytes: int) -> int:
    """How many packets a host may hand over as one frame of segmentation offload (gso_max_segs).

    A frame is shaped as one, so it must not be long on the wire compared with what is measured:
    at most 0.25 ms, and a tenth of the queue. Loss, jitter and the like are per packet: there it is one.
    """
    if shape.by_packet:
        return 1
    allowed = GSO_MAX_SEGMENTS
    if shape.rate_mbps is not None:
        allowed = int(_LONGEST_TRAIN_US * shape.rate_mbps / (8 * mtu_bytes))
    if shape.queue_packets is not None or shape.rate_mbps is not None:
        allowed = min(allowed, shape.queue_limit(mtu_bytes) // 10)
    return max(1, allowed)


#: Numbers of interfaces, no two of them equal. The kernel takes a veth interface that has the number of its
#: peer, as the first ones of two namespaces have, for no veth, and may let it wait a second for its carrier
#: (linkwatch_urgent_event in net/core/link_watch.c).
FIRST_INDEX = 1000
GONE_S = 5.0  # for the kernel to take down a network that was here before
GONE_POLL_S = 0.005


class MadeLink(NamedTuple):
    """A link and where its ends are: process ids whose network namespaces hold the interfaces."""

    link: Link
    backend: str  # "plain", "netem" or "cable"
    a_pid: int
    b_pid: int
    a_interface: str
    b_interface: str
    a_wire: str  # empty for a plain link
    b_wire: str


class LinkLayer:
    """All links of one emulated network.

    ``backend`` is what ``choose_backend`` answered; ``seed`` makes loss and jitter of the cable
    reproducible; ``work_dir`` exists and gets the cable's files. Use: ``add`` each link, ``start``,
    and ``stop`` at the end. Wire ends are made in the network namespace of the caller's thread.
    May be used from a thread that runs an event loop. ``forks`` starts the cable if it has loaded it.
    """

    def __init__(self, backend: str, seed: int, work_dir: Path, *, forks: ForkServer | None = None) -> None:
        if backend not in BACKENDS:
            raise InvalidInput(f"there is no link backend {backend!r}", hint="use choose_backend()")
        self.backend = backend
        self._seed = seed
        self._work_dir = work_dir
        self._forks = forks
        self._made: list[MadeLink] = []
        self._indices: dict[str, int] = {}
        self._cable: CableProcess | None = None
        self._last: list[LinkReading] | None = None
        self._stopped = False
        # pyroute2's synchronous calls run an event loop of their own, which the caller's may forbid.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="links")
        self._netlink: IPRoute | None = None

    @property
    def made(self) -> tuple[MadeLink, ...]:
        """The links made so far."""
        return tuple(self._made)

    def add(self, link: Link, a_pid: int, b_pid: int, a_interface: str, b_interface: str) -> None:
        """Make a link between the network namespaces of two processes and name its ends.

        The hosts' interfaces get the link's MTU and are left down and without address. Names are at
        most 15 characters. Raises ``EmulationError`` when the kernel refuses.
        """
        if self._cable is not None:
            raise EmulationError("a link cannot be added to links that have been started")
        for name in (a_interface, b_interface):
            if not 1 <= len(name.encode()) <= 15:
                raise InvalidInput(f"bad interface name {name!r}", hint="use at most 15 characters")
        number = len(self._made)
        if number == 0:
            self._on_netlink(_until_wires_are_gone)
        wires = ("", "") if link.is_plain else (f"{WIRE_TAG}{number}a", f"{WIRE_TAG}{number}b")
        backend = "plain" if link.is_plain else self.backend
        made = MadeLink(link, backend, a_pid, b_pid, a_interface, b_interface, *wires)
        self._on_netlink(lambda netlink: self._make(netlink, made))
        self._made.append(made)

    def start(self) -> None:
        """Let the links carry packets. Raises ``EmulationError`` or ``Unsupported``."""
        self._on_netlink(self._raise_wires)
        for made in self._made if self.backend == "netem" else ():
            for shape in (made.link.a_to_b, made.link.b_to_a):
                if (what := netem.why_not(shape)) is not None:
                    raise Unsupported(
                        f"link {made.link.name}: netem cannot {what}", hint="use the link backend cable"
                    )
        shaped = [made for made in self._made if made.backend != "plain"]
        if self.backend == "netem":
            self._on_netlink(lambda netlink: self._apply_netem(netlink, shaped))
        elif shaped:
            cable = CableProcess(
                tuple(_cable_link(made) for made in shaped),
                seed=self._seed,
                work_dir=self._work_dir,
                forks=self._forks,
            )
            cable.start()
            self._cable = cable

    def begin(self) -> None:
        """The load begins: outages and traces of rates count from now."""
        if self._cable is not None:
            self._cable.begin()

    def ended(self) -> EmulationError | None:
        """The error of a cable that has ended by itself; None while it lives, and where there is none."""
        return self._cable.ended() if self._cable is not None else None

    def cable_stats(self) -> CableStats | None:
        """The cable's own counters, among them its lateness; None when no cable runs."""
        return self._cable.stats() if self._cable is not None else None

    def readings(self) -> list[LinkReading]:
        """What was asked of each direction of each link and what is there, with counters.

        Two readings per link, ``a`` to ``b`` first. After ``stop``: the last ones.
        """
        if self._last is not None:
            return self._last
        stats = self.cable_stats()
        readings = []
        for made in self._made:
            there: ReadBack = {}
            back: ReadBack = {}
            if made.backend == "cable" and stats is not None:
                counters = stats.links[made.link.name]
                there = _cable_read_back(made.link.a_to_b, made.link, counters.left_to_right, stats)
                back = _cable_read_back(made.link.b_to_a, made.link, counters.right_to_left, stats)
            elif made.backend == "netem":
                there = self._netem_read_back(made.b_wire)
                back = self._netem_read_back(made.a_wire)
            readings += [
                _reading(made, made.link.a, made.link.b, made.link.a_to_b, there),
                _reading(made, made.link.b, made.link.a, made.link.b_to_a, back),
            ]
        return readings

    def halt(self) -> None:
        """Let no link carry a packet: what is on its way is lost. ``start_again`` begins anew.

        Plain links have nothing that could be on its way. The cable's last counters are in its files.
        """
        if self._cable is not None:
            self._cable.ask_to_end()

    def settle(self) -> None:
        """Wait for the end of what ``halt`` has ended."""
        if self._cable is not None:
            self._cable.stop()
            self._cable = None

    def start_again(self, seed: int, work_dir: Path) -> None:
        """Let the links carry packets as if they had just been made. Raises as ``start`` does.

        ``seed`` and ``work_dir`` are as in ``LinkLayer``.
        """
        self.settle()
        self._seed, self._work_dir, self._last = seed, work_dir, None
        if self.backend == "netem":
            # a new qdisc has no packet in its queue and no count of any
            self._on_netlink(self._remove_netem)
        self.start()

    def stop(self, *, remove_interfaces: bool = True) -> None:
        """End the cable and remove the interfaces of shaped links.

        Without ``remove_interfaces`` they go with their namespaces, which is faster by far. Doing it
        twice is harmless.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._last is None:
            with contextlib.suppress(EmulationError):  # a cable that died has nothing to say any more
                self._last = self.readings()
        if self._cable is not None:
            self._cable.stop()
        if remove_interfaces:
            self._on_netlink(self._remove_wires)
        self._on_netlink(lambda netlink: netlink.close())
        self._netlink = None
        self._thread.shutdown()

    def _on_netlink(self, work: Callable[[IPRoute], T]) -> T:
        def call() -> T:
            if self._netlink is None:
                self._netlink = IPRoute()
            return work(self._netlink)

        try:
            return self._thread.submit(call).result()
        except NetlinkError as error:
            hint = "shaped links need to be root" if error.code == errno.EPERM else None
            raise EmulationError(f"the kernel refused a link: {error}", hint=hint) from error

    def _make(self, netlink: IPRoute, made: MadeLink) -> None:
        link = made.link
        first = FIRST_INDEX + 4 * len(self._made)
        if made.backend == "plain":
            netlink.link(
                "add",
                kind="veth",
                ifname=made.a_interface,
                index=first,
                net_ns_pid=made.a_pid,
                mtu=link.mtu_bytes,
                peer={
                    "ifname": made.b_interface,
                    "index": first + 1,
                    "net_ns_pid": made.b_pid,
                    "mtu": link.mtu_bytes,
                },
            )
            return
        ends = (
            (made.a_wire, made.a_interface, made.a_pid, link.a_to_b),
            (made.b_wire, made.b_interface, made.b_pid, link.b_to_a),
        )
        for index, (wire, interface, pid, shape) in zip((first, first + 2), ends, strict=True):
            netlink.link(
                "add",
                kind="veth",
                ifname=wire,
                index=index,
                mtu=link.mtu_bytes,
                peer={
                    "ifname": interface,
                    "index": index + 1,
                    "net_ns_pid": pid,
                    "mtu": link.mtu_bytes,
                    "gso_max_segs": train_segments(shape, link.mtu_bytes),
                },
            )
            self._indices[wire] = index

    def _raise_wires(self, netlink: IPRoute) -> None:
        for wire, index in self._indices.items():
            # A wire end is not a host: it must not send neighbour discovery of its own into the link.
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{wire}/disable_ipv6").write_text("1")
            netlink.link("set", index=index, arp=False, state="up")

    def _apply_netem(self, netlink: IPRoute, shaped: list[MadeLink]) -> None:
        for made in shaped:
            a_wire, b_wire = self._indices[made.a_wire], self._indices[made.b_wire]
            for index, shape in ((b_wire, made.link.a_to_b), (a_wire, made.link.b_to_a)):
                netem.shape_interface(index, shape, made.link.mtu_bytes)
                wrong = netem.differences(shape, made.link.mtu_bytes, netem.read_back(netlink, index))
                if wrong:
                    raise EmulationError(f"link {made.link.name}: {'; '.join(wrong)}")
            netem.redirect(netlink, a_wire, b_wire)
            netem.redirect(netlink, b_wire, a_wire)

    def _remove_netem(self, netlink: IPRoute) -> None:
        for index in self._indices.values():
            netlink.tc("del", index=index, root=True)
            netlink.tc("del", "ingress", index)

    def _netem_read_back(self, wire: str) -> ReadBack:
        return self._on_netlink(lambda netlink: netem.read_back(netlink, self._indices[wire]))

    def _remove_wires(self, netlink: IPRoute) -> None:
        for index in self._indices.values():
            try:
                netlink.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:  # it went with the namespace of its host
                    raise
        self._indices.clear()


def _until_wires_are_gone(netlink: IPRoute) -> None:
    """Wait for the wires of a network that was here before: they go some time after its namespaces.

    Ones that stay are not ours to remove; the kernel then refuses those of the same name.
    """
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        names = [str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()]
        if not any(name.startswith(WIRE_TAG) for name in names):
            return
        time.sleep(GONE_POLL_S)


def warnings_about(readings: list[LinkReading]) -> list[str]:
    """Warnings about the links of a run: late frames, frames that the cable lost, no SCHED_FIFO."""
    found = []
    for reading in readings:
        where = f"{reading.sender} to {reading.receiver}"
        late_us, overrun = reading.read_back.get("late_p99_us"), reading.read_back.get("overrun_frames")
        if isinstance(late_us, int | float) and late_us > LATE_P99_LIMIT_US:
            found.append(f"{where}: 1 % of the packets were more than {late_us / 1e3:.1f} ms late")
        if isinstance(overrun, int) and overrun > 0:
            found.append(f"{where}: {overrun} frames were lost because the cable was too slow")
    if any(reading.read_back.get("scheduler") == "other" for reading in readings):
        found.append("the cable ran without SCHED_FIFO: expect packets that are late by milliseconds")
    return found


def _cable_link(made: MadeLink) -> CableLink:
    return CableLink(
        name=made.link.name,
        left_interface=made.a_wire,
        right_interface=made.b_wire,
        left_to_right=made.link.a_to_b,
        right_to_left=made.link.b_to_a,
        mtu_bytes=made.link.mtu_bytes,
    )


def _cable_read_back(shape: Shape, link: Link, counters: DirectionCounters, stats: CableStats) -> ReadBack:
    read_back: ReadBack = {
        "scheduler": stats.scheduler,
        "queue_limit_packets": shape.queue_limit(link.mtu_bytes),
        "train_segments": train_segments(shape, link.mtu_bytes),
    }
    for name in counters.__struct_fields__:
        read_back[name] = getattr(counters, name)
    return read_back


def _reading(made: MadeLink, sender: str, receiver: str, asked: Shape, read_back: ReadBack) -> LinkReading:
    return LinkReading(
        link=made.link.name,
        sender=sender,
        receiver=receiver,
        backend=made.backend,
        asked=asked,
        read_back=read_back,
    )
