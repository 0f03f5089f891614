"""What is right of every run, whatever its axes: a table of rules over what was seen of it.

A rule looks at an ``Observation`` and says in words what is wrong, or nothing. The kind of a complaint is
the rule's name, for failures with the error in it (numbers left out), so that two runs with the same
fault can be told from two with different ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from proof.explore import overhead
from proof.explore.load import too_much
from quicferry.errors import EXIT_CODES
from quicferry.experiment import faults
from quicferry.experiment.itinerary import stops
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from session.request import parts_of

REFUSED_AT_ONCE_S = 2.0  # of the process's own time
LOG_TOLERANCE_MS = 1.0
PLAIN_RESPONSE_BYTES = 1000  # fits in one packet: complete when its first byte is there
NO_MOMENT = "in which the move could begin"  # experiment.request_watch
#: Warnings of the analysis that are never right. What only a slow machine brings is not among them.
NEVER = re.compile(
    r"key and packet number|two servers|could not be injected|closed early|"
    r"but only \d+ crossed|could not be decrypted|grew from|did not survive"
)
#: What the analysis says where there was no service to wait for.
IDLE = re.compile(r"nothing was under way|asked nothing (there|since)")


class Complaint(NamedTuple):
    """Something that is wrong with a run."""

    kind: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen of one command line from outside."""

    spec: RunSpec | None  # None: the request is to be refused
    status: int | None  # None: it had to be ended
    elapsed_s: float
    cpu_s: float  # of the command itself
    stderr: str
    result: RunResult | None
    built: bool = False  # whether a run directory was begun
    incomplete: tuple[str, ...] = ()  # what the run directory lacks
    left: tuple[str, ...] = ()  # processes, mounts, files that outlived the run
    traces: Mapping[str, str] = field(default_factory=dict)  # log file -> the last line of a traceback


class Judged(NamedTuple):
    """A run that came to a result."""

    seen: Observation
    result: RunResult
    spec: RunSpec

    @property
    def carried(self) -> bool:
        """Whether network and machine carry what the clients ask for."""
        return too_much(self.spec) is None

    @property
    def all_can_follow(self) -> bool:
        """Whether each client without the extension hears that it is to connect anew.

        It is told once, by a CONNECTION_CLOSE that may be lost, or go to an address that it has left.
        """
        spec = self.spec
        may_be_lost = spec.loss_percent or spec.corrupt_percent or spec.mobility == "together"
        return not (spec.plain_clients and may_be_lost)

    @property
    def to_be_measured(self) -> bool:
        """A success that says something: the link carried what was offered."""
        return self.result.outcome == "succeeded" and self.carried


Rule = Callable[[Judged], Iterator[str]]
UNSERVED = "no useful service from"  # words of a run: by nobody who was to be served at the new place


def complaints(seen: Observation) -> list[Complaint]:
    """Everything that is wrong with a run; nothing is as it should be."""
    found = list(_from_outside(seen))
    if seen.result is None or seen.spec is None or seen.status not in (0, 1, 3) or not seen.built:
        return found
    judged = Judged(seen, seen.result, seen.spec)
    for name, rule in RULES.items():
        found += [Complaint(name, words) for words in rule(judged)]
    return found


def without_numbers(words: str) -> str:
    """Words in which all that differs from run to run is left out, to compare kinds of failures."""
    words = re.sub(r"\[?[0-9a-f]*:[0-9a-f:]+\]?:\d+|\d+(\.\d+)+(:\d+)?|\d+", "N", words)
    return re.sub(r"\s+", " ", words).strip()[:160]


def _from_outside(seen: Observation) -> Iterator[Complaint]:
    if seen.status is None:
        yield Complaint("hung", f"the command had to be ended after {seen.elapsed_s:.0f} s")
        return
    if "Traceback (most recent call last)" in seen.stderr or "internal error" in seen.stderr:
        last = next((line for line in seen.stderr.splitlines() if "internal error" in line), "a traceback")
        yield Complaint(f"crash: {without_numbers(last)}", last)
        return
    yield from (Complaint("left behind", words) for words in seen.left)
    if seen.status in (2, 127):
        yield from _refusal(seen)
        if seen.spec is not None and seen.status == 2:
            yield Complaint("refused", f"a valid request was refused: {_last_line(seen.stderr)}")
    elif seen.spec is None:
        yield Complaint("not refused", f"exit status {seen.status} for a request that makes no sense")
    elif seen.status not in (0, 1, 3):
        yield Complaint("exit status", f"exit status {seen.status}: {_last_line(seen.stderr)}")
    elif seen.result is None:
        yield Complaint("no result", f"exit status {seen.status} and no JSON: {_last_line(seen.stderr)}")
    elif EXIT_CODES.get(seen.result.outcome) != seen.status:
        yield Complaint("exit status", f"exit status {seen.status} for a run that {seen.result.outcome}")


def _refusal(seen: Observation) -> Iterator[Complaint]:
    if "hint:" not in seen.stderr and "Usage:" not in seen.stderr:
        yield Complaint("refusal", f"refused without a hint: {_last_line(seen.stderr)}")
    if seen.built:
        yield Complaint("refusal", "a run directory was begun before the request was refused")
    if seen.status == 2 and seen.cpu_s > REFUSED_AT_ONCE_S:
        yield Complaint("refusal", f"refused after {seen.cpu_s:.1f} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _succeeds(run: Judged) -> Iterator[str]:
    if run.result.outcome == "succeeded" or not run.carried:
        return
    if not run.all_can_follow and (run.result.outcome == "degraded" or UNSERVED in str(run.result.error)):
        return
    # a transfer that is under way the whole time leaves no pause: how long it takes, no request can know
    never_pauses = run.spec.move_when == "pause" and (run.spec.download_mib or run.spec.upload_mib)
    # names that are lost in a burst are asked for again seconds later, and no request leaves meanwhile
    asks_names = run.spec.move_when == "request" and run.spec.baseline is not None and run.spec.loss_percent
    if not ((never_pauses or asks_names) and NO_MOMENT in str(run.result.error)):
        yield str(run.result.error)


def _nothing_lost(run: Judged) -> Iterator[str]:
    if run.result.requests_duplicated:
        yield f"{run.result.requests_duplicated} requests were obeyed twice"
    if not run.carried:
        return
    if run.result.requests_lost and run.all_can_follow:
        yield f"{run.result.requests_lost} of {run.result.requests_sent} requests were lost"
    if run.result.state_ok is False:
        yield "the service's state did not survive"
    if run.result.outcome == "succeeded" and not run.result.bytes_verified and run.spec.response_bytes:
        yield f"{run.result.bytes_verified} bytes were verified"
    yield from (warning for warning in run.result.warnings if "not verified" in warning)


def _one_owner(run: Judged) -> Iterator[str]:
    if run.spec.baseline is not None or run.spec.mobility == "alone" or not run.to_be_measured:
        return
    places = faults.allowed_places(run.spec.faults) or [_last_stop(run.spec)]
    if run.result.served_by not in places:
        yield f"the server is at {run.result.served_by}, not at {' or '.join(places)}"


def _last_stop(spec: RunSpec) -> str:
    """Where the server is to be at the end, in the words of ``RunResult.served_by``."""
    topology = parts_of(spec).topology
    last = stops(topology, spec)[-1]
    return next((part for part in ("source", "destination") if topology.parts[part] == last), last)


def _measured(run: Judged) -> Iterator[str]:
    if run.spec.baseline is not None or run.spec.faults or not run.to_be_measured:
        return
    if run.spec.moves > 1 and len(run.result.moves) != run.spec.moves:
        yield f"{len(run.result.moves)} of {run.spec.moves} moves"
    if any(map(IDLE.search, run.result.warnings)):
        return
    missing = [str(move.number) for move in run.result.moves if move.service_migration_time_ms is None]
    if missing:
        yield f"move {', '.join(missing)} of {run.spec.moves} has no service-migration time"
    elif run.result.service_migration_time_ms is None:
        yield "no service-migration time"


def _log_agrees(run: Judged) -> Iterator[str]:
    spec, result = run.spec, run.result
    plain = spec.response_bytes <= PLAIN_RESPONSE_BYTES and not (spec.download_mib or spec.upload_mib)
    capture, log = result.service_migration_time_ms, result.log_service_migration_time_ms
    one = spec.clients == 1 and spec.moves == 1
    if not (plain and one) or capture is None or not run.to_be_measured:
        return
    if log is None:
        yield "the capture has a service-migration time, the client's log has none"
    elif abs(capture - log) > LOG_TOLERANCE_MS and not _says_why(result):
        yield f"capture {capture:.1f} ms, client's log {log:.1f} ms, and the result does not say why"


def _says_why(result: RunResult) -> bool:
    return any("log says" in warning for warning in result.warnings)


def _overhead(run: Judged) -> Iterator[str]:
    if run.to_be_measured:
        words = overhead.too_long(run.spec, run.result)
        if words:
            yield words


def _warnings(run: Judged) -> Iterator[str]:
    yield from (warning for warning in run.result.warnings if NEVER.search(warning))


def _logs(run: Judged) -> Iterator[str]:
    yield from (f"a traceback in {name}: {last}" for name, last in run.seen.traces.items())


def _complete(run: Judged) -> Iterator[str]:
    if run.seen.incomplete:
        yield "the run directory lacks " + ", ".join(run.seen.incomplete)


RULES: dict[str, Rule] = {
    "failed": _succeeds,
    "lost": _nothing_lost,
    "owner": _one_owner,
    "not measured": _measured,
    "log": _log_agrees,
    "overhead": _overhead,
    "warning": _warnings,
    "traceback": _logs,
    "incomplete": _complete,
}
#: Rules of which two complaints are the same fault only when their words are, too.
BY_WORDS = ("failed", "warning", "traceback", "refused", "left behind", "incomplete", "refusal")


def kind_of(complaint: Complaint) -> str:
    """What two runs with the same fault have in common."""
    if complaint.kind in BY_WORDS:
        return f"{complaint.kind}: {without_numbers(complaint.words)}"
    return complaint.kind
