"""Real agent and orchestrator processes, real containers, the hand-off engine; the service is a small one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quicferry.events import Event
from quicferry.migration.agent.config import AgentConfig, LocalMove, ServerCommand
from quicferry.migration.orchestrator import EndCommand, MoveCommand, OrchestratorConfig, StartCommand
from quicferry.migration.order import Deadlines
from quicferry.migration.rpc.channel import RpcClient
from quicferry.migration.rpc.credentials import Authority
from quicferry.migration.rpc.messages import COLLECT_FILES, STATUS, CollectFiles, StatusQuery
from quicferry.model import Endpoint
from quicferry.paths import CHECKOUT
from quicferry.strategies import Strategy
from tests.migration_support import EDGES
from tests.ports import free_port

pytestmark = pytest.mark.needs("root")

SERVICE = Path(__file__).with_name("agents_service.py")
EVENTS = "/run/events.jsonl"
QUICK = Deadlines(prepare_s=8.0, notice_s=0.5, checkpoint_s=2.0, transfer_s=3.0, restore_s=2.0, commit_s=1.0)


class Program:
    """A process with JSON lines on stdout, kept by their one key."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[Event] = []
        self._lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())
        self._seen = asyncio.Condition()

    @classmethod
    async def start(cls, module: str, file: Path) -> Program:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--config", str(file)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=CHECKOUT,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            value = msgspec.json.decode(line)
            if "event" in value:
                async with self._seen:
                    self.events.append(msgspec.convert(value["event"], Event))
                    self._seen.notify_all()
            else:
                self._lines.put_nowait(value)

    async def expect(self, key: str, timeout_s: float = 15.0) -> Any:
        line = await asyncio.wait_for(self._lines.get(), timeout_s)
        assert set(line) == {key}, line
        return line[key]

    async def sees(self, event: str, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s), self._seen:
            await self._seen.wait_for(lambda: event in names(self.events))

    def tell(self, command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(command) + b"\n")

    async def ask(self, command: Any, key: str = "outcome") -> Any:
        self.tell(command)
        return await self.expect(key)

    async def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
        status = await asyncio.wait_for(self.process.wait(), 10)
        await self._reading
        return status


class Field:
    """Two agents and an orchestrator on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.rpc = {edge: Endpoint("127.0.0.1", free_port()) for edge in EDGES}
        self.agents: dict[str, Program] = {}
        self.orchestrator: Program

    def _write(self, name: str, config: Any) -> Path:
        file = self.directory / f"{name}.json"
        file.write_bytes(msgspec.json.encode(config))
        return file

    async def start_agent(self, edge: str, broken: str | None = None) -> None:
        control_port = free_port()
        argv = [sys.executable, str(SERVICE), edge, str(control_port), EVENTS]
        if broken is not None:
            argv += ["--break", broken]
        (other,) = set(EDGES) - {edge}
        config = AgentConfig(
            edge=edge,
            listen=self.rpc[edge],
            peers={other: self.rpc[other]},
            orchestrators=["orch", "test"],
            tls=self.authority.issue(edge).save(self.directory / "tls", edge),
            service=ServerCommand(argv=argv),
            standby=ServerCommand(argv=[*argv, "--standby"]),
            control=Endpoint("127.0.0.1", control_port),
            collect=[EVENTS],
            journal=str(self.directory / f"{edge}.journal"),
            on_signal=LocalMove(
                strategy=Strategy.POOL,
                engine="handoff",
                destination=other,
                service=Endpoint("10.0.2.2", 4433),
                deadlines=QUICK,
            ),
        )
        self.agents[edge] = await Program.start("apps.agent", self._write(edge, config))

    async def start(self, broken: dict[str, str]) -> None:
        for edge in EDGES:
            await self.start_agent(edge, broken.get(edge))
        for agent in self.agents.values():
            await agent.expect("ready")
        config = OrchestratorConfig(
            name="orch",
            agents=self.rpc,
            tls=self.authority.issue("orch").save(self.directory / "tls", "orch"),
        )
        self.orchestrator = await Program.start("apps.orchestrator", self._write("orch", config))
        assert await self.orchestrator.expect("ready") == {"name": "orch"}

    def move(self, source: str = "edge-1", destination: str = "edge-2", **changes: Any) -> MoveCommand:
        values: dict[str, Any] = {
            "strategy": Strategy.PROACTIVE_EXPLICIT,
            "engine": "handoff",
            "service": Endpoint("10.0.2.2", 4433),
            "deadlines": QUICK,
            **changes,
        }
        return MoveCommand(source=source, destination=destination, **values)

    def client(self, edge: str) -> RpcClient:
        return RpcClient(self.authority.issue("test"), edge, self.rpc[edge])

    async def end(self) -> None:
        for program in [getattr(self, "orchestrator", None), *self.agents.values()]:
            if program is not None:
                await program.end()


@contextlib.asynccontextmanager
async def field(directory: Path, broken: dict[str, str]) -> AsyncIterator[Field]:
    made = Field(directory)
    try:
        await made.start(broken)
        yield made
    finally:
        await made.end()


def go(directory: Path, story: Callable[[Field], Awaitable[None]], **broken: str) -> None:
    async def run() -> None:
        async with field(
            directory, {name.replace("_", "-"): order for name, order in broken.items()}
        ) as made:
            await asyncio.wait_for(story(made), 60)

    asyncio.run(run())


def names(events: Sequence[Event]) -> list[str]:
    return [event.name for event in events]


def test_the_orchestrator_moves_a_server_there_and_back(tmp_path: Path) -> None:
    async def story(f: Field) -> None:
        started = await f.orchestrator.ask(StartCommand(edge="edge-1"), "started")
        assert started["server"]["state"] == "what must survive"
        outcome = await f.orchestrator.ask(f.move())
        assert (outcome["outcome"], outcome["serves_at"], outcome["error"]) == ("moved", "edge-2", None)
        assert outcome["epoch"] == 1
        assert outcome["transferred_bytes"] == len("what must survive")
        async with f.client("edge-2") as edge_2, f.client("edge-1") as edge_1:
            status = await edge_2.call(STATUS, StatusQuery(ask_server=True), timeout_s=20)
            assert status.server["state"] == "what must survive"
            assert status.server["standby"] is False
            status = await edge_1.call(STATUS, StatusQuery(), timeout_s=20)
            assert status.service_pid is None
        back = await f.orchestrator.ask(f.move("edge-2", "edge-1", strategy=Strategy.SYMMETRIC))
        assert (back["outcome"], back["serves_at"], back["epoch"]) == ("moved", "edge-1", 2)
        ended = await f.orchestrator.ask(EndCommand(edges=list(EDGES)), "ended")
        assert set(ended) == set(EDGES)
        assert names(f.orchestrator.events) == ["migration.ordered", "migration.ordered"]
        seen = names(f.agents["edge-1"].events)
        assert seen[:4] == [
            "migration.notice.started",
            "migration.notice.complete",
            "migration.checkpoint.started",
            "migration.checkpoint.complete",
        ]
        assert "migration.restore.complete" in names(f.agents["edge-2"].events)
        # nothing of the state is left lying about
        async with f.client("edge-1") as edge_1:
            files = (await edge_1.call(COLLECT_FILES, CollectFiles(), timeout_s=20)).files
        decoder = msgspec.json.Decoder(Event)
        events = [decoder.decode(line) for line in files[EVENTS].splitlines()]
        assert names(events)[-1] == "server.stopped"

    go(tmp_path, story)


@pytest.mark.parametrize(("edge", "order"), [("edge_1", "freeze"), ("edge_2", "import")])
def test_a_failed_move_leaves_the_server_where_it_was(tmp_path: Path, edge: str, order: str) -> None:
    async def story(f: Field) -> None:
        await f.orchestrator.ask(StartCommand(edge="edge-1"), "started")
        outcome = await f.orchestrator.ask(f.move())
        assert (outcome["outcome"], outcome["serves_at"]) == ("stayed", "edge-1")
        assert "this order is broken here" in outcome["error"]
        async with f.client("edge-1") as edge_1, f.client("edge-2") as edge_2:
            status = await edge_1.call(STATUS, StatusQuery(ask_server=True), timeout_s=20)
            assert status.server["state"] == "what must survive"
            files = (await edge_1.call(COLLECT_FILES, CollectFiles(), timeout_s=20)).files
            assert b"server.aborted" in files[EVENTS]
            assert (await edge_2.call(STATUS, StatusQuery(), timeout_s=20)).service_pid is None

    go(tmp_path, story, **{edge: order})


def test_a_move_without_an_orchestrator(tmp_path: Path) -> None:
    async def story(f: Field) -> None:
        await f.orchestrator.ask(StartCommand(edge="edge-1"), "started")
        f.orchestrator.process.kill()
        await f.orchestrator.process.wait()
        f.agents["edge-1"].process.send_signal(signal.SIGUSR1)
        outcome = await f.agents["edge-1"].expect("outcome")
        assert (outcome["outcome"], outcome["serves_at"]) == ("moved", "edge-2")
        assert names(f.agents["edge-1"].events)[0] == "migration.ordered"

    go(tmp_path, story)


def test_a_killed_source_agent_takes_its_server_along_and_the_destination_serves(tmp_path: Path) -> None:
    """The commit never comes, but the source's port is closed: nobody else will ever serve."""

    async def story(f: Field) -> None:
        await f.orchestrator.ask(StartCommand(edge="edge-1"), "started")
        f.orchestrator.tell(f.move())
        await f.agents["edge-2"].sees("migration.restore.started")
        os.kill(f.agents["edge-1"].process.pid, signal.SIGKILL)
        outcome = await f.orchestrator.expect("outcome", 30)
        async with f.client("edge-2") as edge_2:
            status = await edge_2.call(STATUS, StatusQuery(ask_server=True), timeout_s=20)
        assert (outcome["outcome"], outcome["serves_at"]) == ("moved", "edge-2"), outcome
        assert status.server["state"] == "what must survive"
        assert status.step == "moved"

    go(tmp_path, story)


def test_wrong_orders_are_told_and_harm_nothing(tmp_path: Path) -> None:
    async def story(f: Field) -> None:
        assert f.orchestrator.process.stdin is not None
        f.orchestrator.process.stdin.write(b"not json\n")
        assert (await f.orchestrator.expect("outcome"))["outcome"] == "invalid"
        outcome = await f.orchestrator.ask(f.move("edge-1", "edge-1"))
        assert (outcome["outcome"], outcome["hint"]) == ("refused", "name two edges")
        outcome = await f.orchestrator.ask(f.move(engine="teleport"))
        assert outcome["outcome"] == "refused"
        assert "unknown engine 'teleport'" in outcome["error"]
        # no server runs: the move fails before anything is touched
        outcome = await f.orchestrator.ask(f.move())
        assert (outcome["outcome"], outcome["serves_at"]) == ("stayed", "edge-1")

    go(tmp_path, story)
