"""Mininet as this project uses it: its node, switch and link classes with what they need here.

What is different from stock Mininet, and why: interfaces are made by the link layer, so ``FerryLink``
only names them; a bridge lives in a network namespace of its own, as a host does; every host has a
private ``/run``; ``fixLimits`` is left out, as it changes settings of the whole machine.

A node of stock Mininet is a shell, and making it waits for the shell's prompt. Here its namespaces are
held by a process that sleeps; a hundred of them start side by side, and ``until_made`` waits for one. The
shell comes with the first command that is given to the node (``node.cmd``), if one ever is.
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # Mininet imports distutils, which warns on every Python that still has it
    warnings.simplefilter("ignore", DeprecationWarning)
    from mininet.link import Intf, Link
    from mininet.log import setLogLevel
    from mininet.net import Mininet
    from mininet.node import Node, Switch

from quicferry.errors import EmulationError
from quicferry.process import PIPE, Popen, how_ended, run, spawn

#: Mounts what is to be private, says so, and holds the namespaces.
HOLD = (
    'for place; do mount -n -t tmpfs tmpfs "$place" || exit; done; echo made; exec sleep infinity >/dev/null'
)


class HeldNode(Node):  # type: ignore[misc]  # Mininet has no types
    """A node whose namespaces a sleeping process holds; see the module."""

    _holder: Popen[bytes] | None = None

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802 - Mininet's name
        """Start the process that holds the namespaces. Nothing waits for it."""
        self._holder = spawn(
            ["mnexec", "-n", "sh", "-c", HOLD, f"mininet:{self.name}", *self.privateDirs], stdout=PIPE
        )
        self.pid = self._holder.pid

    def mountPrivateDirs(self) -> None:  # noqa: N802 - Mininet's name
        """Nothing: the holder mounts them."""

    def unmountPrivateDirs(self) -> None:  # noqa: N802 - Mininet's name
        """Nothing: they go with the holder's namespace."""

    def until_made(self) -> None:
        """Wait until the namespaces are there. Raises ``EmulationError`` when they cannot be made."""
        assert self._holder is not None and self._holder.stdout is not None
        with self._holder.stdout as said:
            made = said.readline()
        if not made:
            raise EmulationError(
                f"node {self.name} could not be made: mnexec ended with status {self._holder.wait()}"
            )

    def ended(self) -> str | None:
        """How the process that holds the namespaces has ended; None while it lives."""
        status = self._holder.poll() if self._holder is not None else None
        return how_ended(status) if status is not None else None

    def _need_shell(self) -> None:
        if self.shell is None:
            held, self.inNamespace = self.pid, False
            super().startShell(f"-cda{held}")
            self.inNamespace, self.pid = True, held

    def cmd(self, *args: Any, **kwargs: Any) -> Any:
        """As stock Mininet, in a shell that is started for the first command."""
        self._need_shell()
        return super().cmd(*args, **kwargs)

    def sendCmd(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - Mininet's name
        """As stock Mininet, in a shell that is started for the first command."""
        self._need_shell()
        return super().sendCmd(*args, **kwargs)

    def cleanup(self) -> None:
        """Collect the shell and the holder."""
        super().cleanup()
        if self._holder is not None:
            if self._holder.poll() is None:
                self._holder.kill()
            self._holder.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            self._holder = None


class FerryHost(HeldNode):
    """An end system: namespaces of its own, and its own empty ``/run``."""

    def __init__(self, name: str, **params: Any) -> None:
        super().__init__(name, privateDirs=["/run"], **params)


class FerryEdge(FerryHost):
    """An end system that can hold the server."""


class FerryRouter(FerryHost):
    """A node that forwards: a Linux router with static routes."""


class FerryBridge(HeldNode, Switch):  # type: ignore[misc]  # Mininet has no types
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


class FerryInterface(Intf):  # type: ignore[misc]  # Mininet has no types
    """An interface that the emulator sets up itself: nothing is asked of a shell."""

    def config(self, **_: object) -> dict[str, Any]:
        """Nothing: addresses are set for all nodes at once, later."""
        return {}


class FerryLink(Link):  # type: ignore[misc]  # Mininet has no types
    """A link whose two interfaces are there already: registers them with their nodes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "intf": FerryInterface})

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
