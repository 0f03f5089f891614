"""Workloads: how a client's requests are spread over time.

A workload is a name and a coroutine that is given a ``LoadDriver`` and sends requests through it until
it is cancelled. It knows nothing of what a request is (``apps.workload``), of the transport, or of when the
load begins and ends, so every client honours every workload. Workloads may come from outside: entry points
of the group ``quicferry.workloads``, or plug-in files (``quicferry.plugins``).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec

from apps.workload import RequestShape
from quicferry import plugins
from quicferry.errors import InvalidInput

GROUP = "quicferry.workloads"  # of entry points, see quicferry.plugins
BURST_REQUESTS = 10
SPORADIC_INTERVALS = 500
TELEMETRY_BYTES = 1000
PUSH_LEAST_S = 0.01  # between events, where no interval is asked for
PUSH_AHEAD_S = 0.3  # longer than most round trips, so that a poll is there when its event happens
SEGMENT_INTERVALS = 100
THOUGHT_INTERVALS = 7  # of exponential ones with a mean of one interval, one in a thousand is longer
SEGMENTS_AHEAD = 2
GAME_HZ = 60
BULK_BYTES = 128 << 10
BULK_AT_ONCE = 4


class LoadDriver(Protocol):
    """What a workload may do and know."""

    interval_s: float  # the mean time between two requests that was asked for; 0: as fast as answers come
    seed: str  # for ``random.Random``: of this run and this client

    @property
    def bit_rate_mbps(self) -> float:
        """The bit rate of a video."""

    def request(self) -> None:
        """Send one request. Does not wait."""

    def request_of(self, shape: RequestShape) -> None:
        """Send one request with sizes of its own, or one that the server answers after a while."""

    def datagram(self) -> None:
        """Send an unreliable datagram, which the server answers with one."""

    def stalled(self, length_ms: float) -> None:
        """Note that a player had nothing to show for so long."""

    @property
    def unanswered(self) -> int:
        """How many requests have no answer yet."""

    async def next_answer(self) -> None:
        """Wait until an answer comes."""

    def behind(self, late_s: float) -> None:
        """Note by how much what is sent now is later than the workload wants it."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A way to spread requests over time. ``drive`` runs until it is cancelled."""

    name: str
    summary: str  # one sentence
    useful: str = (
        "an answer that is complete; its first new byte beside it"  # what service it is to the client
    )
    drive: Callable[[LoadDriver], Awaitable[None]]
    #: Whether a request is open at some times and at others none is, or it is so at ``all`` or ``no`` times.
    open: Literal["some", "all", "no"] = "some"
    #: Intervals from one request, or burst of them, to the next: so long it asks for nothing.
    spacing_intervals: float = 0
    #: Polls worth so many seconds wait at the server at any time; 0: there are none.
    polls_held_s: float = 0
    #: Whether the next request waits for the answer to the last one.
    waits: bool = False


class Ticks:
    """Sleeps from one moment to the next, always ``interval_s`` apart.

    The moments are counted from the first: what one sleep was late, the next one is shorter, so that the
    mean rate is what was asked for on a busy machine, too. ``behind`` hears after each sleep by how many
    seconds it was late all the same: of a machine that cannot keep up, by more and more.
    """

    def __init__(self, interval_s: float, behind: Callable[[float], None] | None = None) -> None:
        self._interval_s = interval_s
        self._due = asyncio.get_running_loop().time()
        self._behind = behind

    async def next(self) -> None:
        """Sleep until the next moment; a moment that is past is not waited for."""
        clock = asyncio.get_running_loop().time
        self._due += self._interval_s
        await asyncio.sleep(max(0.0, self._due - clock()))
        if self._behind is not None:
            self._behind(clock() - self._due)


async def _next(load: LoadDriver, ticks: Ticks) -> None:
    """Sleep until the next moment; without an interval wait for an answer, and so go on back to back."""
    if load.interval_s > 0:
        await ticks.next()
    else:
        await load.next_answer()


async def _requests(load: LoadDriver) -> None:
    ticks = Ticks(load.interval_s, load.behind)
    while True:
        load.request()
        await _next(load, ticks)


async def _bursts(load: LoadDriver) -> None:
    ticks = Ticks(load.interval_s * BURST_REQUESTS, load.behind)
    while True:
        for _ in range(BURST_REQUESTS):
            load.request()
        if load.interval_s > 0:
            await ticks.next()
        else:
            await load.next_answer()
            while load.unanswered:
                await load.next_answer()


async def _think(load: LoadDriver) -> None:
    draw = random.Random(load.seed)
    while True:
        load.request()
        await load.next_answer()
        await asyncio.sleep(draw.expovariate(1 / load.interval_s) if load.interval_s else 0)


async def _sporadic(load: LoadDriver) -> None:
    ticks = Ticks(load.interval_s * SPORADIC_INTERVALS, load.behind)
    while True:
        load.request()
        await _next(load, ticks)


async def _back_to_back(load: LoadDriver) -> None:
    while True:
        load.request()
        await load.next_answer()


async def _telemetry(load: LoadDriver) -> None:
    ticks = Ticks(load.interval_s, load.behind)
    while True:
        load.request_of(RequestShape(request_bytes=TELEMETRY_BYTES, answer_bytes=0))
        await _next(load, ticks)


async def _push(load: LoadDriver) -> None:
    """Polls that the server answers when an event happens: always so many ahead that none is late."""
    interval_s = load.interval_s or PUSH_LEAST_S
    ahead = polls_ahead(get("push"), load.interval_s)
    ticks = Ticks(interval_s, load.behind)
    for number in range(1, ahead + 1):
        load.request_of(RequestShape(delay_ms=number * interval_s * 1e3))
    while True:
        await ticks.next()
        if load.unanswered < 2 * ahead:  # while nothing comes, no more is asked for
            load.request_of(RequestShape(delay_ms=ahead * interval_s * 1e3))


async def _video(load: LoadDriver) -> None:
    """A player: segments one after another, as many ahead as it keeps; it stands still when none is there."""
    clock = asyncio.get_running_loop().time
    segment_s = max(0.1, load.interval_s * SEGMENT_INTERVALS)
    shape = RequestShape(answer_bytes=round(load.bit_rate_mbps * 1e6 / 8 * segment_s))
    played_until_s: float | None = None  # when what has come is over; None: it has not begun
    while True:
        load.request_of(shape)
        await load.next_answer()
        while load.unanswered:
            await load.next_answer()
        now = clock()
        if played_until_s is not None and now > played_until_s:
            load.stalled((now - played_until_s) * 1e3)
            played_until_s = now
        played_until_s = (now if played_until_s is None else played_until_s) + segment_s
        await asyncio.sleep(max(0.0, played_until_s - SEGMENTS_AHEAD * segment_s - clock()))


async def _game(load: LoadDriver) -> None:
    ticks = Ticks(1 / GAME_HZ, load.behind)
    while True:
        load.datagram()
        await ticks.next()


async def _bulk(load: LoadDriver, shape: RequestShape) -> None:
    while True:
        while load.unanswered < BULK_AT_ONCE:
            load.request_of(shape)
        await load.next_answer()


async def _download(load: LoadDriver) -> None:
    await _bulk(load, RequestShape(answer_bytes=BULK_BYTES))


async def _upload(load: LoadDriver) -> None:
    await _bulk(load, RequestShape(request_bytes=BULK_BYTES, answer_bytes=0))


REQUESTS = Workload(
    name="requests",
    summary="One request every interval_ms, whatever becomes of the answers; back to back with 0.",
    drive=_requests,
    spacing_intervals=1,
)
BURSTS = Workload(
    name="bursts",
    summary=f"{BURST_REQUESTS} requests at once, then a pause; as many in the mean as interval_ms says.",
    drive=_bursts,
    spacing_intervals=BURST_REQUESTS,
)


#: What edge services carry. *Useful service* is what ``useful`` says of each.
OWN = (
    REQUESTS,
    BURSTS,
    Workload(
        name="think",
        summary="A request, its answer, and a pause: interval_ms in the mean, exponentially distributed.",
        drive=_think,
        spacing_intervals=THOUGHT_INTERVALS,
        waits=True,
    ),
    Workload(
        name="sporadic",
        summary=f"A request every {SPORADIC_INTERVALS} interval_ms: every 5 s, as published.",
        drive=_sporadic,
        spacing_intervals=SPORADIC_INTERVALS,
    ),
    Workload(
        name="back-to-back",
        summary="The next request leaves when the last one is answered, as published.",
        drive=_back_to_back,
        waits=True,
        open="all",
    ),
    Workload(
        name="video",
        summary=f"Segments of {SEGMENT_INTERVALS} interval_ms at bit_rate_mbps, {SEGMENTS_AHEAD} ahead; "
        "stalls are counted.",
        useful="bytes of a segment, in order",
        drive=_video,
        spacing_intervals=SEGMENT_INTERVALS,
        waits=True,
    ),
    Workload(
        name="push",
        summary="The server sends an event every interval_ms, by answering polls when it happens.",
        useful="an event that is complete; its first new byte beside it",
        drive=_push,
        polls_held_s=PUSH_AHEAD_S,
        spacing_intervals=1,
        open="all",
    ),
    Workload(
        name="telemetry",
        summary=f"The client uploads {TELEMETRY_BYTES} bytes every interval_ms.",
        useful="an upload that the service has acknowledged",
        drive=_telemetry,
        spacing_intervals=1,
    ),
    Workload(
        name="game",
        summary=f"Unreliable datagrams, {GAME_HZ} per second each way; over TCP requests take their place.",
        useful="a datagram",
        drive=_game,
        open="no",
    ),
    Workload(
        name="download",
        summary=f"Answers of {BULK_BYTES >> 10} KiB without a pause, {BULK_AT_ONCE} at once.",
        useful="bytes of the download, in order",
        drive=_download,
        open="all",
    ),
    Workload(
        name="upload",
        summary=f"Requests of {BULK_BYTES >> 10} KiB without a pause, {BULK_AT_ONCE} at once.",
        useful="upload bytes that the service has acknowledged",
        drive=_upload,
        open="all",
    ),
)


def of_client(words: str, session: str) -> Workload:
    """The workload of one client: of several that are joined by ``+`` they take one each, in turn.

    ``session`` ends in the client's number. Raises ``InvalidInput`` for a name that there is not.
    """
    kinds = [get(name) for name in words.split("+")]
    number = session.rpartition("-")[2]
    return kinds[(int(number) - 1) % len(kinds) if number.isdigit() else 0]


def polls_ahead(workload: Workload, interval_s: float) -> int:
    """How many polls of this workload wait at the server at any time; 0 of most."""
    held_s = workload.polls_held_s
    return max(2, math.ceil(held_s / (interval_s or PUSH_LEAST_S))) if held_s else 0


def longest_pause_s(words: str, interval_ms: float) -> float:
    """So long a client with one of these workloads, joined by ``+``, asks for nothing although all is well.

    Raises ``InvalidInput`` for a name that there is not.
    """
    return max(get(name).spacing_intervals for name in words.split("+")) * interval_ms / 1e3


def table() -> dict[str, Workload]:
    """All workloads by name, those from outside included. Raises ``InvalidInput`` for a broken plug-in."""
    return plugins.table(GROUP, Workload, OWN, lambda workload: workload.name)


def names() -> tuple[str, ...]:
    """The names of all workloads."""
    return tuple(table())


def get(name: str) -> Workload:
    """The workload of that name. Raises ``InvalidInput``."""
    known = table()
    if name not in known:
        raise InvalidInput(f"there is no workload {name!r}", hint="choose from " + ", ".join(known))
    return known[name]
