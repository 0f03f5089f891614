"""An asyncio event loop whose clock jumps: no wall clock, no socket, no thread.

``BaseEventLoop`` waits in a selector until the next timer; here the clock is turned instead. Everything
else (tasks, futures, timeouts, locks) is asyncio's own and runs unchanged. Work that
is given to a thread is done at once, in place.

A callback belongs to the simulated process in whose context it was scheduled. That of a process that
is stopped waits until it goes on; that of one that was killed is never called.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Callable
from typing import Any, Protocol

START_S = 1000.0
NS_PER_S = 1_000_000_000
RESOLUTION_S = 1e-9  # a float's rounding at START_S is 1e-13


class Owner(Protocol):
    """What the loop needs of the process that a callback or a task belongs to."""

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """Its tasks that have not ended; the loop adds and removes them."""
        ...

    @property
    def ahead_s(self) -> float:
        """How far its host's clock is ahead of the true time."""
        ...

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether a callback may run now; one that must wait, the owner keeps."""
        ...


#: the owner of the callback that runs now; None for the world's own. ``process.current`` reads it
OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner", default=None)


class Kernel(Protocol):
    """The sockets of a world."""

    async def datagram_endpoint(
        self,
        factory: Callable[[], Any],
        *,
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
    ) -> tuple[Any, Any]:
        """As ``loop.create_datagram_endpoint``."""
        ...

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        """As ``loop.create_connection``: one attempt to connect."""
        ...


class Deadlock(Exception):
    """Somebody waits, and nothing will ever happen any more."""


class Clock:
    """Seconds and nanoseconds of CLOCK_MONOTONIC; where ``skewed``, as the running process's host has it."""

    def __init__(self) -> None:
        self.now_s = START_S  # the true time
        self.skewed = False

    @property
    def ahead_s(self) -> float:
        """How far the clock of whoever runs now is ahead of the true time."""
        owner = OWNER.get() if self.skewed else None
        return 0.0 if owner is None else owner.ahead_s

    def monotonic(self) -> float:
        """As ``time.monotonic``."""
        return self.now_s + self.ahead_s if self.skewed else self.now_s

    def monotonic_ns(self) -> int:
        """As ``time.monotonic_ns``."""
        return round(self.monotonic() * NS_PER_S)


class _Belongs(asyncio.Handle):
    """A callback that is run as its process's state allows."""

    __slots__ = ()
    _context: contextvars.Context

    def _run(self) -> None:
        owner = self._context.get(OWNER)
        if owner is None or owner.admits(self):
            super()._run()


class _TimerBelongs(_Belongs, asyncio.TimerHandle):
    """The same with a time."""

    __slots__ = ()


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. ``clock`` is what ``determinism`` gives to all code that asks for the time."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock or Clock()
        self._timers = 0
        # (time, number, handle): of two with the same time, the one that was set first comes first
        self._timed: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._nobody = contextvars.Context()
        self.kernel: Kernel | None = None  # what serves sockets, where the world has any
        self.readers: dict[Any, tuple[Callable[..., None], tuple[Any, ...]]] = {}  # simulated socket -> whom

    def time(self) -> float:
        clock = self.clock  # asked for very often: nothing is called where it is not needed
        return clock.monotonic() if clock.skewed else clock.now_s

    def add_reader(self, fd: Any, callback: Callable[..., None], *args: Any) -> None:  # type: ignore[override]
        self.readers[fd] = (callback, args)

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def _run_once(self) -> None:
        """One round, as ``BaseEventLoop`` has it: wait for what is next, and run all that is due.

        It waits by turning the clock. The queue of timers is compared by numbers, not by handles, which
        is a tenth of a play's time.
        """
        timed, ready = self._timed, self._ready  # type: ignore[attr-defined]  # asyncio's own queue
        while timed and timed[0][2].cancelled():
            heapq.heappop(timed)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timed:
                raise Deadlock("nothing is scheduled any more")
            self.clock.now_s = max(self.clock.now_s, timed[0][0])
        end_s = self.clock.now_s + RESOLUTION_S
        while timed and timed[0][0] < end_s:
            ready.append(heapq.heappop(timed)[2])
        for _ in range(len(ready)):  # what these schedule comes in the next round
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def forget_timers(self) -> None:
        """What was to come does not come any more."""
        self._timed.clear()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time has come."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def _call_soon(self, callback: Any, args: Any, context: contextvars.Context | None) -> asyncio.Handle:
        handle = _Belongs(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]  # asyncio's own queue
        return handle

    def call_at(  # type: ignore[override]  # asyncio's types tie callback and arguments together
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _TimerBelongs(when, callback, args, self, context)
        self._timers += 1
        # by the true time; ``when`` is the time of the caller's host
        at_s = when - self.clock.ahead_s if self.clock.skewed else when
        heapq.heappush(self._timed, (at_s, self._timers, timer))
        return timer

    def create_task(self, coro: Any, **keywords: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **keywords)
        context = keywords.get("context")
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks.add(task)
            task.add_done_callback(owner.tasks.discard)
        return task

    def physics(self, after_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call back what belongs to no process: what is under way arrives though its sender has died."""
        self.call_at(self.time() + after_s, callback, *args, context=self._nobody)

    def add_signal_handler(self, sig: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """No signals come but those of ``Process``, which nobody can handle."""

    async def create_datagram_endpoint(self, protocol_factory: Any, **keywords: Any) -> Any:  # type: ignore[override]
        assert self.kernel is not None, "a world without sockets"
        return await self.kernel.datagram_endpoint(protocol_factory, **keywords)

    async def create_connection(self, protocol_factory: Any, host: str, port: int, **_: Any) -> Any:  # type: ignore[override]
        assert self.kernel is not None, "a world without sockets"
        return await self.kernel.connect(protocol_factory, host, port)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # done at once
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # what asyncio does with an executor's error
            future.set_exception(error)
        return future
