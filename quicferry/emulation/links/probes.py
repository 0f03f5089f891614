"""Probes of what links need: network namespaces, veth pairs, netem, and a link that shapes.

What makes links is loaded by the probe that needs it: pyroute2 takes a quarter of a second, and every command
that knows the probes' names reads this module.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from quicferry import process
from quicferry.emulation.sandbox.namespaces import in_new_netns
from quicferry.errors import EmulationError, Unsupported
from quicferry.model import Link, Shape
from quicferry.probe import Probe

_ASKED_MS = 2.0
_MOST_MS = 50.0  # a very busy machine is slow, a broken link delivers nothing
_LIFETIME_S = "60"


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[int, int]]:
    """Two processes, each in a network namespace of its own; they end by themselves after a minute."""
    argv = ["unshare", "--net", "sh", "-c", f"echo; exec sleep {_LIFETIME_S}"]
    hosts = [process.spawn(argv, stdout=process.PIPE) for _ in range(2)]
    try:
        for host in hosts:
            assert host.stdout is not None
            host.stdout.readline()  # it is in its namespace now
        yield hosts[0].pid, hosts[1].pid
    finally:
        for host in hosts:
            process.stop(host)
            if host.stdout is not None:
                host.stdout.close()


def raise_interface(pid: int, interface: str) -> None:
    """Bring an interface up in the network namespace of a process."""
    process.run(["nsenter", "-t", str(pid), "-n", "ip", "link", "set", interface, "up"])


def probe_netns() -> str:
    """A network namespace can be made."""
    in_new_netns(lambda: None)
    return "network namespaces can be made"


def probe_veth() -> str:
    """A veth pair can be made."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def make() -> None:
        with IPRoute() as netlink:
            netlink.link("add", ifname="qfwp0", kind="veth", peer={"ifname": "qfwp1"})

    try:
        in_new_netns(make)
    except NetlinkError as error:
        raise Unsupported(f"no veth pair: {error}", hint="the kernel needs CONFIG_VETH") from error
    return "veth pairs can be made"


def probe_netem() -> str:
    """The kernel shapes by itself."""
    from quicferry.emulation.links import netem

    if not in_new_netns(netem.is_there):
        raise Unsupported(
            "this kernel has no netem",
            hint="not needed: the userspace cable takes its place; else load the module sch_netem",
        )
    return "the kernel has netem"


def probe_shaped_link() -> str:
    """A link with a delay is made, and a few frames measured."""
    from quicferry.emulation.links.calibrate import calibrate_link
    from quicferry.emulation.links.layer import LinkLayer, choose_backend

    backend = choose_backend("auto")

    def measure(hosts: tuple[int, int], folder: Path) -> float:
        shape = Shape(delay_ms=_ASKED_MS)
        layer = LinkLayer(backend, 0, folder)
        try:
            layer.add(Link(a="a", b="b", a_to_b=shape, b_to_a=shape), *hosts, "a-eth0", "b-eth0")
            layer.start()
            raise_interface(hosts[0], "a-eth0")
            raise_interface(hosts[1], "b-eth0")
            seen, _ = calibrate_link(layer.made[0], pings=20)
        finally:
            layer.stop(remove_interfaces=False)
        if seen.delay_median_ms is None:
            raise EmulationError("a shaped link delivers nothing", hint="see docs/links.md")
        return seen.delay_median_ms

    with tempfile.TemporaryDirectory(prefix="quicferry-probe-") as folder, two_hosts() as hosts:
        seen_ms = in_new_netns(lambda: measure(hosts, Path(folder)))
    if not _ASKED_MS <= seen_ms <= _MOST_MS:
        raise EmulationError(f"a link of {_ASKED_MS} ms takes {seen_ms:.3f} ms")
    return f"{backend}: a link of {_ASKED_MS} ms takes {seen_ms:.3f} ms"


PROBES = [
    Probe(name="netns", needed_for="every emulated network", ask=probe_netns),
    Probe(name="veth", needed_for="every emulated network", ask=probe_veth),
    Probe(name="shaped-link", needed_for="links with delay, rate or loss", ask=probe_shaped_link),
    Probe(name="netem", needed_for="links shaped by the kernel instead of the cable", ask=probe_netem),
]
