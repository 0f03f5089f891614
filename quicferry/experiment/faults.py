"""Defines the faults: what can be made to go wrong in a move, when, and where the server must be then.

A fault is a *point* of the move and a *kind*. ``ROWS`` is the whole table. Whatever happens, the
server must run at one place of the row, no request may be lost, and the connections go on: the analysis
judges that from the captures. ``fault_kinds`` says what each kind does, ``fault_injector`` does it at
its point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from quicferry.errors import InvalidInput
from quicferry.experiment.fault_kinds import DESTINATION, KINDS, SOURCE, inter_edge_link
from quicferry.migration.engines.registry import (
    EngineEntry,
    ahead_engines,
    behind_engines,
    criu_engines,
    engines,
    engines_that,
)
from quicferry.model import Topology
from quicferry.spec import Fault, FaultKind, FaultPoint, RunSpec
from quicferry.strategies import StrategyRules

__all__ = [
    "DESTINATION",
    "ROWS",
    "SOURCE",
    "TRIGGERS",
    "FaultRow",
    "Trigger",
    "allowed_places",
    "check",
    "engines_of",
    "parse",
    "row_of",
]


class Trigger(NamedTuple):
    """What tells that a point is reached: this event of the agent of that part."""

    event: str
    part: str
    meaning: str
    engines: Callable[[], frozenset[str]] | None = None  # that have such a point; None: all


TRIGGERS: dict[FaultPoint, Trigger] = {
    FaultPoint.PREPARE: Trigger(
        "migration.prepare.started", DESTINATION, "the destination begins to get ready"
    ),
    FaultPoint.COPY: Trigger(
        "migration.precopy.round.complete", SOURCE,
        "the first round of memory was sent ahead, the server serves on", ahead_engines,
    ),
    FaultPoint.NOTICE: Trigger(
        "migration.notice.started", SOURCE, "both are ready, the clients are about to hear"
    ),
    FaultPoint.CHECKPOINT: Trigger(
        "migration.checkpoint.started", SOURCE, "the server is about to be frozen"
    ),
    FaultPoint.DUMP: Trigger(
        "migration.checkpoint.started", SOURCE,
        "CRIU has the server in its hands: a moment within 60 ms, drawn by the run's seed", criu_engines,
    ),
    FaultPoint.TRANSFER: Trigger(
        "migration.transfer.started", SOURCE, "the server is frozen, nothing was sent yet"
    ),
    FaultPoint.RESTORE: Trigger(
        "migration.restore.started", DESTINATION, "all of the state is there, the server is about to resume"
    ),
    FaultPoint.COMMIT: Trigger(
        "migration.commit.started", SOURCE, "the source knows that the destination serves"
    ),
    FaultPoint.PAGES: Trigger(
        "migration.pages.started", SOURCE,
        "the destination serves for good, the rest of its memory is on its way", behind_engines,
    ),
}  # fmt: skip


class FaultRow(NamedTuple):
    """One row of the table: where the server may be afterwards, and why."""

    point: FaultPoint
    kind: FaultKind
    places: tuple[str, ...]
    why: str

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.point}:{self.kind}"


_P, _K = FaultPoint, FaultKind
_HERE, _THERE, _EITHER = (SOURCE,), (DESTINATION,), (SOURCE, DESTINATION)
_NO_DIGEST = "without the end of the state and its digest the destination cannot resume"
_FOUND = f"it finds its container and its journal; {_NO_DIGEST}"
_NOT_ON_THE_PATH = "the two agents finish the move between themselves; it asks them when it is back"
_IN_TIME = "the move waits, or is called off when a deadline comes before the link"
_NO_WAY = "state takes no detour: the move is called off"
_BEFORE = (_P.PREPARE, _P.COPY, _P.NOTICE, _P.CHECKPOINT, _P.TRANSFER)  # before all of the state is there
_ANYWHERE = (*_BEFORE, _P.RESTORE, _P.COMMIT, _P.PAGES)


def _rows(kind: FaultKind, points: Sequence[FaultPoint], places: tuple[str, ...], why: str) -> list[FaultRow]:
    return [FaultRow(point, kind, places, why) for point in points]


ROWS: tuple[FaultRow, ...] = (
    *_rows(_K.DESTINATION_FULL, _BEFORE, _HERE, "what cannot be kept cannot be resumed"),
    FaultRow(
        _P.RESTORE, _K.DESTINATION_FULL, _EITHER, "the state is there already; an engine may need more room",
    ),
    FaultRow(_P.PAGES, _K.DESTINATION_FULL, _THERE, "pages go into the process, not into files"),
    *_rows(_K.DISK_FULL, _BEFORE, _HERE, "a step that cannot be written down is not taken"),
    FaultRow(
        _P.RESTORE, _K.DISK_FULL, _EITHER, "all that had to be written is; an engine may need more room",
    ),
    *_rows(_K.DISK_FULL, (_P.COMMIT, _P.PAGES), _THERE, "what comes later need not be on disk"),
    FaultRow(_P.RESTORE, _K.RESTORE_FAILS, _HERE, "the destination says: never in this epoch"),
    FaultRow(_P.PAGES, _K.RESTORE_FAILS, _THERE, "what it still needs of it, it has open"),
    FaultRow(_P.COPY, _K.IMAGE_CORRUPTED, _HERE, "the digest at the end of the copy does not match"),
    FaultRow(_P.TRANSFER, _K.IMAGE_CORRUPTED, _HERE, "the digest at the end of the transfer does not match"),
    FaultRow(_P.RESTORE, _K.IMAGE_CORRUPTED, _HERE, "whoever reads the state checks it once more"),
    FaultRow(
        _P.PAGES, _K.IMAGE_CORRUPTED, _THERE, "each run of pages has its digest, and is asked for again",
    ),
    *_rows(_K.LINK_CUT, _BEFORE, _EITHER, _IN_TIME),
    FaultRow(_P.RESTORE, _K.LINK_CUT, _THERE, "the source asks by the detour and hears that it serves"),
    FaultRow(_P.COMMIT, _K.LINK_CUT, _THERE, "the commit takes the detour"),
    FaultRow(_P.PAGES, _K.LINK_CUT, _THERE, "pages without which a server is lost take the detour"),
    *_rows(_K.LINK_LOST, _BEFORE, _HERE, _NO_WAY),
    FaultRow(
        _P.RESTORE, _K.LINK_LOST, _EITHER, "the source asks by the detour: it serves, or it never will",
    ),
    FaultRow(_P.COMMIT, _K.LINK_LOST, _THERE, "the commit takes the detour"),
    FaultRow(_P.PAGES, _K.LINK_LOST, _THERE, "pages without which a server is lost take the detour"),
    FaultRow(_P.PREPARE, _K.SOURCE_AGENT_KILLED, _EITHER, "the order is repeated, or nothing has happened"),
    *_rows(_K.SOURCE_AGENT_KILLED, (_P.COPY, _P.NOTICE, _P.CHECKPOINT), _HERE, _FOUND),
    FaultRow(
        _P.DUMP, _K.SOURCE_AGENT_KILLED, _EITHER,
        "CRIU goes on without it; the next agent waits for that, and a quick dump may be over and restored",
    ),
    FaultRow(_P.TRANSFER, _K.SOURCE_AGENT_KILLED, _HERE, _FOUND),
    FaultRow(
        _P.RESTORE, _K.SOURCE_AGENT_KILLED, _EITHER,
        "it asks the destination before it does anything: that serves, or never will",
    ),
    FaultRow(
        _P.COMMIT, _K.SOURCE_AGENT_KILLED, _THERE, "it asks the destination before it does anything",
    ),
    FaultRow(
        _P.PAGES, _K.SOURCE_AGENT_KILLED, _THERE, "it finds the stopped process and serves its memory on",
    ),
    *_rows(
        _K.DESTINATION_AGENT_KILLED, (*_BEFORE, _P.RESTORE), _HERE, "what had not resumed is thrown away"
    ),
    FaultRow(
        _P.COMMIT, _K.DESTINATION_AGENT_KILLED, _THERE,
        "its container serves on; the source asks until the agent is back",
    ),
    FaultRow(
        _P.PAGES, _K.DESTINATION_AGENT_KILLED, _THERE,
        "the container keeps the userfaultfd; the next agent goes on with it",
    ),
    FaultRow(_P.PREPARE, _K.ORCHESTRATOR_KILLED, _EITHER, "it calls off what it had not ordered yet"),
    *_rows(_K.ORCHESTRATOR_KILLED, _ANYWHERE[1:], _THERE, _NOT_ON_THE_PATH),
    FaultRow(_P.RESTORE, _K.CRIU_KILLED, _HERE, "what it has half made is thrown away"),
    *_rows(
        _K.CLIENT_SILENT, _ANYWHERE, _THERE, "no client holds a move up; it follows when it is back"
    ),
    FaultRow(_P.NOTICE, _K.CLIENT_REFUSING, _HERE, "when no client will follow, the move is called off"),
)  # fmt: skip

#: Memory is still at the source then, and crosses by a plain connection from one CRIU to another: it has no
#: digest, takes no detour, and ends with the agents, whose children both are.
_MEMORY_MISSING = (_P.RESTORE, _P.COMMIT, _P.PAGES)
_ENDS_PLAIN_PAGES = (
    *(_K.SOURCE_AGENT_KILLED, _K.DESTINATION_AGENT_KILLED),
    *(_K.LINK_CUT, _K.LINK_LOST, _K.IMAGE_CORRUPTED),
)

_BY_NAME = {row.name: row for row in ROWS}


def parse(words: str) -> Fault:
    """Read ``<point>:<kind>`` or ``<point>:<kind>=<seconds>``. Raises ``InvalidInput``."""
    name, given, duration = words.partition("=")
    row = _BY_NAME.get(name)
    if row is None:
        point = name.partition(":")[0]
        near = [known for known in _BY_NAME if known.startswith(f"{point}:")] or list(_BY_NAME)
        raise InvalidInput(f"there is no fault {words!r}", hint="there are " + ", ".join(near))
    seconds = KINDS[row.kind].seconds
    if given:
        if seconds is None or not re.fullmatch(r"\d+(\.\d+)?", duration) or not 0 < float(duration) <= 60:
            raise InvalidInput(
                f"the fault {name} cannot last {duration!r} seconds",
                hint="it lasts for good" if seconds is None else "give more than 0, at most 60",
            )
        seconds = float(duration)
    return Fault(point=row.point, kind=row.kind, seconds=seconds, words=words)


def engines_of(row: FaultRow) -> frozenset[str] | None:
    """The engines with which a fault can happen, and ends as its row says; None: all."""
    having = KINDS[row.kind].engines or TRIGGERS[row.point].engines
    able = having() if having is not None else None
    at_a_loss = _at_a_loss(row)
    return (frozenset(engines()) if able is None else able) - at_a_loss if at_a_loss else able


def _at_a_loss(row: FaultRow) -> frozenset[str]:
    """The engines as published that do nothing about that fault, as the published procedure does not."""
    if (row.point, row.kind) == (FaultPoint.RESTORE, FaultKind.IMAGE_CORRUPTED):
        return engines_that(lambda entry: entry.as_published)  # no file has a digest
    if row.places == _THERE and row.point in _MEMORY_MISSING and row.kind in _ENDS_PLAIN_PAGES:
        return engines_that(lambda entry: entry.as_published and entry.keeps_source)
    if row.kind is FaultKind.DISK_FULL and row.point in (FaultPoint.TRANSFER, FaultPoint.RESTORE):
        # the server has ended by then, and runc can write nothing when it is to bring it back
        return engines_that(lambda entry: entry.as_published and not entry.keeps_source)
    return frozenset()


def row_of(fault: Fault) -> FaultRow:
    """The row of the table for a fault."""
    return _BY_NAME[fault.name]


def check(spec: RunSpec, topology: Topology, engine: EngineEntry, rules: StrategyRules) -> None:
    """Raise ``InvalidInput`` when a fault of this run cannot happen in it."""
    if spec.moves > 1 and spec.faults:
        raise InvalidInput("a fault goes with one move only", hint="leave out --moves")
    for fault in spec.faults:
        if fault.point is FaultPoint.NOTICE and not rules.notice:
            raise InvalidInput(
                f"{fault.name} cannot happen: {spec.strategy} tells its clients nothing",
                hint="choose a strategy with notice, such as proactive-explicit",
            )
        if fault.kind is FaultKind.CLIENT_REFUSING and not rules.extended:
            raise InvalidInput(
                f"{fault.name} cannot happen: with {spec.strategy} a client cannot say that it refuses",
                hint="choose a strategy of the extension with notice, such as proactive-explicit",
            )
        able = engines_of(row_of(fault))
        if able is not None and engine.name not in able:
            raise InvalidInput(
                f"{fault.name} cannot happen: the engine {engine.name} has no such point, or is lost then",
                hint="choose --engine " + " or ".join(sorted(able)),
            )
        if KINDS[fault.kind].on_the_link and inter_edge_link(topology) is None:
            raise InvalidInput(
                f"{fault.name} cannot happen: in {topology.name} the edges have no link of their own",
                hint="choose the topology two_edges",
            )


def allowed_places(faults: Sequence[Fault]) -> list[str]:
    """Where the server may be after all of these faults; empty without any."""
    allowed = [set(row_of(fault).places) for fault in faults]
    if not allowed:
        return []
    # of faults that contradict each other, whichever comes first decides
    return sorted(set.intersection(*allowed) or set.union(*allowed))
