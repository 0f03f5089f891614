"""When a client asks, when it stops, and what it says at the end: the same for every transport."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apps.client.load import Load
from apps.config import ClientConfig
from quicferry.events import EventLog
from quicferry.record import write_json


async def first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


class LoadSchedule:
    """Calls ``request`` at the pace asked for, until a line ``stop`` on stdin, its end, or SIGTERM."""

    def __init__(self, config: ClientConfig, load: Load, request: Callable[[], None]) -> None:
        self._config = config
        self._load = load
        self._request = request
        self.stopping = asyncio.Event()

    def listen(self) -> None:
        """Hear when to stop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        loop.add_reader(sys.stdin.fileno(), self._stdin)

    def _stdin(self) -> None:
        line = sys.stdin.buffer.readline()
        if not line or line.strip() == b"stop":
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.stopping.set()

    async def run(
        self, closed: asyncio.Event, delay_s: float = 0.0, last_delay_s: float | None = None
    ) -> None:
        """Ask until told to stop, then wait for what is open as long as the client's patience lasts.

        ``closed`` ends it early: nothing will be answered any more. The first request leaves after
        ``delay_s``: many clients that ask at the same pace must not do so at the same moment. With
        ``last_delay_s`` one more leaves so long after the word to stop.
        """
        ticker = asyncio.create_task(self._tick(delay_s))
        await first(self.stopping, closed)
        ticker.cancel()
        if last_delay_s is not None and not closed.is_set():
            await asyncio.sleep(last_delay_s)
            self._request()
        self._load.finish()
        try:
            async with asyncio.timeout(self._config.patience_s):
                await first(self._load.complete, closed)
        except TimeoutError:
            pass  # what is still open counts as lost

    async def _tick(self, delay_s: float) -> None:
        """Requests at a fixed pace, whatever happens to their answers; 0 is back to back."""
        loop = asyncio.get_running_loop()
        interval = self._config.interval_ms / 1e3
        await asyncio.sleep(delay_s)
        due = loop.time()
        while True:
            if interval > 0:
                self._request()
                due += interval
                await asyncio.sleep(max(0.0, due - loop.time()))
            else:
                self._load.answered.clear()
                self._request()
                await self._load.answered.wait()

    def conclude(self, events: EventLog, negotiated: Sequence[str] = ()) -> None:
        """Write the summary and say how the load ended."""
        summary = self._load.summary()
        summary.negotiated = list(negotiated)
        events.emit(
            "client.state.checked",
            ok=summary.state_ok,
            expected=summary.responses,
            seen=summary.state_detail,
        )
        write_json(Path(self._config.summary), summary)
        events.emit("client.done", sent=summary.requests_sent, lost=summary.requests_lost)
