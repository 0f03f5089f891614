"""The real server and client processes over the loopback addresses, moved by orders, without agents.

The two edges are 127.0.0.1 and 127.0.0.2; the state crosses as a file, as both are one host here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import HandshakeCompleted

from apps.config import ALPN, SERVER_NAME, ClientConfig, ServerConfig
from quicferry.errors import MigrationError
from quicferry.events import Event, read_events
from quicferry.migration import control
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.model import Endpoint
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.record import ClientSummary
from quicferry.strategies import Strategy
from quicferry.units import now_s
from tests.ports import free_port

DEADLINE_S = 30.0


class LoopbackRun:
    """Two servers, a client, and what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tls: TlsFiles = Authority().issue(SERVER_NAME).save(folder / "tls", "server")
        port = free_port()
        self.addresses = [Endpoint("127.0.0.1", port), Endpoint("127.0.0.2", port)]
        self.controls: list[control.ControlClient] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self.client_events: list[Event] = []

    def events(self, edge: int) -> list[Event]:
        return read_events(self.folder / f"edge-{edge}.jsonl")

    def names(self, edge: int) -> list[str]:
        return [event.name for event in self.events(edge)]

    async def spawn(self, module: str, name: str, config: msgspec.Struct) -> asyncio.subprocess.Process:
        path = self.folder / f"{name}.json"
        path.write_bytes(msgspec.json.encode(config))
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", module, "--config", str(path)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self.processes.append(process)
        return process

    async def server(self, edge: int, **settings: object) -> None:
        config = ServerConfig(
            edge=f"edge-{edge}",
            listen=self.addresses[edge - 1],
            control=Endpoint("127.0.0.1", free_port()),
            events=str(self.folder / f"edge-{edge}.jsonl"),
            fence=str(self.folder / f"edge-{edge}.fence"),
            certificate=self.tls.certificate,
            key=self.tls.key,
            pool=[self.addresses[1]],
            standby=edge == 2,
        )
        config = msgspec.structs.replace(config, **settings)
        await self.spawn("apps.server.server", f"edge-{edge}", config)
        client = await control.ControlClient.open(config.control)
        await client.ask(control.Status(), DEADLINE_S)
        self.controls.append(client)

    async def client(self, **settings: object) -> asyncio.subprocess.Process:
        config = ClientConfig(
            server=self.addresses[0],
            authority=self.tls.authority,
            keys=str(self.folder / "keys.log"),
            summary=str(self.folder / "client-summary.json"),
            patience_s=DEADLINE_S,
        )
        return await self.spawn("apps.client.client", "client", msgspec.structs.replace(config, **settings))

    async def until(self, process: asyncio.subprocess.Process, name: str) -> Event:
        """Read the client's events until one of that name."""
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := await process.stdout.readline():
                event = msgspec.json.decode(line, type=Event)
                self.client_events.append(event)
                if event.name == name:
                    return event
        raise AssertionError(f"the client ended without {name}")

    async def finish(self, process: asyncio.subprocess.Process) -> ClientSummary:
        assert process.stdin is not None
        process.stdin.write(b"stop\n")
        await self.until(process, "client.done")
        assert await process.wait() == 0
        raw = (self.folder / "client-summary.json").read_bytes()
        return msgspec.json.decode(raw, type=ClientSummary)

    async def copy_ahead(self, epoch: int = 1, round_: int = 1) -> int:
        """Have the source's connections made at the destination; returns how many."""
        source, destination = self.controls
        copied, file = 0, self.folder / f"ahead-{epoch}"
        while True:
            answer = await source.ask(
                control.CopyAhead(epoch=epoch, round=round_, state_path=str(file)), DEADLINE_S
            )
            if not answer["connections"]:
                return copied
            copied += answer["connections"]
            assert file.stat().st_mode & 0o777 == 0o600
            order = control.TakeAhead(epoch=epoch, state_path=str(file), sha256=answer["sha256"])
            await destination.ask(order, DEADLINE_S)
            file.unlink()

    async def hand_off(
        self, strategy: Strategy, server_first: bool, epoch: int = 1, *, ahead: bool = False
    ) -> None:
        common = {"epoch": epoch, "strategy": strategy, "server_first": server_first}
        source, destination = self.controls
        answer = await source.ask(
            control.Prepare(destination=self.addresses[1], downtime_ms=20, deadline_s=10, **common),
            DEADLINE_S,
        )
        assert (answer["refused"], answer["silent"]) == (0, 0)
        if ahead:
            assert await self.copy_ahead(epoch) == 1
        state = self.folder / f"state-{epoch}"
        frozen = await source.ask(control.Freeze(state_path=str(state), **common), DEADLINE_S)
        assert frozen["connections"] == 1
        assert state.stat().st_mode & 0o777 == 0o600
        order = control.Import(edge="edge-2", state_path=str(state), sha256=frozen["sha256"], **common)
        await destination.ask(order, DEADLINE_S)


@contextlib.asynccontextmanager
async def loopback_run(folder: Path) -> AsyncIterator[LoopbackRun]:
    made = LoopbackRun(folder)
    try:
        yield made
    finally:
        for client in made.controls:
            client.close()
        for process in made.processes:
            if process.returncode is None:
                process.terminate()
            await process.wait()


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_hand_off_between_two_processes(tmp_path: Path, strategy: Strategy, server_first: bool) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            preferred = it.addresses[1] if strategy is Strategy.PREFERRED_ADDRESS else None
            await it.server(1, preferred_address=preferred)
            await it.server(2, preferred_address=preferred)
            client = await it.client(download_bytes=3 << 20, upload_bytes=1 << 20, seed=4)
            await it.until(client, "client.response.received")
            await asyncio.sleep(0.1)
            await it.hand_off(strategy, server_first)
            switched = await it.until(client, "client.switched")
            assert switched.detail["new"] == str(it.addresses[1])
            await asyncio.sleep(0.1)
            summary = await it.finish(client)
            assert summary.closed is None
            assert summary.requests_sent == summary.responses > 15
            assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
            assert summary.state_ok, summary.state_detail
            assert [transfer.verified for transfer in summary.transfers] == [True, True]
            assert {record.server for record in summary.requests} == {str(a) for a in it.addresses}
            assert "server.frozen" in it.names(1)
            assert "server.resumed" in it.names(2)
            assert "server.committed" in it.names(2)
            # never both: the source says nothing after it froze, and its host remembers why
            status = await it.controls[0].ask(control.Status(), DEADLINE_S)
            assert status["frozen"]
            with pytest.raises(MigrationError, match="already frozen"):
                await it.controls[0].ask(
                    control.Freeze(
                        epoch=2, strategy=strategy, server_first=False, state_path=str(tmp_path / "again")
                    ),
                    DEADLINE_S,
                )

    asyncio.run(play())


def test_a_connection_that_was_copied_ahead_and_goes_on_meanwhile(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            await it.server(2)
            client = await it.client(download_bytes=1 << 20, upload_bytes=1 << 20, seed=4)
            await it.until(client, "client.response.received")
            await it.hand_off(Strategy.PROACTIVE_EXPLICIT, False, ahead=True)
            await it.until(client, "client.switched")
            summary = await it.finish(client)
            assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
            assert summary.state_ok, summary.state_detail
            assert [transfer.verified for transfer in summary.transfers] == [True, True]

    asyncio.run(play())


@pytest.mark.parametrize("abort", [False, True])
def test_a_connection_at_rest_crosses_ahead_and_is_taken_or_goes_on(tmp_path: Path, abort: bool) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            await it.server(2)
            client = await it.client(interval_ms=60_000.0)
            await it.until(client, "client.response.received")
            source, destination = it.controls
            common = {"epoch": 1, "strategy": Strategy.SYMMETRIC, "server_first": True}
            prepare = control.Prepare(destination=it.addresses[1], downtime_ms=20, deadline_s=10, **common)
            await source.ask(prepare, DEADLINE_S)
            rounds = 1
            async with asyncio.timeout(DEADLINE_S):
                while await it.copy_ahead(1, rounds):  # until the last acknowledgement has come
                    rounds += 1
                    await asyncio.sleep(0.02)
            state = str(tmp_path / "state")
            frozen = await source.ask(control.Freeze(state_path=state, **common), DEADLINE_S)
            assert (frozen["connections"], frozen["unchanged"]) == (1, 1)
            if abort:
                await source.ask(control.Abort(epoch=1, reason="timeout"), DEADLINE_S)
                assert not (await source.ask(control.Status(), DEADLINE_S))["frozen"]
            else:
                order = control.Import(edge="edge-2", state_path=state, sha256=frozen["sha256"], **common)
                await destination.ask(order, DEADLINE_S)
                switched = await it.until(client, "client.switched")
                assert switched.detail["new"] == str(it.addresses[1])
            summary = await it.finish(client)
            assert summary.closed is None
            assert summary.requests_sent == summary.responses == 1
            assert summary.requests_lost == 0

    asyncio.run(play())


def test_an_aborted_hand_off_goes_on_at_the_source(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            client = await it.client()
            await it.until(client, "client.response.received")
            common = {"epoch": 1, "strategy": Strategy.PROACTIVE_EXPLICIT, "server_first": False}
            source = it.controls[0]
            await source.ask(
                control.Prepare(destination=it.addresses[1], downtime_ms=20, deadline_s=10, **common),
                DEADLINE_S,
            )
            await source.ask(control.Freeze(state_path=str(tmp_path / "state"), **common), DEADLINE_S)
            await asyncio.sleep(0.2)
            await source.ask(control.Abort(epoch=1, reason="the destination is full"), DEADLINE_S)
            await it.until(client, "client.migration.aborted")
            await it.until(client, "client.response.received")
            summary = await it.finish(client)
            assert (summary.requests_lost, summary.requests_duplicated) == (0, 0)
            assert summary.state_ok, summary.state_detail
            assert {record.server for record in summary.requests} == {str(it.addresses[0])}
            assert it.names(1).count("server.aborted") == 1

    asyncio.run(play())


def test_a_client_without_the_extension_is_served_as_ever(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            client = await it.client(extension=False)
            connected = await it.until(client, "client.connected")
            assert connected.detail == {"negotiated": False, "strategies": []}
            answer = await it.controls[0].ask(
                control.Prepare(
                    epoch=1,
                    strategy=Strategy.PROACTIVE_EXPLICIT,
                    server_first=False,
                    destination=it.addresses[1],
                    downtime_ms=20,
                    deadline_s=10,
                ),
                DEADLINE_S,
            )
            assert answer == {"ready": 0, "refused": 0, "unable": 1, "silent": 0}
            await it.until(client, "client.response.received")
            summary = await it.finish(client)
            assert summary.requests_lost == 0
            assert summary.closed is None

    asyncio.run(play())


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(2)
            (tmp_path / "state").write_bytes(b"not a state")
            order = control.Import(
                epoch=1,
                edge="edge-2",
                strategy=Strategy.SYMMETRIC,
                server_first=False,
                state_path=str(tmp_path / "state"),
                sha256="0" * 64,
            )
            with pytest.raises(MigrationError, match="damaged"):
                await it.controls[0].ask(order, DEADLINE_S)
            assert (await it.controls[0].ask(control.Status(), DEADLINE_S))["standby"]

    asyncio.run(play())


@contextlib.asynccontextmanager
async def half_connected(it: LoopbackRun) -> AsyncIterator[Callable[[], None]]:
    """A client that has the server's whole flight, and whose answer to it is sent when it is asked to be."""
    quic = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], server_name=SERVER_NAME)
    quic.load_verify_locations(it.tls.authority)
    client = MigratableConnection(configuration=quic, extension=ExtensionConfig())
    server = (it.addresses[0].host, it.addresses[0].port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(DEADLINE_S)

        def send() -> None:
            for data, _ in client.datagrams_to_send(now_s()):
                link.sendto(data, server)

        client.connect(server, now_s())
        send()
        while not isinstance(event := client.next_event(), HandshakeCompleted):
            if event is None:
                client.receive_datagram(await asyncio.to_thread(link.recv, 65536), server, now_s())
        yield send


def symmetric_move(deadline_s: float) -> control.Prepare:
    return control.Prepare(
        epoch=1,
        strategy=Strategy.SYMMETRIC,
        server_first=False,
        destination=None,
        downtime_ms=100.0,
        deadline_s=deadline_s,
    )


def test_a_move_waits_for_a_handshake_that_is_under_way(tmp_path: Path) -> None:
    """A client half a round trip away takes itself for connected before the server does."""

    async def play() -> dict[str, Any]:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            async with half_connected(it) as send:
                ordered = asyncio.create_task(it.controls[0].ask(symmetric_move(20.0), DEADLINE_S))
                await asyncio.sleep(0.3)
                assert not ordered.done()
                send()
                return await ordered

    assert asyncio.run(play())["ready"] == 1


def test_a_client_that_does_not_end_its_handshake_holds_a_move_up_for_a_while_only(tmp_path: Path) -> None:
    async def play() -> tuple[float, dict[str, Any]]:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            async with half_connected(it):
                begun = now_s()
                answer = await it.controls[0].ask(symmetric_move(0.5), DEADLINE_S)
                return now_s() - begun, answer

    took_s, answer = asyncio.run(play())
    assert took_s >= 0.5
    assert answer["ready"] == 0
