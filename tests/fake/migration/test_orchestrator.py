"""The orchestrator, whatever the agents do: it knows where the server is, or says that it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quicferry.errors import InvalidInput, MigrationError
from quicferry.events import Event, EventLog
from quicferry.migration.orchestrator import MoveCommand, Orchestrator, OrchestratorConfig
from quicferry.migration.states import Step
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from tests.migration_support import EDGES, PATIENT, QUICK, Injected, World, world


def go(directory: Path, story: Callable[[World, Orchestrator, list[Event]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with world(directory) as made:
            config = OrchestratorConfig(
                name="orch",
                agents={edge: Endpoint("127.0.0.1", made.ports[edge]) for edge in EDGES},
                tls=made.authority.issue("orch").save(directory / "tls", "orch"),
            )
            events: list[Event] = []
            orchestrator = Orchestrator(config, EventLog("orch", None, events.append))
            try:
                await orchestrator.connect()
                await asyncio.wait_for(story(made, orchestrator, events), 90)
            finally:
                await orchestrator.close()
            assert not made.service.ever_two

    asyncio.run(run())


def command(source: str = "edge-1", destination: str = "edge-2", **changes: Any) -> MoveCommand:
    values: dict[str, Any] = {
        "strategy": Strategy.PROACTIVE_EXPLICIT,
        "engine": "fake",
        "service": Endpoint("10.0.2.2", 4433),
        "deadlines": PATIENT,
        **changes,
    }
    return MoveCommand(source=source, destination=destination, **values)


def test_epochs_go_on_from_what_the_agents_know(tmp_path: Path) -> None:
    async def story(w: World, o: Orchestrator, events: list[Event]) -> None:
        # moves without the orchestrator count, too
        assert (await w.agents["edge-1"].source.move(w.order(4))).outcome == "moved"
        outcome = await o.move(command("edge-2", "edge-1"))
        assert (outcome.epoch, outcome.outcome, outcome.serves_at) == (5, "moved", "edge-1")
        assert [(e.name, e.detail["epoch"]) for e in events] == [("migration.ordered", 5)]
        assert o.machine.step is Step.MOVED

    go(tmp_path, story)


def test_a_destination_that_cannot_get_ready_is_a_refusal(tmp_path: Path) -> None:
    async def story(w: World, o: Orchestrator, events: list[Event]) -> None:
        def trouble(phase: str) -> None:
            if phase == "prepare_destination":
                raise Injected("no room here")

        w.trouble = trouble
        with pytest.raises(MigrationError, match="edge-2: no room here"):
            await o.move(command())
        assert w.service.serves == {"edge-1"}
        assert "prepare_source" not in w.service.log
        w.trouble = lambda phase: None
        assert (await o.move(command())).outcome == "moved"

    go(tmp_path, story)


def test_unknown_edges_are_refused(tmp_path: Path) -> None:
    async def story(w: World, o: Orchestrator, events: list[Event]) -> None:
        with pytest.raises(InvalidInput, match="no agent on 'edge-9'"):
            await o.move(command(destination="edge-9"))
        with pytest.raises(InvalidInput, match="the same edge"):
            await o.move(command(destination="edge-1"))
        assert events == []

    go(tmp_path, story)


@pytest.mark.parametrize(("fails_at", "ends"), [("chunk 1", "stayed"), (None, "moved")])
def test_a_silent_source_is_asked_until_it_answers(tmp_path: Path, fails_at: str | None, ends: str) -> None:
    async def story(w: World, o: Orchestrator, events: list[Event]) -> None:
        rpc = w.agents["edge-1"].rpc

        async def fall_silent() -> None:
            await rpc.stop(0)

        async def come_back() -> None:
            await asyncio.sleep(0.3)
            await rpc.start()

        coming: list[asyncio.Task[None]] = []

        def trouble(phase: str) -> Any:
            if phase == fails_at:
                raise Injected(phase)
            if phase == "chunk 0":
                coming.append(asyncio.create_task(come_back()))
                return fall_silent()
            return None

        w.trouble = trouble
        outcome = await o.move(command())
        serves = {"stayed": "edge-1", "moved": "edge-2"}[ends]
        assert (outcome.outcome, outcome.serves_at) == (ends, serves)
        assert w.service.serves == {serves}
        assert outcome.error, "what went wrong on the way is told"
        assert o.machine.step == ends
        await asyncio.gather(*coming)

    go(tmp_path, story)


def test_nobody_answers(tmp_path: Path) -> None:
    async def story(w: World, o: Orchestrator, events: list[Event]) -> None:
        async def silence() -> None:
            for agent in w.agents.values():
                await agent.rpc.stop(0)

        w.trouble = lambda phase: silence() if phase == "chunk 0" else None
        # it asks for as long as the deadlines are, and only those before the silence may not pass
        deadlines = msgspec.structs.replace(QUICK, prepare_s=3.0, notice_s=1.0, checkpoint_s=2.0)
        outcome = await o.move(command(deadlines=deadlines))
        assert (outcome.outcome, outcome.serves_at) == ("unknown", None)
        assert w.service.serves == {"edge-1"}, "the agents kept to the rules all the same"

    go(tmp_path, story)
