"""The interface of a migration engine, what it is given, and the registry of engines.

An engine knows how a server becomes bytes and how bytes become a server. It knows nothing of the
network: the node agents carry the chunks, keep the deadlines and decide between commit and
rollback. One object of the same class works on either side:

=====================  ==========================================================================
source agent           ``prepare_source`` → ``checkpoint`` → ``give_up_source`` | ``resume_source``
destination agent      ``prepare_destination`` → ``restore`` | ``abandon_destination``
=====================  ==========================================================================

The engine emits the phases ``migration.checkpoint`` and ``migration.restore`` (it alone knows when
the state is taken and when the server is back); the agents emit all other phases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.migration.control import ControlClient
from quicferry.migration.memory.page_messages import PageCall, PageRun, ToPageSource
from quicferry.migration.order import Lease, MoveOrder, lease_of
from quicferry.migration.rpc.tunnel_messages import TunnelCall, TunnelMessage

if TYPE_CHECKING:  # it takes numpy, which an agent without memory to move need not load
    from quicferry.migration.memory.base_image import BaseImage


class ServiceContainer(Protocol):
    """The container of the server's process: a PID and a mount namespace inside the edge host.

    Its network namespace is the edge host's. It has a private ``/run``, which other processes of
    this host reach through ``path``.
    """

    @property
    def init_pid(self) -> int:
        """PID of the container's init, seen from the agent."""

    @property
    def service_pid(self) -> int | None:
        """PID of the server's process *inside* the container; None while none runs."""

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Start the server's process, with stdio opened inside; returns its PID inside the container."""

    def adopt(self, pid: int) -> None:
        """The server's process is now this PID inside the container: an engine restored it."""

    async def stop_service(self, *, grace_s: float = 1.0) -> None:
        """End the server's process (SIGTERM, SIGKILL after ``grace_s``); nothing when none runs."""

    async def end_processes(self) -> None:
        """Kill all processes inside but init, whoever started them."""

    def path(self, inside: str) -> Path:
        """The agent's path to a file of the container: ``/proc/<init>/root`` + ``inside``."""

    def place_of(self, path: str) -> str:
        """Where a file is in the container that the server knows by ``path``: not there if it is in a box."""


class StandbyHooks(Protocol):
    """What the agent does for engines with a warm process at the destination."""

    async def start_standby(self, timeout_s: float) -> None:
        """Start the standby server in this host's container and wait until it answers as one.

        Nothing when one runs already. Raises ``MigrationError``.
        """


#: of state that needs no file: it fits in a datagram on the loopback device, in base64
INLINE_BYTES = 40 << 10


async def nothing_more() -> None:
    """The default of ``EngineContext.after_freeze``: nothing but the process moves."""


def no_address(edge: str) -> str:
    """The default of ``EngineContext.address_of``: there is no network between the engines."""
    raise MigrationError(f"the address of {edge} is not known")


@dataclass(frozen=True, kw_only=True)
class EngineContext:
    """What an engine is given of its edge host.

    ``state_dir`` is a directory *inside the container*, under its private ``/run`` (mode 0700), for
    checkpoint and state files: programs run in the container see it as it is, the agent reaches it
    through ``container.path(str(state_dir / name))``.
    """

    edge: str
    container: ServiceContainer
    control: ControlClient
    events: EventLog
    state_dir: Path
    standby: StandbyHooks
    #: called by ``restore`` directly before Resume or Import, or as that leaves, when the socket exists: the
    #: datagrams that wait for it then lie in the socket, and its first flight can answer them.
    #: All of the state is there and was checked by then: the agent asks for the commit, which crosses then
    before_resume: Callable[[], None] = lambda: None
    #: state that is no longer needs no file
    inline_bytes: int = INLINE_BYTES
    #: awaited by ``checkpoint`` directly after Freeze, before the process is looked at
    after_freeze: Callable[[], Awaitable[None]] = nothing_more
    #: the lease that goes into Resume or Import: asked for when that order is given, as it may be renewed
    lease_of: Callable[[MoveOrder], Lease | None] = lease_of
    #: the address of another edge on the link between the two
    address_of: Callable[[str], str] = no_address
    #: established TCP connections move with the process, as their address does
    keep_tcp: bool = False
    #: the memory of an idle server of the same version, which all edges have; None: there is none
    base_image: Callable[[], Awaitable[BaseImage]] | None = None
    #: opens a stream to the engine of that edge which serves pages, for at most so many seconds; by the
    #: detour through the core network if so told
    open_pages: Callable[[str, float, bool], PageCall] | None = None
    #: the same for the bytes of CRIU's page server
    open_tunnel: Callable[[str, float], TunnelCall] | None = None


class Engine(Protocol):
    """How a server moves. Made by ``registry.create``; one object per agent and engine name.

    Every method raises ``MigrationError`` when it cannot do its work; the agent then aborts. All but
    ``checkpoint`` and ``restore`` may be called again after they succeeded and then do nothing.
    """

    name: str
    needs_standby: bool

    async def prepare_source(self, order: MoveOrder) -> None:
        """Do at the source what can be done while the server serves. Nothing here may disturb it."""

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Do at the destination what can be done before the state comes."""

    def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Give Freeze to the server, await ``after_freeze``, then yield the checkpoint in chunks.

        A chunk has at most ``order.CHUNK_BYTES``. The bytes are opaque to the agents, which add framing,
        length and digest. The iterator may be closed early: then the move is off and ``resume_source``
        follows.
        """

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Consume the chunks as they come, bring the server up and give it Resume or Import.

        The iterator ends only after length and digest were checked: a server must not be resumed
        before it is exhausted. Directly before Resume or Import call the context's ``before_resume``; put
        its ``lease_of(order)`` into that order, which the server obeys, and refuses when it is too late.
        Returns the server's answer; ``t_ns`` is the moment it serves again.
        """

    async def give_up_source(self, order: MoveOrder) -> None:
        """Remove the frozen server and its state from the source: the destination serves."""

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """Bring the source's server back with Abort: the move is off. Returns its answer.

        Called also when ``checkpoint`` failed half-way, even before the freeze.
        """

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Undo the move at the destination: when this returns, nothing of it serves here or ever will."""


@runtime_checkable
class CopiesAhead(Protocol):
    """An engine that sends memory while the server still serves, before ``checkpoint``."""

    def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Yield memory at the source, in chunks as ``checkpoint`` does. The server must not be disturbed.

        May be closed early; ``resume_source`` follows then.
        """

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """Keep the memory at the destination for ``restore``, whose iterator is of the same kind."""


@runtime_checkable
class CopiesAfterNotice(CopiesAhead, Protocol):
    """An engine that copies ahead what the notice to the clients changes: it comes after that, in rounds.

    ``copy_ahead`` is one round each time it is called in a move; the next begins when the destination has
    all of the one before.
    """

    copies_after_notice: bool

    async def copy_last(self, order: MoveOrder) -> bytes:
        """What has changed since the last round, directly before ``checkpoint``; empty: nothing to copy."""

    async def accept_last(self, order: MoveOrder, copies: bytes) -> None:
        """Take that in at the destination, before ``restore``."""


@runtime_checkable
class GivesAtOnce(Protocol):
    """An engine whose whole checkpoint is there when its first chunk is."""

    gives_at_once: bool


@runtime_checkable
class KeepsSource(Protocol):
    """An engine whose source is needed for some time after the server runs at the destination."""

    async def drain_source(self, order: MoveOrder) -> dict[str, Any]:
        """Wait at the source, after the commit, until the destination has all it needs.

        Returns details for the event of it, ``bytes`` among them. Raises ``MigrationError`` when the
        destination says that it will never have it.
        """


@runtime_checkable
class TakesOver(Protocol):
    """An engine that continues at the destination where an agent was killed while memory was missing."""

    async def take_over(self, order: MoveOrder) -> None:
        """Give a server that an earlier agent brought up its missing memory; nothing if none is missing.

        Raises ``MigrationError`` when the server there cannot be given what it lacks.
        """


@runtime_checkable
class ServesPages(KeepsSource, Protocol):
    """An engine whose source serves pages itself."""

    async def serve_pages(
        self, epoch: int, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        """Answer one stream of requests for pages, at the source."""


@runtime_checkable
class ServesTunnel(KeepsSource, Protocol):
    """An engine at whose source CRIU's page server serves pages."""

    async def serve_tunnel(
        self,
        epoch: int,
        requests: AsyncIterator[TunnelMessage],
        send: Callable[[TunnelMessage], Awaitable[None]],
    ) -> None:
        """Carry the bytes of one stream to CRIU's page server, and its answers back."""
