"""What a destination's agent leaves to its successor while a server lacks memory.

Three things outlive an agent that is killed: the userfaultfd, which the container's init keeps; the log of
what the process did with its memory (``uffd_events.UffdEventLog``); and this record of what was missing when
the process was restored. Which pages have come since is to be seen in the process itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from quicferry.migration.memory.pagemap import Pages, numbers, runs_of

FILE = "unfinished.json"
EVENT_LOG = "unfinished.events"

Runs = list[tuple[int, int]]  # first page, pages


class SealedRound(NamedTuple):
    """Where the memory of a round is: which sealed memory that init keeps, from where, how many bytes."""

    memory: int
    offset: int
    size: int


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """A server that was restored without all of its memory; kept in the directory of its images."""

    epoch: int
    pid: int  # of the server, inside the container
    rounds: int  # of pre-copy
    missing: dict[int, Runs]  # by PID: what only the source has
    local: dict[int, Runs]  # what rounds of pre-copy have brought
    sealed: list[SealedRound] = []  # where the rounds are; empty: in files
    placed: bool = False  # all of it is in its place; the source may not know

    def write(self, images: Path) -> None:
        """Write the record, as a whole at once, to where ``read`` finds it. Raises ``OSError``."""
        draft = images / f"{FILE}.new"
        draft.write_bytes(msgspec.json.encode(self))
        draft.replace(images / FILE)


def read(images: Path) -> Unfinished | None:
    """The record that an agent left there; None when there is none."""
    try:
        return msgspec.json.decode((images / FILE).read_bytes(), type=Unfinished)
    except (OSError, msgspec.DecodeError):
        return None


def runs_by_pid(pages: Mapping[int, Pages]) -> dict[int, Runs]:
    """Sets of pages by PID, as runs: the form in which ``Unfinished`` is written."""
    return {pid: runs_of(these) for pid, these in pages.items()}


def pages_by_pid(runs: Mapping[int, Runs]) -> dict[int, Pages]:
    """Runs by PID, as sorted page numbers: the reverse of ``runs_by_pid``."""
    return {pid: numbers(these) for pid, these in runs.items()}
