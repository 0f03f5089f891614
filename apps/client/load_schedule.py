"""When a client sends requests, when it stops, and its account at the end: the same for every transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apps.client import workloads
from apps.client.load import Load
from apps.config import PATIENCES_MOST, ClientConfig
from apps.workload import RequestShape
from quicferry.events import EventLog
from quicferry.record import write_json


async def first(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


class LoadSchedule:
    """Calls ``request`` when the workload says so, until a line ``stop`` on stdin, its end, or SIGTERM.

    It is the ``LoadDriver`` of its workload. Raises ``InvalidInput`` for an unknown workload.
    """

    def __init__(self, config: ClientConfig, load: Load, request: Callable[[], None]) -> None:
        self._config = config
        self._load = load
        self.request = request
        self.interval_s = config.interval_ms / 1e3
        self.seed = f"{config.seed} {config.session}"
        self._workload = workloads.of_client(config.workload, config.session)
        #: sends an unreliable datagram; None: the transport has none
        self.send_datagram: Callable[[bytes], None] | None = None
        self.stopping = asyncio.Event()
        self._on_ask: Callable[[], None] | None = None

    def listen(self, on_ask: Callable[[], None] | None = None) -> None:
        """Watch stdin and SIGTERM for the word to stop, and for the word to ask the server to move."""
        self._on_ask = on_ask
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        loop.add_reader(sys.stdin.fileno(), self._stdin)

    def _stdin(self) -> None:
        read = os.read(sys.stdin.fileno(), 4096)
        words = read.split()
        if b"ask" in words and self._on_ask is not None:
            self._on_ask()
        if not read or b"stop" in words:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.stopping.set()

    async def run(
        self, closed: asyncio.Event, delay_s: float = 0.0, last_delay_s: float | None = None
    ) -> None:
        """Send requests until told to stop, then wait for open ones as long as the client's patience lasts.

        The patience begins anew, ``PATIENCES_MOST`` times in all, while bytes of what is open come or go.
        ``closed`` ends it early: nothing will be answered any more. The first request leaves after
        ``delay_s``: many clients with the same workload must not send at the same moment. With
        ``last_delay_s`` one more leaves so long after the word to stop.
        """
        driving = asyncio.create_task(self._drive(delay_s))
        await first(self.stopping, closed)
        driving.cancel()
        if last_delay_s is not None and not closed.is_set():
            await asyncio.sleep(last_delay_s)
            self.request()
        self._load.finish()
        for _ in range(PATIENCES_MOST):
            before = self._load.progress()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.patience_s):
                    await first(self._load.complete, closed)
                    return
            if self._load.progress() == before:
                return  # what is still open counts as lost

    async def _drive(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._workload.drive(self)

    def request_of(self, shape: RequestShape) -> None:
        """Send a request with sizes and a delay of its own."""
        self._load.shape = shape
        try:
            self.request()
        finally:
            self._load.shape = RequestShape()

    def datagram(self) -> None:
        """Send an unreliable datagram; over a transport without any, a request takes its place."""
        if self.send_datagram is None:
            self.request()
        else:
            self.send_datagram(self._load.next_datagram())

    def stalled(self, length_ms: float) -> None:
        """Note that a player had nothing to show for so long."""
        self._load.stalled(length_ms)

    def behind(self, late_s: float) -> None:
        """Note by how much what is sent now is later than the workload wants it."""
        self._load.behind(late_s)

    @property
    def bit_rate_mbps(self) -> float:
        """The bit rate of a video."""
        return self._config.bit_rate_mbps

    @property
    def unanswered(self) -> int:
        """How many requests have no answer yet."""
        return self._load.open_requests

    async def next_answer(self) -> None:
        """Wait until an answer comes."""
        self._load.answered.clear()
        await self._load.answered.wait()

    def conclude(self, events: EventLog, negotiated: Sequence[str] = ()) -> None:
        """Write the summary, and tell how the load ended."""
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
