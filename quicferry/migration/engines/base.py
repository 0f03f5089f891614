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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from quicferry.errors import InvalidInput, MigrationError
from quicferry.events import EventLog
from quicferry.migration.control import ControlClient
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from quicferry.units import NS_PER_MS, now_ns

CHUNK_BYTES = 1 << 20  # the largest chunk an engine yields


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step of a move may take, in seconds; a step that takes longer has failed."""

    prepare_s: float = 20.0  # both sides get ready (a standby process starts in this time)
    notice_s: float = 1.0  # clients are told and answer; late ones are left out, it is not a failure
    checkpoint_s: float = 15.0  # from the freeze to the first chunk
    transfer_s: float = 60.0  # first to last chunk
    restore_s: float = 15.0  # from the last chunk to the destination's word that the server runs
    commit_s: float = 5.0  # the source gives up, or an abort is obeyed


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
    deadlines: Deadlines = Deadlines()
    resume_before_ns: int = 0  # 0: not frozen yet


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

    def path(self, inside: str) -> Path:
        """The agent's path to a file of the container: ``/proc/<init>/root`` + ``inside``."""


class StandbyHooks(Protocol):
    """What the agent does for engines with a warm process at the destination."""

    async def start_standby(self, timeout_s: float) -> None:
        """Start the standby server in this host's container and wait until it answers as one.

        Nothing when one runs already. Raises ``MigrationError``.
        """


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
        """Give Freeze to the server, then yield the checkpoint in chunks of at most ``CHUNK_BYTES``.

        The bytes are opaque to the agents; they add framing, length and digest of their own. The
        iterator may be closed early: then the move is off and ``resume_source`` follows.
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
    "criu-cold": "quicferry.migration.engines.criu_cold:CriuColdEngine",
}


def create(name: str, context: EngineContext) -> Engine:
    """The engine of that name. Raises ``InvalidInput`` for unknown names."""
    if name not in ENGINES:
        raise InvalidInput(f"unknown engine {name!r}", hint="there are: " + ", ".join(ENGINES))
    module_name, _, class_name = ENGINES[name].partition(":")
    made = getattr(importlib.import_module(module_name), class_name)(context)
    return cast(Engine, made)
