"""What happened, when, and who saw it: the events of a run and how processes write them down.

Every process of a run appends its events as JSON lines; they are merged into ``events.jsonl`` of
the run directory. A name that is not in ``NAMES`` is an error, so that the list stays complete.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import UNDECODABLE
from quicferry.units import now_ns

#: name -> what it means and what its ``detail`` holds. A phase has .started, .complete and .failed.
NAMES: dict[str, str] = {
    # the client
    "client.connected": "the handshake is confirmed; detail: negotiated (bool), strategies",
    "client.request.sent": "detail: number, size_bytes, stream",
    "client.response.received": "the response is complete; detail: number, stream, server, service_ms",
    "client.download.data": "the first new download bytes since the last such event from this server",
    "client.transfer.complete": "a download or an upload ended; detail: kind, size_bytes, verified",
    "client.migration.announced": "SM_PREPARE has come; detail: epoch, strategy, addresses",
    "client.loss.noticed": "the old address has been silent for one PTO; detail: pto_ms, silent_ms",
    "client.probing": "the first PATH_CHALLENGE left for an address; detail: address",
    "client.server.packet": "the first authentic packet came from a new address; detail: address",
    "client.path.validated": "a PATH_RESPONSE came; detail: address, rtt_ms",
    "client.switched": "all traffic goes to the new address; detail: old, new",
    "client.migration.aborted": "the server called the move off; detail: epoch, reason",
    "client.fell-back": "the client gave up on the move; detail: reason",
    "client.move.requested": "the client asks the server to move (SM_REQUEST); detail: request",
    "client.move.answered": "the server's answer to that; detail: request, reply",
    "client.reconnecting": "the server has moved and this client cannot follow; detail: address, open",
    "client.connection.lost": "a baseline's connection is given up; detail: address, reason, open",
    "client.dns.query": "the client's resolver asks the name server; detail: record, attempt",
    "client.dns.answer": "the name server answered; detail: record, address, ttl_s",
    "client.resolved": "an address to connect to; detail: address, cached (bool), ttl_left_s",
    "client.tcp.connecting": "the first SYN of an attempt leaves; detail: address",
    "client.tcp.connected": "the TCP connection is there; detail: address",
    "client.connect.failed": "an attempt to connect ended without success; detail: address, reason",
    "client.tls.established": "the TLS handshake is over; detail: address, resumed (bool)",
    "client.quic.connecting": "the first Initial of an attempt leaves; detail: address, early_data (bool)",
    "client.quic.established": "the new QUIC connection is confirmed; detail: address, early_data (bool)",
    "client.request.repeated": "an open request goes out again; detail: number, stream",
    "client.state.checked": "detail: ok, expected, seen",
    "client.done": "detail: the summary of the load",
    # the server
    "server.started": "the process serves; detail: pid, standby (bool)",
    "server.connected": "a client's handshake is confirmed; detail: negotiated (bool)",
    "server.prepare.sent": "SM_PREPARE is on its way; detail: epoch, strategy",
    "server.client.ready": "SM_READY has come; detail: epoch, result",
    "server.move.requested": "a client asks for a move; detail: request",
    "server.move.answered": "what it was told; detail: request, reply",
    "server.frozen": "the process stopped serving; downtime begins here; detail: epoch",
    "server.resumed": "it serves again: the downtime ends; detail: epoch, edge, server_first, connection_ids",
    "server.held": "the lease ended before the move was committed, nothing is sent; detail: epoch",
    "server.kept": "the move was committed after that: it serves again, for good; detail: epoch",
    "server.committed": "the first non-probing packet came to the new address; detail: epoch",
    "server.aborted": "the move was called off and the source serves again; detail: epoch, reason",
    "server.stopped": "the process ends; detail: the summary of the service",
    # the name server and what tells it of the move
    "dns.started": "the name server answers; detail: zone, record, address, ttl_s",
    "dns.update.sent": "a signed dynamic update leaves; detail: record, address, attempt",
    "dns.update.done": "the name server took the update; detail: record, address, rcode",
    # addresses that move, or come and go
    "address.detached": "an address can be reached at an edge no more; detail: address, edge",
    "address.attached": "an address can be reached at an edge; detail: address, edge",
    "address.announced": "MPTCP: the clients are told of an address (ADD_ADDR); detail: address",
    "address.joined": "MPTCP: the clients' subflows to it stand; detail: address, subflows",
    "address.withdrawn": "MPTCP: the clients are told to forget it (REMOVE_ADDR); detail: address",
    "client.address.changed": "the client goes on from another address; detail: old, new",
    "client.address.answered": "the first datagram came to that address; detail: address",
    "route.update.sent": "the router is told where an address is now; detail: address, gateway, attempt",
    "route.updated": "the router has its new route; detail: address, gateway, took_us",
    # the move, seen by orchestrator and node agents
    "migration.ordered": "the decision to move; detail: epoch, strategy, engine, source, destination",
    "migration.prepare": "phase: the destination gets ready, a standby starts if the engine needs one",
    "migration.notice": "phase: the client is told and answers",
    "migration.precopy": "phase: memory, or copies of connections, cross while it serves; detail: bytes",
    "migration.precopy.round": "phase: the memory is read once; detail: round, pages, of_pages, bytes, stop",
    "migration.checkpoint": "phase: the server's state is taken; detail: bytes, listed_by (agent or criu)",
    "migration.transfer": "phase: the state crosses the network; detail: bytes",
    "migration.rsync": "phase: files cross by rsync, as in the published procedure; detail: bytes",
    "migration.restore": "phase: the state becomes a running server again",
    "migration.pages": "phase: memory that stayed at the source follows; detail: pages, bytes, waited_for",
    "migration.pages.taken_over": "an agent that was started again goes on with it; detail: pages, error",
    "migration.granted": "the source has told the destination of the commit before the server resumed",
    "migration.commit": "phase: the source gives up what it kept",
    "migration.finished": "detail: outcome, transferred_bytes",
    # the run
    "run.deploy": "phase: the topology is built",
    "run.calibrate": "phase: every link is measured",
    "run.start": "phase: captures, agents, server and client come up",
    "run.load": "phase: the client talks to the server",
    "run.migrate": "phase: the server moves",
    "client.stalled": "a video had nothing to show; detail: length_ms",
    "client.handover": "phase: the client changes its access router; detail: link, old, new (addresses)",
    "process.usage": "between moves: what a process holds; detail: process, fds, rss_kib",
    "fault.injected": "something was made to go wrong; detail: fault, seconds",
    "fault.mended": "it lasts no longer; detail: fault, what",
    "run.collect": "phase: everything is gathered and the emulation ends",
    "run.analyse": "phase: the captures are read",
}

PHASE_ENDS = ("started", "complete", "failed")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened.

    ``t_ns`` is CLOCK_MONOTONIC; ``vantage`` is the host that saw it, or ``run`` for the tool itself.
    """

    t_ns: int
    vantage: str
    name: str
    detail: dict[str, Any] = {}


def is_known(name: str) -> bool:
    """Whether ``name`` is listed in NAMES, directly or as the end of a phase."""
    if name in NAMES:
        return True
    phase, _, end = name.rpartition(".")
    return end in PHASE_ENDS and NAMES.get(phase, "").startswith("phase:")


Sink = Callable[[Event], None]


class EventLog:
    """Writes events of one vantage point to a file, to a callable, or to both.

    The file is opened for each event and closed again: a process that is about to be checkpointed
    must hold no open file, and an event must survive whatever happens next.

    With ``later``, which calls a function at the end of the present turn of an event loop, all events of one
    turn are written together then: to write one takes as long as half of a step in the downtime, and
    hundreds of clients have one each. Whoever must know that they are written calls ``flush``.
    """

    def __init__(
        self,
        vantage: str,
        path: Path | None = None,
        sink: Sink | None = None,
        later: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.vantage = vantage
        self._path = path
        self.sink = sink
        self.later = later
        self._unwritten: list[Event] = []

    def emit(self, name: str, *, t_ns: int | None = None, **detail: Any) -> Event:
        """Write one event, stamped now unless ``t_ns`` says otherwise. ``ValueError`` for unknown names."""
        if not is_known(name):
            raise ValueError(f"unknown event {name!r}: add it to quicferry.events.NAMES")
        event = Event(t_ns=now_ns() if t_ns is None else t_ns, vantage=self.vantage, name=name, detail=detail)
        self._unwritten.append(event)
        if self.later is None:
            self.flush()
        elif len(self._unwritten) == 1:
            self.later(self.flush)
        return event

    def flush(self) -> None:
        """Write what is not written yet."""
        events, self._unwritten = self._unwritten, []
        if self._path is not None and events:
            lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, lines)
            finally:
                os.close(descriptor)
        if self.sink is not None:
            for event in events:
                self.sink(event)

    @contextlib.contextmanager
    def phase(self, name: str, **detail: Any) -> Iterator[dict[str, Any]]:
        """Emit ``name.started`` and ``name.complete`` or ``name.failed`` around a block.

        Yields a dictionary; what the block puts into it becomes part of the closing event.
        """
        outcome: dict[str, Any] = dict(detail)
        self.emit(f"{name}.started", **detail)
        try:
            yield outcome
        except BaseException as error:
            self.emit(f"{name}.failed", **outcome, error=f"{type(error).__name__}: {error}")
            raise
        self.emit(f"{name}.complete", **outcome)


def read_events(path: Path, damaged: list[int] | None = None) -> list[Event]:
    """Read a JSON-lines file of events; lines that are none, as one cut off by a crash, are left out.

    Their numbers, from 1, are added to ``damaged``. Raises ``OSError``.
    """
    events: list[Event] = []
    decoder = msgspec.json.Decoder(Event)
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            events.append(decoder.decode(line))
        except UNDECODABLE:
            if damaged is not None:
                damaged.append(number)
    return events


def write_events(path: Path, events: list[Event]) -> None:
    """Write events, sorted by time, as JSON lines."""
    lines = [msgspec.json.encode(event) for event in sorted(events, key=lambda event: event.t_ns)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
