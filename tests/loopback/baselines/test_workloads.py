"""Every client honours the workload, whatever it speaks: real processes over the loopback addresses."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from apps.client.workloads import BURST_REQUESTS, PUSH_AHEAD_S
from apps.config import ClientConfig
from baselines.client_migration.client import MovingClientConfig
from baselines.quic_reconnect.config import ReconnectConfig
from baselines.tcp_dns.config import TcpClientConfig
from quicferry.events import Event
from tests.baseline_support import LoopbackRun, loopback_run

INTERVAL_MS = 40.0
TCP_SERVER, QUIC_SERVER = "baselines.tcp_dns.server", "apps.server.server"


class Pair(NamedTuple):
    """A server and a client that belong together."""

    server: str
    client: str
    config: type[msgspec.Struct]
    settings: dict[str, object]


PAIRS = {
    "quic": Pair(QUIC_SERVER, "apps.client.client", ClientConfig, {}),
    "many": Pair(QUIC_SERVER, "apps.client.multi_client", ClientConfig, {"clients": 2}),
    "moving": Pair(
        QUIC_SERVER,
        "baselines.client_migration.client",
        MovingClientConfig,
        {"first": "127.0.0.1", "second": "127.0.0.2", "extension": False},
    ),
    "reconnecting": Pair(QUIC_SERVER, "baselines.quic_reconnect.client", ReconnectConfig, {}),
    "tcp": Pair(TCP_SERVER, "baselines.tcp_dns.client", TcpClientConfig, {}),
}


async def sent(it: LoopbackRun, pair: Pair, workload: str, count: int) -> list[Event]:
    """The first requests of (the first) client."""
    await it.server(1, pair.server)
    await it.client(pair.client, pair.config, workload=workload, interval_ms=INTERVAL_MS, **pair.settings)
    await it.until("client.request.sent", count)
    summary = await it.finish()
    assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
    assert summary.state_ok, summary.state_detail
    return it.seen("client.request.sent")


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_bursts_are_bursts(tmp_path: Path, pair: Pair) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            requests = (await sent(it, pair, "bursts", 2 * BURST_REQUESTS))[: 2 * BURST_REQUESTS]
            moments_ms = [event.t_ns / 1e6 for event in requests]
            pause_ms = moments_ms[BURST_REQUESTS] - moments_ms[BURST_REQUESTS - 1]
            within_ms = moments_ms[BURST_REQUESTS - 1] - moments_ms[0]
            clients = pair.settings.get("clients", 1)
            assert pause_ms > 0.7 * BURST_REQUESTS * INTERVAL_MS * clients
            assert within_ms < 0.3 * BURST_REQUESTS * INTERVAL_MS

    asyncio.run(play())


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_without_another_word_requests_leave_one_by_one(tmp_path: Path, pair: Pair) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            requests = (await sent(it, pair, "requests", 8))[:8]
            slots = Counter(round((event.t_ns - requests[0].t_ns) / 1e6 / INTERVAL_MS) for event in requests)
            clients = int(str(pair.settings.get("clients", 1)))
            assert max(slots) >= 6 * clients  # not all at once
            assert slots.most_common(1)[0][1] <= 3  # a busy machine may bring a few together

    asyncio.run(play())


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_pushed_events_come_when_their_time_has_come(tmp_path: Path, pair: Pair) -> None:
    """The server says when: polls are there long before, and events come one by one at their interval."""

    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1, pair.server)
            await it.client(
                pair.client, pair.config, workload="push", interval_ms=INTERVAL_MS, **pair.settings
            )
            await it.until("client.response.received", 24)
            events = it.seen("client.response.received")
            polls = it.seen("client.request.sent")
            summary = await it.finish()
            assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
            assert summary.state_ok, summary.state_detail
            clients = int(str(pair.settings.get("clients", 1)))
            ahead = math.ceil(PUSH_AHEAD_S * 1e3 / INTERVAL_MS / clients)  # of each client
            assert len(polls) >= len(events) + ahead - 1, "polls wait at the server"
            if pair.server == TCP_SERVER:  # HTTP/1.1: a connection for each
                assert len(it.seen("client.tcp.connected")) >= ahead
            span_ms = (events[-1].t_ns - events[0].t_ns) / 1e6
            # not sooner than the server said; a busy machine may be late
            assert span_ms >= 0.8 * (len(events) / clients - 1) * INTERVAL_MS

    asyncio.run(play())
