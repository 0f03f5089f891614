"""Agents for tests: on loopback, with a container, an engine and a service that are not real."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import MigrationError
from quicferry.events import Event, EventLog
from quicferry.migration import control
from quicferry.migration.agent.agent import NodeAgent
from quicferry.migration.agent.config import AgentConfig, ServerCommand
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.order import Deadlines, Lease, MoveOrder
from quicferry.migration.rpc.credentials import Authority
from quicferry.migration.serving_lease import ServingLease
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from quicferry.units import now_ns
from tests.ports import free_port

EDGES = ("edge-1", "edge-2")
#: of moves in which no deadline is to pass, however slow the machine is
PATIENT = Deadlines(
    prepare_s=60.0,
    notice_s=60.0,
    freeze_s=60.0,
    checkpoint_s=60.0,
    transfer_s=60.0,
    restore_s=60.0,
    commit_s=60.0,
)
#: ... in which one is to pass, and it is all the same which
QUICK = Deadlines(prepare_s=1.0, notice_s=0.2, checkpoint_s=0.4, transfer_s=0.6, restore_s=0.4, commit_s=0.4)
#: ... in which the lease of a destination that has resumed is to pass, and nothing before
SHORT_LEASE = msgspec.structs.replace(PATIENT, restore_s=1.5, commit_s=0.4)


class FakeContainer:
    """A directory, and a service that is a flag."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self.init_pid = 1
        self.service_pid: int | None = None

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        self.service_pid = 100
        return 100

    def adopt(self, pid: int) -> None:
        self.service_pid = pid

    async def stop_service(self, *, grace_s: float = 1.0) -> None:
        self.service_pid = None

    async def end_processes(self) -> None:
        self.service_pid = None

    def place_of(self, path: str) -> str:
        return path

    def path(self, inside: str) -> Path:
        return self._root / inside.lstrip("/")

    async def close(self) -> None:
        self.service_pid = None


class FakeService:
    """Where the server is, as God sees it: the set of edges that serve. Servers obey their leases."""

    def __init__(self, source: str) -> None:
        self.serves = {source}
        self.state = bytes(range(256)) * 4096  # 1 MiB
        self.arrived = b""
        self.log: list[str] = []
        self.ever_two = False

        self.leases: dict[str, ServingLease] = {}

    def start(self, edge: str) -> None:
        self.serves.add(edge)
        self.ever_two |= len(self.serves) > 1

    def begin(self, edge: str, epoch: int, lease: Lease | None) -> None:
        """The server's process at that edge is told to serve, with the real lease of a server."""
        self.leases[edge] = ServingLease(lambda: self.serves.discard(edge), lambda: self.start(edge))
        self.leases[edge].begin(epoch, lease)
        self.start(edge)

    def end(self, edge: str) -> None:
        """The server's process at that edge is ended."""
        self.serves.discard(edge)
        if edge in self.leases:
            self.leases.pop(edge).forget()


class FakeEngine:
    """Moves a FakeService. ``trouble`` is called with the name of every phase and may raise or sleep."""

    name = "fake"
    needs_standby = False

    def __init__(
        self,
        context: EngineContext,
        service: FakeService,
        trouble: Callable[[str], Any],
        chunks: int = 4,
        asks_early: bool = False,
    ) -> None:
        self.context = context
        self.service = service
        self._trouble = trouble
        self._chunks = chunks
        self._asks_early = asks_early

    async def _phase(self, name: str) -> None:
        self.service.log.append(name)
        result = self._trouble(name)
        if asyncio.iscoroutine(result):
            await result

    async def prepare_source(self, order: MoveOrder) -> None:
        await self._phase("prepare_source")

    async def prepare_destination(self, order: MoveOrder) -> None:
        await self._phase("prepare_destination")

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        await self._phase("checkpoint")
        self.service.serves.discard(order.source)
        await self.context.after_freeze()
        await self._phase("frozen")
        size = len(self.service.state) // self._chunks
        for number in range(self._chunks):
            await self._phase(f"chunk {number}")
            yield self.service.state[number * size : (number + 1) * size]

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        await self._phase("restore")
        self.service.arrived = b"".join([chunk async for chunk in chunks])
        await self._phase("restored")
        if self._asks_early:
            self.context.before_resume()
            await self._phase("asked")
        t_ns = now_ns()
        self.service.begin(order.destination, order.epoch, self.context.lease_of(order))
        await self._phase("resumed")
        return {"t_ns": t_ns}

    async def give_up_source(self, order: MoveOrder) -> None:
        await self._phase("give_up_source")

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        await self._phase("resume_source")
        self.service.start(order.source)
        return {"t_ns": now_ns()}

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        self.service.end(order.destination)
        await self._phase("abandon_destination")


class World:
    """Two agents in this process, with gRPC over loopback between them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.service = FakeService("edge-1")
        self.events: list[Event] = []
        self.agents: dict[str, NodeAgent] = {}
        self.notice = {"ready": 1, "refused": 0, "silent": 0}  # what the server answers to Prepare
        self.containers: dict[str, FakeContainer] = {}  # they outlive their agents
        self.trouble: Callable[[str], Any] = lambda phase: None
        self.asks_early = False  # the engines call ``before_resume``, as those do whose servers have sockets
        self.ports = {edge: free_port() for edge in EDGES}
        self.authority = Authority()
        self._transports: list[asyncio.BaseTransport] = []
        self._released = asyncio.Event()

    async def start_agent(self, edge: str, **changes: Any) -> NodeAgent:
        control_port = free_port()
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: control.ControlServer(functools.partial(self._obey, edge)),
            local_addr=("127.0.0.1", control_port),
        )
        self._transports.append(transport)
        config = AgentConfig(
            edge=edge,
            listen=Endpoint("127.0.0.1", self.ports[edge]),
            peers={other: Endpoint("127.0.0.1", self.ports[other]) for other in EDGES if other != edge},
            tls=self.authority.issue(edge).save(self.directory / "tls", edge),
            orchestrators=["orch"],
            service=ServerCommand(argv=["fake"]),
            control=Endpoint("127.0.0.1", control_port),
            collect=["/run/events.jsonl", "/run/missing"],
            journal=str(self.directory / f"{edge}.journal"),
        )
        config = msgspec.structs.replace(config, **changes)
        agent = NodeAgent(
            config,
            EventLog(edge, None, self.events.append),
            container=self.containers.setdefault(edge, FakeContainer(self.directory / edge)),
            make_engine=lambda name, context: FakeEngine(
                context, self.service, lambda p: self.trouble(p), asks_early=self.asks_early
            ),
        )
        await agent.start()
        self.agents[edge] = agent
        return agent

    async def _obey(self, edge: str, order: control.Order) -> dict[str, Any]:
        self.service.log.append(type(order).__name__)
        if isinstance(order, control.Commit):
            self.service.leases[edge].keep(order.epoch)
        if isinstance(order, control.Prepare):
            result = self.trouble("notice")
            if asyncio.iscoroutine(result):
                await result
            return self.notice
        return {"standby": False}

    def stand_still_at(self, phase: str) -> asyncio.Event:
        """Whoever comes to that phase stays there until ``go_on``; returns what is set when he has come."""
        reached, released = asyncio.Event(), asyncio.Event()
        self._released = released

        def trouble(now: str) -> Any:
            if now != phase:
                return None
            reached.set()
            return released.wait()

        self.trouble = trouble
        return reached

    def go_on(self) -> None:
        """Nobody stands still any more, nor will."""
        self.trouble = lambda now: None
        self._released.set()

    async def kill_agent(self, edge: str) -> None:
        """As if by SIGKILL: what it was doing stops where it is, and what it had stays."""
        agent = self.agents.pop(edge)
        await agent.rpc.stop(0)
        await agent.source.close()
        agent.control.close()

    def order(self, epoch: int = 1, **changes: Any) -> MoveOrder:
        values: dict[str, Any] = {
            "epoch": epoch,
            "strategy": Strategy.PROACTIVE_EXPLICIT,
            "server_first": False,
            "engine": "fake",
            "source": "edge-1",
            "destination": "edge-2",
            "service": Endpoint("10.0.2.2", 4433),
            "deadlines": PATIENT,
            **changes,
        }
        return MoveOrder(**values)

    async def close(self) -> None:
        self._released.set()
        for agent in self.agents.values():
            await agent.close()
        for transport in self._transports:
            transport.close()


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    made = World(directory)
    try:
        for edge in EDGES:
            await made.start_agent(edge)
        yield made
    finally:
        await made.close()


class Injected(MigrationError):
    """A failure that a test wanted."""


def go(directory: Path, story: Callable[[World], Awaitable[None]]) -> None:
    """Play a story with two agents; two servers at one time end it as a failure."""

    async def run() -> None:
        async with world(directory) as made:
            await asyncio.wait_for(story(made), 90)
            assert not made.service.ever_two

    asyncio.run(run())
