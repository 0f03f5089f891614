"""A client's request for a move, between the processes: client, server and the desk of the server's agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.migration.agent.config import AgentConfig, LocalMove, ServerCommand
from quicferry.migration.agent.requests import RequestDesk
from quicferry.migration.rpc.credentials import TlsFiles
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from tests.loopback.apps.test_apps import DEADLINE_S, LoopbackRun, loopback_run
from tests.ports import free_port


def desk(
    edge: str,
    *,
    destination: str | None = "edge-2",
    is_busy: Callable[[], bool] = lambda: False,
    begin: Callable[[], None] = lambda: None,
) -> RequestDesk:
    move = None
    if destination is not None:
        move = LocalMove(
            strategy=Strategy.SYMMETRIC,
            engine="handoff",
            destination=destination,
            service=Endpoint("127.0.0.2", 4433),
        )
    config = AgentConfig(
        edge=edge,
        listen=Endpoint("127.0.0.1", 0),
        peers={"edge-2": Endpoint("127.0.0.1", 1)},
        tls=TlsFiles(authority="", certificate="", key=""),
        service=ServerCommand(argv=[]),
        on_request=move,
        requests=Endpoint("127.0.0.1", free_port()),
    )
    made = RequestDesk(config, is_busy, begin)
    made.where = config.requests  # type: ignore[attr-defined]  # for the server's configuration
    return made


async def asked(it: LoopbackRun, **settings: object) -> str:
    """The reply that a client gets whose server has these settings."""
    await it.server(1, **settings)
    client = await it.client()
    await it.until(client, "client.response.received")
    assert client.stdin is not None
    client.stdin.write(b"ask\n")
    answered = await it.until(client, "client.move.answered")
    summary = await it.finish(client)
    assert (summary.requests_lost, summary.closed) == (0, None)
    return str(answered.detail["reply"])


@pytest.mark.parametrize("reply", ["accepted", "busy", "nowhere"])
def test_the_desk_of_the_agent_decides(tmp_path: Path, reply: str) -> None:
    begun: list[int] = []

    async def play() -> str:
        made = desk(
            "edge-1",
            destination=None if reply == "nowhere" else "edge-2",
            is_busy=lambda: reply == "busy",
            begin=lambda: begun.append(1),
        )
        await made.open()
        try:
            async with loopback_run(tmp_path) as it:
                return await asked(it, requests=made.where)  # type: ignore[attr-defined]
        finally:
            made.close()

    assert asyncio.run(play()) == reply
    assert begun == ([1] if reply == "accepted" else [])


def test_a_server_without_an_agent_to_ask_refuses(tmp_path: Path) -> None:
    async def play() -> tuple[str, list[str]]:
        async with loopback_run(tmp_path) as it:
            return await asked(it, requests=None), it.names(1)

    reply, names = asyncio.run(play())
    assert reply == "refused"
    assert names.count("server.move.requested") == names.count("server.move.answered") == 1


def test_an_agent_that_is_silent_has_nowhere_to_go(tmp_path: Path) -> None:
    async def play() -> str:
        async with loopback_run(tmp_path) as it:
            return await asked(it, requests=Endpoint("127.0.0.1", free_port()))

    assert asyncio.run(play()) == "nowhere"


def test_a_request_that_was_made_elsewhere_moves_nobody() -> None:
    """A process that CRIU copied in the middle of its question goes on asking at the destination."""
    begun: list[int] = []

    async def play() -> None:
        made = desk("edge-1", begin=lambda: begun.append(1))
        await made.open()
        client = await control.ControlClient.open(made.where)  # type: ignore[attr-defined]
        try:
            with pytest.raises(MigrationError, match="made at edge-2"):
                await client.ask(control.ClientRequest(edge="edge-2"), DEADLINE_S)
            with pytest.raises(MigrationError, match="takes no orders"):
                await client.ask(control.Stop(), DEADLINE_S)
        finally:
            client.close()
            made.close()

    asyncio.run(play())
    assert begun == []


def test_a_desk_whose_port_is_taken_says_so() -> None:
    async def play() -> None:
        made, second = desk("edge-1"), desk("edge-1")
        second._config = made._config
        await made.open()
        try:
            with pytest.raises(MigrationError, match="cannot listen"):
                await second.open()
        finally:
            made.close()

    asyncio.run(play())
