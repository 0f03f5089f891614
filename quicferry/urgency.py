"""While a server stands still, whoever brings it on its way does not wait for a processor.

A hand-off of some milliseconds is a row of wake-ups: server, agent, agent, server. Whoever wakes on a busy
processor waits until the scheduler takes it from another, several times in a row. So, for the time between
the freeze and the resume, the agent's threads and the thread of its server are of the real-time class
(SCHED_RR), in its lowest priority: below the emulated links, whose frames they wait for.

It ends in two ways, neither of which needs the other: the agent takes it back when its part is over, or
after LONGEST_S; and a server gives it back itself (``calm``) when it has answered the order that it was for.
From a server whose agent was killed before it gave that order, the agent's successor takes it. Where the
kernel does not allow it, the move goes on without.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LONGEST_S = 1.0  # a standstill that takes longer has other reasons
PRIORITY = 1


class Urgency:
    """The haste of one host's agent and server, within a running event loop.

    ``server_pid``: the server's process as this one knows it. Without, all of it does nothing: for agents
    that share their process with others.
    """

    def __init__(self, server_pid: Callable[[], int | None] | None = None) -> None:
        self._server_pid = server_pid
        self._hastened: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The server is about to stand still. Nothing when that was said already."""
        if self._server_pid is None or self._timer is not None:
            return
        self._timer = asyncio.get_running_loop().call_later(LONGEST_S, self.end)
        threads = [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
        if (server := self._server_pid()) is not None:
            threads.append(server)  # its other threads have no part in it
        for thread in threads:
            # it has ended, or may not be hastened; whom a hastened one starts is not
            with suppress(OSError):
                os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
                self._hastened.append(thread)

    def take_back(self) -> None:
        """Calm the server of an agent that is no more."""
        if self._server_pid is not None and (server := self._server_pid()) is not None:
            calm(server)

    def end(self) -> None:
        """It serves again, or somewhere else, or never will; may be said at any time."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        hastened, self._hastened = self._hastened, []
        for thread in hastened:
            calm(thread)


def calm(thread: int = 0) -> None:
    """Take the real-time class from a thread that has it; 0 is the caller's."""
    with suppress(OSError):  # it has ended
        if os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR:
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
