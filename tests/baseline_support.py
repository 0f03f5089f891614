"""Baselines for tests: server and client processes on loopback addresses, and a name server to steer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import dns.rrset
import msgspec

from apps.config import SERVER_NAME, ServerConfig
from baselines.dns.config import NAME, ResolverConfig
from quicferry.events import Event, read_events
from quicferry.migration import control
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.model import Endpoint
from quicferry.record import ClientSummary
from quicferry.strategies import Strategy
from tests.ports import free_port

DEADLINE_S = 30.0
EDGES = ("127.0.0.1", "127.0.0.2")
COMMON = {"epoch": 1, "strategy": Strategy.SYMMETRIC, "server_first": False}


class SteeredNames(asyncio.DatagramProtocol):
    """A name server for one name; ``deaf`` questions are not answered."""

    def __init__(self, address: str, ttl_s: int) -> None:
        self.address = address
        self.ttl_s = ttl_s
        self.deaf = 0
        self.spec = 0
        self._transport: asyncio.DatagramTransport | None = None
        self.endpoint = Endpoint("127.0.0.1", 0)

    async def open(self) -> SteeredNames:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self._transport = transport
        self.endpoint = Endpoint("127.0.0.1", transport.get_extra_info("sockname")[1])
        return self

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.spec += 1
        if self.deaf:
            self.deaf -= 1
            return
        assert self._transport is not None
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        answer.answer.append(dns.rrset.from_text(NAME, self.ttl_s, "IN", "A", self.address))
        self._transport.sendto(answer.to_wire(), addr)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class LoopbackRun:
    """Two servers, a name server, a client, and what they wrote."""

    def __init__(self, folder: Path, names: SteeredNames) -> None:
        self.folder = folder
        self.names = names
        self.tls: TlsFiles = Authority().issue(SERVER_NAME).save(folder / "tls", "server")
        port = free_port()
        self.addresses = [Endpoint(host, port) for host in EDGES]
        self.controls: list[control.ControlClient] = []
        self.servers: list[asyncio.subprocess.Process] = []
        self.client_process: asyncio.subprocess.Process | None = None
        self.events: list[Event] = []

    async def spawn(self, module: str, name: str, config: msgspec.Struct) -> asyncio.subprocess.Process:
        path = self.folder / f"{name}.json"
        path.write_bytes(msgspec.json.encode(config))
        with (self.folder / f"{name}.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", module, "--config", str(path)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def server(self, edge: int, module: str, **settings: object) -> None:
        config = ServerConfig(
            edge=f"edge-{edge}",
            listen=self.addresses[edge - 1],
            control=Endpoint("127.0.0.1", free_port()),
            events=str(self.folder / f"edge-{edge}.jsonl"),
            fence=str(self.folder / f"edge-{edge}.fence"),
            certificate=self.tls.certificate,
            key=self.tls.key,
            standby=edge == 2,
        )
        config = msgspec.structs.replace(config, **settings)
        self.servers.append(await self.spawn(module, f"edge-{edge}", config))
        client = await control.ControlClient.open(config.control)
        await client.ask(control.Status(), DEADLINE_S)
        self.controls.append(client)

    def server_names(self, edge: int) -> list[str]:
        return [event.name for event in read_events(self.folder / f"edge-{edge}.jsonl")]

    async def client(self, module: str, kind: type[msgspec.Struct], **settings: object) -> None:
        if "resolver" in kind.__struct_fields__:
            settings["resolver"] = ResolverConfig(server=self.names.endpoint)
        config = kind(
            server=self.addresses[0],
            authority=self.tls.authority,
            keys=str(self.folder / "keys.log"),
            summary=str(self.folder / "summary.json"),
            patience_s=DEADLINE_S,
            **settings,
        )
        self.client_process = await self.spawn(module, "client", config)

    def seen(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    async def until(self, name: str, times: int = 1, **detail: object) -> Event:
        """Read the client's events until so many more of that name, with that detail, have come."""
        assert self.client_process is not None
        assert self.client_process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := await self.client_process.stdout.readline():
                event = msgspec.json.decode(line, type=Event)
                self.events.append(event)
                if event.name == name and detail.items() <= event.detail.items():
                    times -= 1
                    if not times:
                        return event
        log = (self.folder / "client.log").read_text()
        raise AssertionError(f"the client ended without {name}: {log[-2000:]}")

    async def finish(self) -> ClientSummary:
        assert self.client_process is not None
        assert self.client_process.stdin is not None
        self.client_process.stdin.write(b"stop\n")
        await self.until("client.done")
        assert await self.client_process.wait() == 0
        assert (self.folder / "client.log").read_text() == ""
        return msgspec.json.decode((self.folder / "summary.json").read_bytes(), type=ClientSummary)

    async def freeze(self) -> dict[str, object]:
        """The source writes its state."""
        state = self.folder / "state"
        answer = await self.controls[0].ask(control.Freeze(state_path=str(state), **COMMON), DEADLINE_S)
        assert state.stat().st_mode & 0o777 == 0o600
        return answer

    async def take_over(self, frozen: dict[str, object]) -> None:
        """The destination reads the state and serves."""
        order = control.Import(
            edge="edge-2", state_path=str(self.folder / "state"), sha256=str(frozen["sha256"]), **COMMON
        )
        await self.controls[1].ask(order, DEADLINE_S)

    async def kill_source(self) -> None:
        """As the engine does when the destination serves."""
        self.servers[0].kill()
        await self.servers[0].wait()


@contextlib.asynccontextmanager
async def loopback_run(folder: Path, ttl_s: int = 1) -> AsyncIterator[LoopbackRun]:
    """A run on loopback whose name points to the first edge; all processes end with it."""
    names = await SteeredNames(EDGES[0], ttl_s).open()
    made = LoopbackRun(folder, names)
    try:
        yield made
    finally:
        names.close()
        for client in made.controls:
            client.close()
        for process in [*made.servers, made.client_process]:
            if process is not None and process.returncode is None:
                process.terminate()
                await process.wait()
