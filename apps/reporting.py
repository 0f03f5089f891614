"""What a process of a run says on stdout: JSON lines, read by the run.

Clients print bare events. Programs that are also asked things (agents, the orchestrator, a baseline's
updater and routers) print ``{kind: value}``: their events as ``{"event": …}`` beside their answers.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import FerryError
from quicferry.events import Event, EventLog


def print_event(event: Event) -> None:
    """One event as a line on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


class EventPrinter:
    """Prints events; those of one turn of the event loop leave together, as hundreds of clients have many."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def __call__(self, event: Event) -> None:
        """Print an event at the end of this turn of the loop, which must run."""
        self._lines.append(msgspec.json.encode(event) + b"\n")
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Print what was not yet."""
        lines, self._lines = self._lines, []
        sys.stdout.buffer.write(b"".join(lines))
        sys.stdout.buffer.flush()


def tell(kind: str, value: Any) -> None:
    """One ``{kind: value}`` line on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode({kind: value}) + b"\n")
    sys.stdout.buffer.flush()


def event_log(vantage: str, path: str | None) -> EventLog:
    """A log whose events go to the file, or to stdout by ``tell`` when there is none."""

    def sink(event: Event) -> None:
        tell("event", event)

    return EventLog(vantage, Path(path)) if path is not None else EventLog(vantage, None, sink)


@contextmanager
def errors_to_stderr() -> Iterator[None]:
    """End the process with a ``FerryError``'s exit code, and its message and hint on stderr.

    stderr is a log in the run directory; its last line is what the run shows of a process that ended.
    """
    try:
        yield
    except FerryError as error:
        sys.stderr.write(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        raise SystemExit(error.exit_code) from error
