"""Stock QUIC that reconnects, between real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from baselines.quic_reconnect.config import ReconnectConfig
from quicferry.migration import control
from tests.baseline_support import COMMON, DEADLINE_S, EDGES, LoopbackRun, loopback_run

CLIENT = "baselines.quic_reconnect.client"


async def begin(it: LoopbackRun, *, tickets: bool = False, **settings: object) -> None:
    await it.server(1, "apps.server.server", tickets=tickets)
    await it.server(2, "apps.server.server", tickets=tickets)
    await it.client(CLIENT, ReconnectConfig, extension=False, early_data=tickets, **settings)
    connected = await it.until("client.connected")
    assert connected.detail == {"negotiated": False, "strategies": []}
    await it.until("client.response.received", 5)


@pytest.mark.parametrize("early", [False, True])
def test_silence_sends_the_client_to_the_new_address_with_all_that_was_open(
    tmp_path: Path, early: bool
) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it, tickets=early, download_bytes=4 << 20, upload_bytes=1 << 20, seed=2)
            frozen = await it.freeze()
            await it.take_over(frozen)
            await it.kill_source()
            lost = await it.until("client.connection.lost")
            assert lost.detail["reason"] == "silent"
            it.names.address = EDGES[1]
            connecting = await it.until("client.quic.connecting", address=str(it.addresses[1]))
            assert connecting.detail["early_data"] is early
            established = await it.until("client.quic.established")
            assert established.detail["early_data"] is early
            await it.until("client.response.received", 30, server=str(it.addresses[1]))
            summary = await it.finish()
            assert summary.requests_sent == summary.responses
            assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
            assert summary.requests_repeated >= 1
            assert summary.state_ok, summary.state_detail
            assert [transfer.verified for transfer in summary.transfers] == [True, True]
            assert {record.server for record in summary.requests} == {str(a) for a in it.addresses}

    asyncio.run(play())


def test_a_pause_is_noticed_but_costs_no_connection(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it, request_timeout_ms=3000.0)
            await it.freeze()
            await it.until("client.connection.lost", reason="silent")
            await it.controls[0].ask(control.Abort(epoch=1, reason="no"), DEADLINE_S)
            await it.until("client.response.received", 30)
            summary = await it.finish()
            assert (summary.requests_lost, summary.requests_repeated) == (0, 0)
            assert summary.state_ok, summary.state_detail
            assert len(it.seen("client.quic.connecting")) == 1

    asyncio.run(play())


def test_a_client_that_cannot_follow_is_told_and_goes_at_once(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path, ttl_s=0) as it:
            await begin(it)
            prepare = control.Prepare(
                destination=None, downtime_ms=20, deadline_s=10, service=it.addresses[1], **COMMON
            )
            assert (await it.controls[0].ask(prepare, DEADLINE_S))["unable"] == 1
            await it.take_over(await it.freeze())
            it.names.address = EDGES[1]
            await it.controls[0].ask(control.Dismiss(epoch=1), DEADLINE_S)
            lost = await it.until("client.connection.lost")
            assert lost.detail["reason"] == "closed"
            await it.until("client.response.received", 5, server=str(it.addresses[1]))
            summary = await it.finish()
            assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
            assert summary.state_ok, summary.state_detail

    asyncio.run(play())
