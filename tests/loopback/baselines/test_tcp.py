"""TCP with DNS between real processes: what the client notices, and that it comes back with everything."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path

import pytest

from baselines.tcp_dns.config import TcpClientConfig
from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.record import ClientSummary
from tests.baseline_support import COMMON, DEADLINE_S, EDGES, LoopbackRun, loopback_run

SERVER, CLIENT = "baselines.tcp_dns.server", "baselines.tcp_dns.client"


async def begin(it: LoopbackRun, **settings: object) -> None:
    await it.server(1, SERVER)
    await it.server(2, SERVER)
    await it.client(CLIENT, TcpClientConfig, **settings)
    await it.until("client.response.received", 5)


def assert_nothing_lost(summary: ClientSummary) -> None:
    assert summary.requests_sent == summary.responses >= 10
    assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
    assert summary.state_ok, summary.state_detail
    assert summary.closed is None
    assert all(transfer.verified for transfer in summary.transfers)


def test_a_reset_sends_the_client_to_the_new_address_with_all_that_was_open(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it, download_bytes=6 << 20, upload_bytes=3 << 20, seed=4)
            frozen = await it.freeze()
            await asyncio.sleep(0.05)  # requests gather
            await it.take_over(frozen)
            await it.kill_source()
            lost = await it.until("client.connection.lost")
            assert lost.detail["reason"] in ("reset", "eof")
            assert lost.detail["address"] == str(it.addresses[0])
            await it.until("client.connect.failed", reason="refused")
            it.names.address = EDGES[1]
            resolved = await it.until("client.resolved", address=EDGES[1])
            assert not resolved.detail["cached"] or resolved.detail["ttl_left_s"] > 0
            await it.until("client.response.received", 30, server=str(it.addresses[1]))
            summary = await it.finish()
            assert_nothing_lost(summary)
            assert summary.requests_repeated >= 1
            assert [transfer.kind for transfer in summary.transfers] == ["download", "upload"]
            assert {record.server for record in summary.requests} == {str(a) for a in it.addresses}
            assert "server.resumed" in it.server_names(2)
            order = ["client.tcp.connected", "client.tls.established", "client.request.repeated"]
            names = [e.name for e in it.events if e.t_ns > resolved.t_ns]
            assert [name for name in dict.fromkeys(names) if name in order] == order

    asyncio.run(play())


def test_events_go_on_from_the_other_server_and_none_is_lost(tmp_path: Path) -> None:
    """Polls that wait at the server when it goes are answered where it comes to, by what it remembers."""

    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it, workload="push", interval_ms=20.0)
            frozen = await it.freeze()
            await it.take_over(frozen)
            await it.kill_source()
            await it.until("client.connection.lost")
            it.names.address = EDGES[1]
            await it.until("client.response.received", 20, server=str(it.addresses[1]))
            waiting = it.seen("client.request.repeated")
            summary = await it.finish()
            assert_nothing_lost(summary)
            assert waiting, "some were waiting at the source"
            assert {record.server for record in summary.requests} == {str(a) for a in it.addresses}

    asyncio.run(play())


def test_a_server_that_says_nothing_is_given_up_after_the_request_time_out(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path, ttl_s=0) as it:
            await begin(it, request_timeout_ms=150.0)
            frozen = await it.freeze()
            await it.take_over(frozen)
            it.names.address = EDGES[1]
            lost = await it.until("client.connection.lost")
            assert lost.detail["reason"] == "request-timeout"
            sent = it.seen("client.request.sent")
            assert lost.t_ns - sent[0].t_ns > 149e6
            await it.until("client.response.received", 5, server=str(it.addresses[1]))
            assert_nothing_lost(await it.finish())
            with pytest.raises(MigrationError, match="already frozen"):
                await it.freeze()

    asyncio.run(play())


def test_an_aborted_move_is_only_a_pause(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it, download_bytes=2 << 20)
            await it.freeze()
            await asyncio.sleep(0.2)
            await it.controls[0].ask(control.Abort(epoch=1, reason="the destination is full"), DEADLINE_S)
            await it.until("client.response.received", 30)
            summary = await it.finish()
            assert_nothing_lost(summary)
            assert summary.requests_repeated == 0
            assert not it.seen("client.connection.lost")
            waits = [r.received_ns - r.sent_ns for r in summary.requests if r.received_ns is not None]
            assert max(waits) > 150e6

    asyncio.run(play())


@pytest.mark.parametrize("resumption", [False, True])
def test_sessions_are_resumed_only_if_asked(tmp_path: Path, resumption: bool) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it, tls_resumption=resumption, request_timeout_ms=100.0)
            # a request that is not answered costs its connection; the next one may resume
            await it.freeze()
            await it.until("client.connection.lost")
            await it.controls[0].ask(control.Abort(epoch=1, reason="no"), DEADLINE_S)
            await it.until("client.tls.established")
            await it.until("client.response.received", 5)
            assert_nothing_lost(await it.finish())
            assert it.seen("client.tls.established")[-1].detail["resumed"] is resumption
            assert "SERVER_TRAFFIC_SECRET_0" in (tmp_path / "keys.log").read_text()

    asyncio.run(play())


def test_a_damaged_state_is_not_served(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await begin(it)
            await it.freeze()
            order = control.Import(
                edge="edge-2", state_path=str(tmp_path / "state"), sha256="0" * 64, **COMMON
            )
            with pytest.raises(MigrationError, match="damaged"):
                await it.controls[1].ask(order, DEADLINE_S)
            status = await it.controls[1].ask(control.Status(), DEADLINE_S)
            assert status["standby"] is True
            with pytest.raises(ConnectionRefusedError):  # a standby does not even listen
                await asyncio.open_connection(EDGES[1], it.addresses[1].port)
            # the client's last requests, answered: it need not wait for them at its end
            await it.controls[0].ask(control.Abort(epoch=1, reason="the state was damaged"), DEADLINE_S)
            await it.until("client.response.received", 10)
            assert_nothing_lost(await it.finish())

    asyncio.run(play())


def test_what_is_not_http_is_refused(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1, SERVER)
            context = ssl.create_default_context(cafile=it.tls.authority)
            reader, writer = await asyncio.open_connection(
                EDGES[0], it.addresses[0].port, ssl=context, server_hostname="service.edge.test"
            )
            writer.write(b"\0\1\2 what is this?\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
            await writer.wait_closed()
            status = await it.controls[0].ask(control.Status(), DEADLINE_S)
            assert status["frozen"] is False

    asyncio.run(play())


def test_an_attempt_is_given_up_when_the_name_moves_meanwhile(tmp_path: Path) -> None:
    """The old server takes connections but answers nothing: there is no use in waiting it out."""

    async def play() -> None:
        async with loopback_run(tmp_path, ttl_s=1) as it:
            await begin(it, request_timeout_ms=2000.0)
            frozen = await it.freeze()
            it.servers[0].send_signal(signal.SIGSTOP)  # its kernel goes on accepting
            await it.take_over(frozen)
            await it.until("client.connection.lost", reason="request-timeout")
            await it.until("client.tcp.connected", address=str(it.addresses[0]))
            it.names.address = EDGES[1]
            failed = await it.until("client.connect.failed")
            assert failed.detail["reason"] == "the server is elsewhere now"
            connecting = it.seen("client.tcp.connecting")[-1]
            assert failed.t_ns - connecting.t_ns < 1.5e9  # the record's life, not the time-out
            await it.until("client.response.received", 1, server=str(it.addresses[1]))
            await it.kill_source()
            assert_nothing_lost(await it.finish())

    asyncio.run(play())


def test_a_dismissed_client_is_reset_at_once(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path, ttl_s=0) as it:
            await begin(it)
            await it.take_over(await it.freeze())
            it.names.address = EDGES[1]
            answer = await it.controls[0].ask(control.Dismiss(epoch=1), DEADLINE_S)
            assert answer["dismissed"] >= 1
            lost = await it.until("client.connection.lost")
            assert lost.detail["reason"] in ("reset", "eof")
            await it.until("client.response.received", 5, server=str(it.addresses[1]))
            await it.kill_source()
            assert_nothing_lost(await it.finish())

    asyncio.run(play())
