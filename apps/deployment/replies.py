"""What the long-lived programs of a deployment answer, and how often each of them was started.

Agents and orchestrator print lines: events, and answers to what they were told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from quicferry.errors import MigrationError
from quicferry.events import Event
from quicferry.experiment.context import Program, RunContext


class Replies:
    """The lines of an agent or the orchestrator: events are collected, answers are waited for."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._answers: list[tuple[str, Any]] = []
        self._come = threading.Condition()

    def line(self, line: bytes) -> None:
        """Take in one line: ``{kind: value}``."""
        try:
            (kind, value), *_ = msgspec.json.decode(line, type=dict[str, Any]).items()
        except (msgspec.DecodeError, ValueError):
            return  # not an answer: something that a library printed
        if kind == "event":
            self._context.collect(msgspec.convert(value, Event))
            return
        with self._come:
            self._answers.append((kind, value))
            self._come.notify_all()

    def forget(self) -> None:
        """Drop answers that nobody has waited for."""
        with self._come:
            self._answers.clear()

    def wait(
        self,
        program: Program,
        kinds: set[str],
        timeout_s: float,
        *,
        replaced: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Wait for the next answer of one of these kinds; others are left for those who wait for them.

        Raises ``MigrationError`` when the program ends, refuses, or is silent for too long. Its end
        is no failure while ``replaced`` says that another process takes or has taken its place.
        """
        waited_s = 0.0
        with self._come:
            while waited_s < timeout_s:
                for place, (kind, value) in enumerate(self._answers):
                    if kind in kinds:
                        del self._answers[place]
                        return dict(value)
                    if kind == "outcome" and kinds.isdisjoint({"ready"}):
                        del self._answers[place]
                        raise MigrationError(f"{program.name}: {value.get('error')}", hint=value.get("hint"))
                if self._come.wait(0.1):
                    continue
                waited_s += 0.1
                if program.process.poll() is not None and not replaced() and not self._answers:
                    raise MigrationError(
                        f"{program.name} ended: {program.last_words()}", hint=f"see {program.log.name}"
                    )
        raise MigrationError(f"{program.name} was silent for {timeout_s:g} s", hint=f"see {program.log.name}")


class Restarts:
    """How often a process was started: more than once when a fault has killed it."""

    def __init__(self) -> None:
        self.number = 0
        self._ending = False

    def name(self, name: str) -> str:
        """The name of the present process; each has a log of its own."""
        return f"{name}-{self.number + 1}" if self.number else name

    def end(self) -> None:
        """Note that the present process is about to be killed."""
        self._ending = True

    def begin(self) -> None:
        """Note that the next process is about to start."""
        self.number += 1

    @property
    def is_replaced(self) -> bool:
        """Whether the end of a process is part of a fault, and no failure."""
        return self._ending or self.number > 0
