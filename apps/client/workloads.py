"""Workloads: how a client's requests are spread over time.

A workload is a name and a coroutine that is given a ``LoadDriver`` and sends requests through it until
it is cancelled. It knows nothing of what a request is (``apps.workload``), of the transport, or of when the
load begins and ends, so every client honours every workload. Workloads may come from outside: entry points
of the group ``quicferry.workloads``, or plug-in files (``quicferry.plugins``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from quicferry import plugins
from quicferry.errors import InvalidInput

GROUP = "quicferry.workloads"  # of entry points, see quicferry.plugins
BURST_REQUESTS = 10


class LoadDriver(Protocol):
    """What a workload may do and know."""

    interval_s: float  # the mean time between two requests that was asked for; 0: as fast as answers come
    seed: str  # for ``random.Random``: of this run and this client

    def request(self) -> None:
        """Send one request. Does not wait."""

    @property
    def unanswered(self) -> int:
        """How many requests have no answer yet."""

    async def next_answer(self) -> None:
        """Wait until an answer comes."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A way to spread requests over time. ``drive`` runs until it is cancelled."""

    name: str
    summary: str  # one sentence
    drive: Callable[[LoadDriver], Awaitable[None]]


class Ticks:
    """Sleeps from one moment to the next, always ``interval_s`` apart.

    The moments are counted from the first: what one sleep was late, the next one is shorter, so that the
    mean rate is what was asked for on a busy machine, too.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due = asyncio.get_running_loop().time()

    async def next(self) -> None:
        """Sleep until the next moment; a moment that is past is not waited for."""
        self._due += self._interval_s
        await asyncio.sleep(max(0.0, self._due - asyncio.get_running_loop().time()))


async def _requests(load: LoadDriver) -> None:
    ticks = Ticks(load.interval_s)
    while True:
        load.request()
        if load.interval_s > 0:
            await ticks.next()
        else:
            await load.next_answer()


async def _bursts(load: LoadDriver) -> None:
    ticks = Ticks(load.interval_s * BURST_REQUESTS)
    while True:
        for _ in range(BURST_REQUESTS):
            load.request()
        if load.interval_s > 0:
            await ticks.next()
        else:
            await load.next_answer()
            while load.unanswered:
                await load.next_answer()


REQUESTS = Workload(
    name="requests",
    summary="One request every interval_ms, whatever becomes of the answers; back to back with 0.",
    drive=_requests,
)
BURSTS = Workload(
    name="bursts",
    summary=f"{BURST_REQUESTS} requests at once, then a pause; as many in the mean as interval_ms says.",
    drive=_bursts,
)


def table() -> dict[str, Workload]:
    """All workloads by name, those from outside included. Raises ``InvalidInput`` for a broken plug-in."""
    return plugins.table(GROUP, Workload, (REQUESTS, BURSTS), lambda workload: workload.name)


def names() -> tuple[str, ...]:
    """The names of all workloads."""
    return tuple(table())


def get(name: str) -> Workload:
    """The workload of that name. Raises ``InvalidInput``."""
    known = table()
    if name not in known:
        raise InvalidInput(f"there is no workload {name!r}", hint="choose from " + ", ".join(known))
    return known[name]
