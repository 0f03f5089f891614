"""The steps of a move as tables: one for each side, and one for the orchestrator that looks on.

Theory of operation. A move must end with the server at the source or at the destination: never at
both, never at neither. Messages may be lost at any point, so neither side may guess:

- Until the last message of the transfer (End) leaves the source, the destination has no digest and
  cannot resume. The source may roll back on its own (CHECKPOINT, TRANSFER → ABORT).
- From then on (RESTORE) a failure decides nothing. The source asks the destination, whose word is
  final: "serves" (→ COMMIT) or "never will" (→ ABORT).
- A destination that is about to resume, with all of the state there and checked, may ask for the commit
  (asked, → COMMIT): the source's record and message cross while the server resumes. The server hears of it
  only after it has resumed, so one that fails to can still be given back: "never will" (→ ABORT).
- If no word comes, clocks decide. The destination's *server* has a lease (CLOCK_MONOTONIC, see
  ``serving_lease``): it does not resume after its first moment, and holds itself back from its second on
  unless it has heard of the commit. The source rolls back only after that.
- In COMMIT the source gives nothing up until the destination's server has heard of the commit, and never
  serves again on its own account: only the destination's word that its server is ended leads back
  (→ ABORT). A server that knows of the commit has no lease any more.
- A destination in COMMIT asks the source until it knows: committed (→ MOVED), or taken back (expired, →
  ABORT). Its server, held back or not, waits for that.

So there are never two servers. There is none only while the source cannot reach a destination that
has asked for the commit or resumed, and whose lease is over; both ask until they can.

A destination that finds within the lease that the source's agent is gone (connection refused) keeps its
server: the one there is frozen, and an agent that is started again asks before it thaws it.

An engine that leaves memory at the source (post-copy, hybrid) has its point of no return there, too,
but the destination's server is not whole yet: only the source has the rest of its memory. The source
keeps serving it after the commit, over as many streams as it takes, until the destination has said
that it has all (→ MOVED). If it cannot have it within ``pages_s``, the service is lost, and that is
what is said (→ LOST): what the server did meanwhile is in memory that cannot be put together again.

The tables give an answer for every signal in every step: a next step, ``SAME`` (a repetition or a
message that comes too late; nothing happens) or ``REFUSE`` (it cannot happen; the machine raises).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from quicferry.errors import MigrationError


class Step(enum.StrEnum):
    """Where a move is, seen from one party."""

    IDLE = "idle"
    PREPARING = "preparing"
    READY = "ready"  # source: clients are being told; destination: waits for the state
    CHECKPOINT = "checkpoint"  # the server is frozen, its state is being taken
    TRANSFER = "transfer"
    RESTORE = "restore"  # the destination has all it needs to resume
    COMMIT = "commit"  # the destination serves, or is about to; the source gives up
    ABORT = "abort"  # source: the server is being brought back; destination: all is being thrown away
    MOVED = "moved"  # the end: the destination serves
    STAYED = "stayed"  # the end: the source serves
    LOST = "lost"  # the end: the server could not be brought back, or not given all its memory


class Signal(enum.StrEnum):
    """What advances a move."""

    ORDERED = "ordered"  # an order with a new epoch
    PREPARED = "prepared"
    GO = "go"  # source: freeze; destination: Begin has come
    TAKEN = "taken"  # the first chunk of the checkpoint is there
    SENT = "sent"  # source: End is about to leave; destination: End has come and agrees
    ASKED = "asked"  # source: the destination is about to resume, and asks for the commit
    RESUMED = "resumed"  # the destination serves (at the source: it says so)
    ABORTED = "aborted"  # the destination says: never in this epoch (to the destination: asked to abort)
    FAILED = "failed"  # an error, a deadline or a broken connection
    EXPIRED = "expired"  # source: the lease is; destination: the same, or (after RESUMED) taken back
    SETTLED = "settled"  # what the step had to do is done


class Mark(enum.Enum):
    """An entry of a table that is no step."""

    SAME = "same"
    REFUSE = "refuse"


SAME, REFUSE = Mark.SAME, Mark.REFUSE
Row = Mapping[Signal, "Step | Mark"]
Table = Mapping[Step, Row]


def _row(*, same: str = "", **goes: Step) -> Row:
    """A row: the signals that lead on, those that change nothing; all others are refused."""
    row: dict[Signal, Step | Mark] = dict.fromkeys(Signal, REFUSE)
    row.update(dict.fromkeys(map(Signal, same.split()), SAME))
    row.update({Signal(name): step for name, step in goes.items()})
    return row


_S = Step

SOURCE: Table = {
    _S.IDLE: _row(ordered=_S.PREPARING),
    _S.PREPARING: _row(prepared=_S.READY, failed=_S.ABORT, aborted=_S.ABORT),
    _S.READY: _row(same="prepared", go=_S.CHECKPOINT, failed=_S.ABORT, aborted=_S.ABORT),
    _S.CHECKPOINT: _row(taken=_S.TRANSFER, failed=_S.ABORT, aborted=_S.ABORT),
    _S.TRANSFER: _row(same="taken", sent=_S.RESTORE, failed=_S.ABORT, aborted=_S.ABORT),
    # a failure decides nothing here: ask, or wait for the fence
    _S.RESTORE: _row(same="failed", asked=_S.COMMIT, resumed=_S.COMMIT, aborted=_S.ABORT, expired=_S.ABORT),
    # no clock and no failure leads back from here, only the destination's word; expired: the
    # destination took over, but not all of the memory that was still here got there
    _S.COMMIT: _row(same="failed asked resumed", settled=_S.MOVED, aborted=_S.ABORT, expired=_S.LOST),
    _S.ABORT: _row(same="aborted", settled=_S.STAYED, failed=_S.LOST),
    _S.MOVED: _row(same="failed resumed settled", ordered=_S.PREPARING),
    _S.STAYED: _row(same="failed aborted settled", ordered=_S.PREPARING),
    _S.LOST: _row(same="failed aborted", ordered=_S.PREPARING),
}

DESTINATION: Table = {
    # an abort may overtake the order it is about: it counts, and the order is refused when it comes
    _S.IDLE: _row(ordered=_S.PREPARING, aborted=_S.STAYED),
    _S.PREPARING: _row(prepared=_S.READY, failed=_S.ABORT, aborted=_S.ABORT),
    _S.READY: _row(same="prepared", go=_S.TRANSFER, failed=_S.ABORT, aborted=_S.ABORT),
    # unused: the destination takes no checkpoint
    _S.CHECKPOINT: _row(),
    _S.TRANSFER: _row(same="taken", sent=_S.RESTORE, failed=_S.ABORT, aborted=_S.ABORT, expired=_S.ABORT),
    _S.RESTORE: _row(resumed=_S.COMMIT, failed=_S.ABORT, aborted=_S.ABORT, expired=_S.ABORT),
    # it serves: a broken stream is no reason to stop, an abort is answered with "serves"
    _S.COMMIT: _row(same="failed aborted resumed", settled=_S.MOVED, expired=_S.ABORT),
    _S.ABORT: _row(same="aborted failed expired", settled=_S.STAYED),
    _S.MOVED: _row(same="failed aborted settled expired", ordered=_S.PREPARING),
    _S.STAYED: _row(same="failed aborted settled expired", ordered=_S.PREPARING),
    # unused: what the destination throws away was never its own
    _S.LOST: _row(),
}

ORCHESTRATOR: Table = {
    _S.IDLE: _row(ordered=_S.PREPARING),
    _S.PREPARING: _row(prepared=_S.READY, failed=_S.ABORT),
    # one step for all that the source does: the orchestrator is not on the critical path
    _S.READY: _row(go=_S.RESTORE, failed=_S.ABORT),
    _S.CHECKPOINT: _row(),
    _S.TRANSFER: _row(),
    # the source does not answer: ask both until somebody knows
    _S.RESTORE: _row(same="failed", resumed=_S.MOVED, aborted=_S.STAYED, expired=_S.LOST),
    _S.COMMIT: _row(),
    _S.ABORT: _row(same="failed", settled=_S.STAYED),
    _S.MOVED: _row(ordered=_S.PREPARING),
    _S.STAYED: _row(ordered=_S.PREPARING),
    _S.LOST: _row(ordered=_S.PREPARING),
}

#: steps in which the server runs at that side, as far as that side is concerned
SERVES_AT_SOURCE = frozenset({_S.IDLE, _S.PREPARING, _S.READY, _S.STAYED})
SERVES_AT_DESTINATION = frozenset({_S.COMMIT, _S.MOVED})
ENDS = frozenset({_S.MOVED, _S.STAYED, _S.LOST})


class MoveMachine:
    """One party's position in its table."""

    def __init__(self, table: Table, party: str, step: Step = Step.IDLE) -> None:
        self._table = table
        self.party = party
        self.step = step

    def take(self, signal: Signal) -> Step:
        """Go on and return the step that is reached. Raises ``MigrationError`` for a refused signal."""
        answer = self._table[self.step][signal]
        if answer is REFUSE:
            raise MigrationError(
                f"{self.party}: {signal} cannot happen in step {self.step}",
                hint="a move is in progress or its messages came out of order; ask `Status`",
            )
        if isinstance(answer, Step):
            self.step = answer
        return self.step

    @property
    def is_over(self) -> bool:
        """Whether no move is in progress."""
        return self.step is Step.IDLE or self.step in ENDS
