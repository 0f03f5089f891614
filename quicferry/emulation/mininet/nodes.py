"""Mininet as this project uses it: its node, switch and link classes with what they need here.

What is different from stock Mininet, and why: interfaces are made by the link layer, so ``FerryLink``
only names them; a bridge lives in a network namespace of its own, as a host does; every host has a
private ``/run``; ``fixLimits`` is left out, as it changes settings of the whole machine.
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # Mininet imports distutils, which warns on every Python that still has it
    warnings.simplefilter("ignore", DeprecationWarning)
    from mininet.link import Link
    from mininet.log import setLogLevel
    from mininet.net import Mininet
    from mininet.node import Node, Switch

from quicferry.process import run


class FerryHost(Node):  # type: ignore[misc]  # Mininet has no types
    """An end system: namespaces of its own, and its own empty ``/run``."""

    def __init__(self, name: str, **params: Any) -> None:
        super().__init__(name, privateDirs=["/run"], **params)


class FerryEdge(FerryHost):
    """An end system that can hold the server."""


class FerryRouter(FerryHost):
    """A node that forwards: a Linux router with static routes."""


class FerryBridge(Switch):  # type: ignore[misc]  # Mininet has no types
    """A Linux bridge, alone in a network namespace: no spanning tree, so it forwards from the start."""

    def __init__(self, name: str, **params: Any) -> None:
        super().__init__(name, **{**params, "inNamespace": True})

    @classmethod
    def setup(cls) -> None:
        """Nothing: stock switches want /dev/net/tun, a bridge does not."""

    def start(self, controllers: object) -> None:
        """Join all interfaces. Raises ``CommandFailed``."""
        lines = [f"link add {self.name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
        for name in self.nameToIntf:
            lines += [f"link set {name} master {self.name}", f"link set {name} up"]
        ip_batch(self.pid, [*lines, f"link set {self.name} up"])


class FerryLink(Link):  # type: ignore[misc]  # Mininet has no types
    """A link whose two interfaces are there already: registers them with their nodes."""

    @classmethod
    def makeIntfPair(cls, *_: object, **__: object) -> None:  # noqa: N802 - Mininet's name
        """Nothing: the link layer has made the interfaces."""


def new_network() -> Any:
    """An empty ``mininet.net.Mininet`` without controller that leaves the machine's settings alone."""
    setLogLevel("warning")
    Mininet.inited = True  # skips fixLimits()
    return Mininet(controller=None, switch=FerryBridge, host=FerryHost, link=FerryLink, build=False)


def ip_batch(pid: int, lines: list[str]) -> None:
    """Run ``ip`` once with many commands in the namespaces of a node. Raises ``CommandFailed``."""
    if lines:
        run(["mnexec", "-a", str(pid), "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
