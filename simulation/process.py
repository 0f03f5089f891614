"""A simulated process: it can be killed, stopped and told to go on, as by signals.

What runs in it is known by its context (``clock.OWNER``): its tasks, its timers and what arrives for
it. SIGKILL takes all of that away in the middle of whatever it was doing; no ``finally`` runs, as none
would. SIGSTOP leaves it where it is: what becomes due meanwhile runs, late, when it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from simulation.clock import OWNER, VirtualLoop

T = TypeVar("T")


class State(enum.Enum):
    """As ``ps`` tells it."""

    RUNNING = "running"
    STOPPED = "stopped"
    DEAD = "dead"


class Process:
    """One process on one host."""

    def __init__(self, loop: VirtualLoop, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.ahead_s = 0.0  # how far its host's clock is ahead
        self.state = State.RUNNING
        self._loop = loop
        self._backlog: list[asyncio.Handle] = []
        self.tasks: set[asyncio.Task[Any]] = set()  # that have not ended
        self._graves: list[asyncio.Handle] = []  # of a dead process; what is collected runs its `finally`
        self.at_death: list[Callable[[], None]] = []  # what the kernel does: sockets close, …
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, self)

    @property
    def alive(self) -> bool:
        """Whether it exists, running or stopped."""
        return self.state is not State.DEAD

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether a callback of this process may run now; if it must wait, it is kept."""
        if self.state is State.RUNNING:
            return True
        (self._backlog if self.state is State.STOPPED else self._graves).append(handle)
        return False

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in this process."""
        return self._loop.create_task(work, context=self.context)

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Let something arrive in this process."""
        if self.alive:
            self._loop.call_soon(callback, *args, context=self.context)

    def stop(self) -> None:
        """SIGSTOP."""
        if self.state is State.RUNNING:
            self.state = State.STOPPED

    def go_on(self) -> None:
        """SIGCONT."""
        if self.state is State.STOPPED:
            self.state = State.RUNNING
            backlog, self._backlog = self._backlog, []
            for handle in backlog:
                if not handle.cancelled():
                    self._loop._ready.append(handle)  # type: ignore[attr-defined]  # asyncio's own queue

    def kill(self) -> None:
        """SIGKILL."""
        if self.state is State.DEAD:
            return
        self.state = State.DEAD
        self._graves += self._backlog
        self._backlog = []
        for effect in self.at_death:
            effect()

    def bury(self) -> None:
        """After the end of the world: let what the process left behind be cancelled and collected."""
        self.state = State.RUNNING
        self._loop._ready.extend(self._graves + self._backlog)  # type: ignore[attr-defined]
        self._graves, self._backlog = [], []


def current() -> Process | None:
    """The process whose code runs now; None where the world's own does."""
    owner = OWNER.get()
    assert owner is None or isinstance(owner, Process)
    return owner
