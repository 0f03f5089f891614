"""The kinds of faults in the world of ownership, as a table: how often each is drawn, and how long it lasts.

A story is drawn from it, and needs no more: what a kind does is ``faults.ACTIONS``, under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What may be drawn of one kind of fault: ``seconds`` until it is mended, and whom it may hit."""

    title: str
    weight: int
    seconds: tuple[float, ...] = (0.0,)
    orchestrator_too: bool = False


_WHILE = (0.05, 0.3, 1.0, 3.0, 8.0)

KINDS: dict[str, Kind] = {
    "agent-killed": Kind("SIGKILL; started again later", 8, _WHILE, orchestrator_too=True),
    "agent-stopped": Kind("SIGSTOP, SIGCONT later", 5, _WHILE, orchestrator_too=True),
    "server-stopped": Kind("the server's process is paused", 2, (0.05, 0.3, 1.0)),
    "server-killed": Kind("the server's process is killed", 1),
    "edge-link-cut": Kind("the link between the edges, both ways", 6, _WHILE),
    "edge-link-cut-one-way": Kind("what one edge sends there", 3, _WHILE),
    "core-cut": Kind("the detour and the orchestrator's links", 3, _WHILE),
    "all-cut": Kind("no agent reaches another", 5, _WHILE),
    "disk-full": Kind("nothing can be written", 3, _WHILE, orchestrator_too=True),
    "short-write": Kind("one write is cut in half, without an error", 2),
    "power-lost": Kind("all of a host ends; what was not synced is gone", 2, _WHILE),
    "sync-lost": Kind("the same, and the disk had lied about the last fsync", 1, _WHILE),
    "torn-journal": Kind("SIGKILL in the middle of a write; started again", 3, _WHILE),
}
