"""What all servers share: the ballast is rewritten at the rate asked for, and its end is in good order."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import pytest

from apps.config import SERVER_NAME, ServerConfig
from apps.server.ballast import PAGE_BYTES, Ballast
from apps.server.server import QuicServer
from apps.server.shell import ServerShell
from baselines.ip_move.tcp_server import MovingTcpServer
from baselines.mptcp.server import MptcpServer
from baselines.tcp_dns.server import TcpServer
from quicferry.events import read_events
from quicferry.migration import control
from quicferry.migration.rpc.credentials import Authority
from quicferry.model import Endpoint
from quicferry.units import BYTES_PER_MIB
from tests.baseline_support import DEADLINE_S
from tests.ports import free_port

SERVERS = (QuicServer, TcpServer, MovingTcpServer, MptcpServer)
MEMORY_MIB = 32
RATE_MIB_S = 20.0
LOOK_S = 0.5


def config(folder: Path, **settings: object) -> ServerConfig:
    tls = Authority().issue(SERVER_NAME).save(folder / "tls", "server")
    return ServerConfig(
        edge="edge-1",
        listen=Endpoint("127.0.0.1", free_port()),
        control=Endpoint("127.0.0.1", free_port()),
        events=str(folder / "edge-1.jsonl"),
        fence=str(folder / "edge-1.fence"),
        certificate=tls.certificate,
        key=tls.key,
        standby=True,  # it needs no sockets of the machine's kernel for its clients, such as MPTCP's
        **settings,
    )


def pages(ballast: Ballast) -> list[bytes]:
    return [
        bytes(block[start : start + PAGE_BYTES])
        for block in ballast._memory
        for start in range(0, BYTES_PER_MIB, PAGE_BYTES)
    ]


async def changed_mib_s(server: ServerShell) -> float:
    """How fast the contents of the server's memory change while it runs."""
    running = asyncio.create_task(server.run())
    orders = await control.ControlClient.open(server.config.control)
    try:
        await orders.ask(control.Status(), DEADLINE_S)
        before, begun = pages(server.ballast), time.monotonic()
        await asyncio.sleep(LOOK_S)
        took_s, after = time.monotonic() - begun, pages(server.ballast)
        await orders.ask(control.Stop(), DEADLINE_S)
        await running
    finally:
        orders.close()
        gc.unfreeze()  # a server freezes what lives, and here that is the tests' as well
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    return changed * PAGE_BYTES / BYTES_PER_MIB / took_s


@pytest.mark.parametrize("kind", SERVERS)
def test_every_server_rewrites_its_memory_at_the_rate_asked_for(
    tmp_path: Path, kind: type[ServerShell]
) -> None:
    async def play() -> float:
        return await changed_mib_s(kind(config(tmp_path, memory_mib=MEMORY_MIB, dirty_mib_s=RATE_MIB_S)))

    # what a busy machine did not let it write is left out: less is possible, more is not
    assert 0.2 * RATE_MIB_S < asyncio.run(play()) < 1.1 * RATE_MIB_S
    names = [event.name for event in read_events(tmp_path / "edge-1.jsonl")]
    assert names == ["server.started", "server.stopped"]


@pytest.mark.parametrize("kind", SERVERS)
def test_no_server_rewrites_what_it_was_not_asked_to(tmp_path: Path, kind: type[ServerShell]) -> None:
    async def play() -> float:
        return await changed_mib_s(kind(config(tmp_path, memory_mib=2)))

    assert asyncio.run(play()) == 0.0
