"""The interface of an emulation: deploy a topology, run programs in its hosts, end it.

``MininetEmulator`` (``mininet.emulator``) is the real one; ``FakeEmulator`` (``fake``) has the
same interface for tests and fails where it is told to.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from quicferry.errors import EmulationError
from quicferry.model import LinkReading, Topology
from quicferry.process import Popen, Result


class DeployPhase(enum.StrEnum):
    """The steps of a deployment, in their order."""

    NODES = "nodes"  # every node is a process with namespaces of its own
    LINKS = "links"  # every link exists, shaped as asked
    ADDRESSES = "addresses"  # interfaces have addresses and are up, bridges forward
    ROUTES = "routes"  # static routes and permanent neighbours are set
    READY = "ready"  # every interface has its carrier: the next packet will not be lost


Progress = Callable[[DeployPhase], None]


class Emulator(Protocol):
    """An emulated network. A context manager: at its end ``destroy`` is called.

    Methods raise ``InvalidInput`` for hosts and links that the topology does not have, and
    ``EmulationError`` when the emulation cannot do what it should.
    """

    @property
    def topology(self) -> Topology:
        """The deployed topology. Raises ``EmulationError`` when there is none."""

    def deploy(self, topology: Topology) -> None:
        """Build the network. When it raises, nothing of the network is left."""

    def spawn(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        cwd: Path | None = None,
    ) -> Popen[bytes]:
        """Start a program in a host's network and mount namespaces. Streams: None is /dev/null.

        The process id is that of the program itself; signals reach it directly. It is a session
        leader, and it ends with the emulation at the latest.
        """

    def execute(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        timeout_s: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a program in a host to its end. Raises ``CommandFailed`` as ``process.run`` does."""

    def pid(self, host: str) -> int:
        """A process that holds the host's namespaces open as long as the emulation lives."""

    def interface(self, host: str, link_name: str) -> str:
        """The name of the host's interface at a link."""

    def address(self, host: str) -> str:
        """The host's first address, without prefix length."""

    def link_readings(self) -> list[LinkReading]:
        """The readings of each direction of each link: the shape asked for and the one read back."""

    def calibrate(self) -> list[LinkReading]:
        """Measure every link; returns the readings with the measured values."""

    def begin(self) -> None:
        """Note that the load begins: outages of links and traces of their rates count from now."""

    def ended(self) -> EmulationError | None:
        """The error of a part of the emulation that has ended by itself; None while all is there."""

    def set_link(self, link_name: str, *, up: bool) -> None:
        """Cut a link, or mend it. A mended link is as it was, routes and neighbours too."""

    def hand_over(self, host: str, link_name: str) -> None:
        """Let a mobile host change to another of its links; it loses its address at the one before.

        The host's way to all others leads there from then on, and ``address`` is that of the link.
        """

    def destroy(self) -> None:
        """End every process and remove the network. May be called at any time and more than once."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
