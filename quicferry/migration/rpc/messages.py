"""The messages between agents and orchestrator, and the methods they belong to.

``Receive`` carries the checkpoint from the source agent to the destination agent::

    source        Begin  Piece … Piece  End      Renew …           Commit
    destination                             Received      Resuming         Resumed  Committed

Until End has left the source, the destination cannot resume (it has no digest to check against),
and the source may roll back on its own. After it, only the destination's word or the end of its
lease allows that; after Commit only its word. Resuming is an engine's to send: without it, the source
answers Resumed with Commit.
"""

from __future__ import annotations

from typing import Any

import msgspec

from quicferry.migration.memory.page_messages import PageRun, ToPageSource
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.channel import Duplex, Unary
from quicferry.migration.rpc.tunnel_messages import TunnelMessage
from quicferry.model import Endpoint

PIECE_BYTES = 256 * 1024  # of the first pieces; measured: first byte 1 ms instead of 5 ms with 1 MiB


class StatusQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Ask an agent for its status; with ``ask_server`` also the server process.

    With an ``epoch`` also how far either of its sides came in that move.
    """

    ask_server: bool = False
    epoch: int | None = None


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent knows about itself and its host."""

    edge: str
    service_pid: int | None  # inside the container; None while no server runs
    epoch: int  # of the latest move this agent took part in, 0 if none
    part: str | None  # "source" or "destination" in that move
    step: str  # of that move, see states.Step
    server: dict[str, Any] = {}  # the server's answer to Status, when asked; may have "error"
    as_source: str = "idle"  # states.Step in the move that was asked for
    as_destination: str = "idle"


class StartService(msgspec.Struct, frozen=True, kw_only=True):
    """Start the server in this host's container, with the agent's configured command."""


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The server answers on its control endpoint."""

    pid: int
    t_ns: int
    server: dict[str, Any] = {}


class StopService(msgspec.Struct, frozen=True, kw_only=True):
    """End the server: it writes its closing event first, when it can."""

    timeout_s: float = 2.0


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The server has ended; ``summary`` is its answer to Stop, or has ``error``."""

    summary: dict[str, Any] = {}


class PrepareDestination(msgspec.Struct, frozen=True, kw_only=True):
    """Get ready to receive: engine, standby, waiting room. May be repeated."""

    order: MoveOrder


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The destination is ready; late datagrams may be sent to ``waiting_room``, if it has one.

    An unspecified address there (0.0.0.0) stands for the address at which its agent was called.
    """

    waiting_room: Endpoint | None


class MoveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Move the server that runs on the called agent's host. The caller emits ``migration.ordered``."""

    order: MoveOrder


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a move ended. Times are CLOCK_MONOTONIC.

    ``outcome``: ``moved`` (the destination serves), ``stayed`` (the source serves), ``lost`` (the
    source could not be brought back), ``unknown`` (only from the orchestrator: nobody answers).
    """

    epoch: int
    outcome: str
    serves_at: str | None
    transferred_bytes: int = 0
    resumed_t_ns: int | None = None
    error: str | None = None
    hint: str | None = None
    notice: dict[str, Any] = {}  # the server's answer to Prepare
    steps_ms: dict[str, float] = {}  # duration of each step at the source
    forwarded_datagrams: int = 0


class Ahead(msgspec.Struct, frozen=True, kw_only=True, tag="ahead"):
    """Begins memory that is copied while the server still serves; ends with an End without lease.

    ``key``: of the digest in that End (``migration.criu.digest``).
    """

    order: MoveOrder
    key: bytes


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """Begins the transfer of the checkpoint. The order now has the destination's lease.

    ``key``: as in Ahead. ``copies``: what was copied last before the freeze (``base.CopiesAfterNotice``).
    """

    order: MoveOrder
    key: bytes
    copies: bytes = b""


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """A part of the checkpoint, at most ``order.CHUNK_BYTES``."""

    data: bytes


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Ends a transfer with its length and digest. From here on the destination may resume.

    ``resume_before_ns`` is the lease that counts: at most the order's, as now less is left to do. ``data`` is
    the last piece, where it is there already: one message less to wait for.
    """

    size_bytes: int
    digest: str
    resume_before_ns: int
    data: bytes = b""


class Renew(msgspec.Struct, frozen=True, kw_only=True, tag="renew"):
    """Lengthens the lease while the source waits for Resumed: the two can still hear each other."""

    resume_before_ns: int


class Commit(msgspec.Struct, frozen=True, kw_only=True, tag="commit"):
    """Tells the destination that the source serves no more in this epoch, if the destination does.

    One that comes before the server has resumed counts from then on. If it never resumes, the destination
    says so, and the source goes on.
    """

    epoch: int


class Received(msgspec.Struct, frozen=True, kw_only=True, tag="received"):
    """Tells the source that length and digest are right."""

    size_bytes: int
    t_ns: int


class Resuming(msgspec.Struct, frozen=True, kw_only=True, tag="resuming"):
    """Asks for the commit: all of the state is here and was checked, and the server is about to resume."""

    epoch: int


class Resumed(msgspec.Struct, frozen=True, kw_only=True, tag="resumed"):
    """The server serves at the destination since ``t_ns``."""

    epoch: int
    t_ns: int
    answer: dict[str, Any] = {}


class Committed(msgspec.Struct, frozen=True, kw_only=True, tag="committed"):
    """Tells the source that the destination knows of the commit."""

    epoch: int


class AbortMove(msgspec.Struct, frozen=True, kw_only=True):
    """Asks the destination not to resume in this epoch, and for its verdict."""

    epoch: int
    reason: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The destination's final word: it serves (``resumed``), or it never will in this epoch (None).

    None is final. ``resumed`` is final once the destination has heard of the commit, see ``states``.
    """

    epoch: int
    resumed: Resumed | None
    reason: str | None = None  # why it never will


class CollectFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Send the configured files of the service (events, TLS secrets) as they are now."""


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """Path inside the container -> content; files that do not exist are left out."""

    files: dict[str, bytes]


ToDestination = Ahead | Begin | Piece | End | Renew | Commit
ToSource = Received | Resuming | Resumed | Committed

STATUS = Unary("Status", StatusQuery, AgentStatus)
START_SERVICE = Unary("StartService", StartService, Started)
STOP_SERVICE = Unary("StopService", StopService, Stopped)
PREPARE_DESTINATION = Unary("PrepareDestination", PrepareDestination, Prepared)
MOVE = Unary("Move", MoveRequest, Outcome)
ABORT = Unary("Abort", AbortMove, Verdict)
COMMIT = Unary("Commit", Commit, Verdict)
COLLECT_FILES = Unary("CollectFiles", CollectFiles, Files)
RECEIVE: Duplex[ToDestination, ToSource] = Duplex("Receive", ToDestination, ToSource)
PAGES: Duplex[ToPageSource, PageRun] = Duplex("Pages", ToPageSource, PageRun)
TUNNEL: Duplex[TunnelMessage, TunnelMessage] = Duplex("Tunnel", TunnelMessage, TunnelMessage)
