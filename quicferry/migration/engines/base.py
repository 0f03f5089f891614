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

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import msgspec

from quicferry.errors import InvalidInput, MigrationError
from quicferry.events import EventLog
from quicferry.migration.control import ControlClient
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from quicferry.units import NS_PER_MS, now_ns

CHUNK_BYTES = 1 << 20  # the largest chunk an engine yields
#: How memory images are packed on their way. ``auto`` is what measurements favour (docs/adr/0004).
COMPRESSIONS = ("auto", "none", "zstd", "zstd-1", "zstd-3")
#: Who moves the memory of a server before and after the downtime: the agents, or CRIU's own machinery
#: (tracked dumps, page server, lazy-pages daemon). ``auto`` is what measurements favour (docs/adr/0011).
MEMORY_BY = ("auto", "agents", "criu")
AUTO_MEMORY_BY = "agents"


class WantAll(msgspec.Struct, frozen=True, kw_only=True, tag="all"):
    """The first message of a stream for pages: everything that is missing, in the order it is wanted.

    ``runs``: (PID inside the container, first page number, number of pages).
    """

    epoch: int
    runs: list[tuple[int, int, int]]


class WantNow(msgspec.Struct, frozen=True, kw_only=True, tag="now"):
    """The process waits for these pages: they go before all others."""

    pid: int
    first: int
    count: int


class GotPages(msgspec.Struct, frozen=True, tag="got"):
    """So many pages have arrived: the source may send as many more."""

    count: int


class PagesDone(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The process has all its memory; or it never will, and ``error`` says why."""

    error: str | None = None


class PageRun(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring pages and the digest of what they hold. ``packed``: ``data`` is a zstd frame.

    ``more``: further runs (first page number, number of pages) whose contents follow in ``data``.
    """

    pid: int
    first: int
    count: int
    data: bytes
    sha256: bytes
    packed: bool = False
    more: list[tuple[int, int]] = []

    @property
    def runs(self) -> list[tuple[int, int]]:
        """All of its runs."""
        return [(self.first, self.count), *self.more]

    @property
    def pages(self) -> int:
        """How many pages it brings."""
        return sum(count for _, count in self.runs)


ToPageSource = WantAll | WantNow | GotPages | PagesDone


class TunnelOpen(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """The first message of a stream that carries the bytes of CRIU's page server, and the answer to it.

    ``received``: so many bytes of the other end have come on all streams before.
    """

    epoch: int
    received: int


class TunnelData(msgspec.Struct, frozen=True, kw_only=True, tag="data"):
    """Bytes from ``offset`` on. ``last``: the program at this end says nothing more."""

    offset: int
    data: bytes
    received: int
    last: bool = False


class TunnelOver(msgspec.Struct, frozen=True, kw_only=True, tag="over"):
    """First of a stream: the process has all its memory, or never will. Then the answer, the same."""

    epoch: int
    error: str | None = None


TunnelMessage = TunnelOpen | TunnelData | TunnelOver


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step of a move may take, in seconds; a step that takes longer has failed."""

    prepare_s: float = 20.0  # both sides get ready (a standby process starts in this time)
    precopy_s: float = 120.0  # memory is copied ahead, while the server serves
    notice_s: float = 1.0  # clients are told and answer; late ones are left out, it is not a failure
    checkpoint_s: float = 15.0  # from the freeze to the first chunk
    transfer_s: float = 60.0  # first to last chunk
    restore_s: float = 15.0  # from the last chunk to the destination's word that the server runs
    commit_s: float = 5.0  # the source gives up, or an abort is obeyed
    pages_s: float = 120.0  # after the commit: what is left of the memory follows


class MoveOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One move of the server, the same on all hosts that take part.

    ``epoch`` numbers the moves of a service from 1 and makes orders idempotent: an order with an
    epoch that is already done is answered again, not obeyed again. ``resume_before_ns``
    (CLOCK_MONOTONIC) is the destination's lease: from that moment on it must not resume, so that a
    source that cannot reach it may roll back after it. The source agent sets it at the freeze.
    """

    epoch: int
    strategy: Strategy
    server_first: bool
    engine: str
    source: str  # name of the edge host
    destination: str
    service: Endpoint  # where clients reach the server at the destination
    downtime_ms: float = 500.0  # what the clients are told to expect
    forwarding: bool = True  # late datagrams go on from the source to the destination
    compression: str = "auto"  # of memory images, one of COMPRESSIONS
    memory_by: str = "auto"  # who moves the memory before and after the downtime, one of MEMORY_BY
    deadlines: Deadlines = Deadlines()
    resume_before_ns: int = 0  # 0: not frozen yet

    @property
    def implementation(self) -> str:
        """The name by which ``create`` finds the engine of this order."""
        return self.engine + BY_CRIU if memory_by(self.engine, self.memory_by) == "criu" else self.engine


class PlannedMove(msgspec.Struct, frozen=True, kw_only=True):
    """All of a move that can be said before it is known from where and as which epoch it begins."""

    strategy: Strategy
    engine: str
    destination: str
    service: Endpoint  # where clients reach the server at the destination
    server_first: bool = False
    downtime_ms: float = 500.0
    forwarding: bool = True  # late datagrams go on from the source to the destination
    compression: str = "auto"  # of memory images, one of COMPRESSIONS
    memory_by: str = "auto"  # who moves the memory before and after the downtime, one of MEMORY_BY
    deadlines: Deadlines = Deadlines()

    def order(self, source: str, epoch: int) -> MoveOrder:
        """The order to move the server away from ``source``."""
        return MoveOrder(
            epoch=epoch,
            strategy=self.strategy,
            server_first=self.server_first,
            engine=self.engine,
            source=source,
            destination=self.destination,
            service=self.service,
            downtime_ms=self.downtime_ms,
            forwarding=self.forwarding,
            compression=self.compression,
            memory_by=self.memory_by,
            deadlines=self.deadlines,
        )


class ServiceContainer(Protocol):
    """The place in which the server's process lives: own PID and mount namespace inside the edge host.

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
        """End all that runs inside, whoever started it."""

    def path(self, inside: str) -> Path:
        """The agent's path to a file of the container: ``/proc/<init>/root`` + ``inside``."""


class PageCall(Protocol):
    """A stream to the source's engine for memory that stayed there; see ``lazy_pages``."""

    async def write(self, message: ToPageSource) -> None:
        """Send one message. Raises ``MigrationError`` when the stream is broken."""

    async def read(self) -> PageRun:
        """The next answer. Raises ``MigrationError``, also when there are no more."""

    def cancel(self) -> None:
        """Break the stream off."""


class TunnelCall(Protocol):
    """A stream to the source's engine for the bytes of CRIU's page server; see ``tunnel``."""

    async def write(self, message: TunnelMessage) -> None:
        """Send one message. Raises ``MigrationError`` when the stream is broken."""

    async def read(self) -> TunnelMessage:
        """The next answer. Raises ``Unreachable`` when the stream broke, ``MigrationError`` if refused."""

    def cancel(self) -> None:
        """Break the stream off."""


class StandbyHooks(Protocol):
    """What the agent does for engines with a warm process at the destination."""

    async def start_standby(self, timeout_s: float) -> None:
        """Start the standby server in this host's container and wait until it answers as one.

        Nothing when one runs already. Raises ``MigrationError``.
        """


async def nothing_more() -> None:
    """What follows a freeze where nothing but the process moves."""


@dataclass(frozen=True, kw_only=True)
class EngineContext:
    """What an engine is given on its host.

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
    #: called by ``restore`` directly before Resume or Import, when the server's socket exists: the
    #: datagrams that wait for it then lie in the socket, and its first flight can answer them
    before_resume: Callable[[], None] = lambda: None
    #: awaited by ``checkpoint`` directly after Freeze, before the process is looked at
    after_freeze: Callable[[], Awaitable[None]] = nothing_more
    #: established TCP connections move with the process, as their address does
    keep_tcp: bool = False
    #: opens a stream to the engine of that edge which serves pages, for at most so many seconds; by the
    #: detour through the core network if so told
    open_pages: Callable[[str, float, bool], PageCall] | None = None
    #: the same for the bytes of CRIU's page server
    open_tunnel: Callable[[str, float], TunnelCall] | None = None


class Engine(Protocol):
    """How the server moves. Made by ``create`` with an ``EngineContext``; one per agent and engine name.

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

        A chunk has at most ``CHUNK_BYTES``. The bytes are opaque to the agents; they add framing, length
        and digest of their own. The iterator may be closed early: then the move is off and
        ``resume_source`` follows.
        """

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Consume the chunks as they come, bring the server up and give it Resume or Import.

        The iterator ends only after length and digest were checked: a server must not be resumed
        before it is exhausted. Call ``check_lease(order)`` and the context's ``before_resume`` directly
        before Resume or Import.
        Returns the server's answer; ``t_ns`` is the moment it serves again.
        """

    async def give_up_source(self, order: MoveOrder) -> None:
        """The destination serves: remove the frozen server and its state from the source."""

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """The move is off: bring the source's server back, with Abort. Returns its answer.

        Called also when ``checkpoint`` failed half-way, even before the freeze.
        """

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """The move is off: when this returns, nothing of this order serves here or ever will."""


@runtime_checkable
class CopiesAhead(Protocol):
    """An engine that sends memory while the server still serves, before ``checkpoint``."""

    def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """At the source: yield memory in chunks as ``checkpoint`` does. The server must not notice.

        May be closed early; ``resume_source`` follows then.
        """

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """At the destination: keep it for ``restore``. The iterator is as that of ``restore``."""


@runtime_checkable
class KeepsSource(Protocol):
    """An engine whose source is needed for some time after the server runs at the destination."""

    async def drain_source(self, order: MoveOrder) -> dict[str, Any]:
        """At the source, after the commit: return when the destination has all it needs.

        Returns details for the event of it, ``bytes`` among them. Raises ``MigrationError`` when the
        destination says that it will never have it.
        """


@runtime_checkable
class TakesOver(Protocol):
    """An engine that goes on at the destination where an agent was killed, while memory is still missing."""

    async def take_over(self, order: MoveOrder) -> None:
        """Called when an agent was started again that had brought the server up; nothing if nothing is left.

        Raises ``MigrationError`` when the server there cannot be given what it lacks.
        """


@runtime_checkable
class ServesPages(KeepsSource, Protocol):
    """One whose source serves pages."""

    async def serve_pages(
        self, epoch: int, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        """At the source: answer one stream of requests for pages."""


@runtime_checkable
class ServesTunnel(KeepsSource, Protocol):
    """One at whose source CRIU serves pages."""

    async def serve_tunnel(
        self,
        epoch: int,
        requests: AsyncIterator[TunnelMessage],
        send: Callable[[TunnelMessage], Awaitable[None]],
    ) -> None:
        """At the source: carry what one stream brings to CRIU, and its answers."""


def check_lease(order: MoveOrder) -> None:
    """Raise ``MigrationError`` when the destination may not resume any more: the source may serve again."""
    late_ns = now_ns() - order.resume_before_ns
    if order.resume_before_ns and late_ns >= 0:
        raise MigrationError(
            f"the server came {late_ns / NS_PER_MS:.1f} ms too late to {order.destination}",
            hint="the source serves again; give the move longer deadlines",
        )


#: engine name -> "module:class". Imported when asked for, so that one that is missing harms no other.
ENGINES: dict[str, str] = {
    "handoff": "quicferry.migration.engines.handoff:HandoffEngine",
    "criu-cold": "quicferry.migration.engines.criu.cold:CriuColdEngine",
    "criu-pre-copy": "quicferry.migration.engines.criu.agent_copy:CriuPreCopyEngine",
    "criu-post-copy": "quicferry.migration.engines.criu.agent_copy:CriuPostCopyEngine",
    "criu-hybrid": "quicferry.migration.engines.criu.agent_copy:CriuHybridEngine",
    "runc-cold": "quicferry.migration.engines.criu.runc_cold:RuncColdEngine",
}


def runs_in_oci(engine: str) -> bool:
    """Whether the server of that engine runs as an OCI container that runc makes."""
    return engine.startswith("runc-")


#: Engines that send memory before the freeze, and those that send some after the commit.
AHEAD_ENGINES = frozenset({"criu-pre-copy", "criu-hybrid"})
BEHIND_ENGINES = frozenset({"criu-post-copy", "criu-hybrid"})
#: Engines whose moves take longer than their downtime: memory crosses before or after it.
LONG_ENGINES = AHEAD_ENGINES | BEHIND_ENGINES
#: Engines that run CRIU themselves.
CRIU_ENGINES = LONG_ENGINES | {"criu-cold"}
#: Ends the name of an implementation in which CRIU itself moves the memory.
BY_CRIU = "/criu"
_IMPLEMENTATIONS: dict[str, str] = {
    **ENGINES,
    f"criu-pre-copy{BY_CRIU}": "quicferry.migration.engines.criu.native_copy:NativePreCopyEngine",
    f"criu-post-copy{BY_CRIU}": "quicferry.migration.engines.criu.native_copy:NativePostCopyEngine",
    f"criu-hybrid{BY_CRIU}": "quicferry.migration.engines.criu.native_copy:NativeHybridEngine",
}


def memory_by(engine: str, asked: str) -> str | None:
    """Who moves the memory when ``asked`` (one of MEMORY_BY) is asked for; None where it all goes at once."""
    if engine not in LONG_ENGINES:
        return None
    return AUTO_MEMORY_BY if asked == "auto" else asked


def create(name: str, context: EngineContext) -> Engine:
    """The engine of that name, or implementation of one. Raises ``InvalidInput`` for unknown names."""
    if name not in _IMPLEMENTATIONS:
        raise InvalidInput(f"unknown engine {name!r}", hint="there are: " + ", ".join(ENGINES))
    module_name, _, class_name = _IMPLEMENTATIONS[name].partition(":")
    made = getattr(importlib.import_module(module_name), class_name)(context)
    return cast(Engine, made)
