"""One owner: journals that cannot be written or are torn, commits, verdicts (docs/adr/0014-one-owner.md)."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.migration.agent.source_move import FENCE_MARGIN_S, RENEWALS
from quicferry.migration.journal import Journal
from quicferry.migration.orchestrator import said_by
from quicferry.migration.order import LEASE_S
from quicferry.migration.rpc.messages import AgentStatus, Outcome
from quicferry.migration.serving_lease import KILL_AFTER_NS
from quicferry.migration.states import Step
from quicferry.units import NS_PER_S
from tests.migration_support import PATIENT, SHORT_LEASE, World, go
from tests.waiting import eventually


def fails_from(journal: Journal, step: Step) -> None:
    """From the first record of that step on, the disk takes nothing any more."""
    append = journal._append
    broken = False

    def full(path: Path, line: bytes) -> None:
        nonlocal broken
        broken = broken or f'"step":"{step}"'.encode() in line
        if broken:
            raise OSError(28, "No space left on device", str(path))
        append(path, line)

    journal._append = full  # type: ignore[method-assign]


SOURCE_STEPS = [Step.PREPARING, Step.READY, Step.CHECKPOINT, Step.TRANSFER, Step.RESTORE]
DESTINATION_STEPS = [Step.PREPARING, Step.READY, Step.TRANSFER, Step.RESTORE]


@pytest.mark.parametrize(
    ("edge", "step"),
    [*(("edge-1", step) for step in SOURCE_STEPS), *(("edge-2", step) for step in DESTINATION_STEPS)],
)
def test_a_journal_that_cannot_be_written(tmp_path: Path, edge: str, step: Step) -> None:
    """What cannot be recorded is not done, and the server is brought back."""

    async def story(w: World) -> None:
        fails_from(w.agents[edge].host.journal, step)
        if (edge, step) == ("edge-1", Step.PREPARING):
            with pytest.raises(MigrationError, match="the journal of edge-1 cannot be written"):
                await w.agents["edge-1"].source.move(w.order())
            assert w.service.log == [], "nothing was begun"
        else:
            outcome = await w.agents["edge-1"].source.move(w.order())
            assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
            assert f"the journal of {edge} cannot be written" in (outcome.error or "")
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


@pytest.mark.parametrize(
    ("edge", "step"),
    [("edge-1", Step.COMMIT), ("edge-1", Step.MOVED), ("edge-2", Step.COMMIT), ("edge-2", Step.MOVED)],
)
def test_a_record_that_a_server_can_stand_for_holds_nothing_up(tmp_path: Path, edge: str, step: Step) -> None:
    async def story(w: World) -> None:
        fails_from(w.agents[edge].host.journal, step)
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("moved", "edge-2")
        assert w.service.serves == {"edge-2"}
        assert w.service.leases["edge-2"].described()["kept"]

    go(tmp_path, story)


async def killed_at(w: World, edge: str, phase: str) -> asyncio.Task[Outcome]:
    """Begin a move, and kill that edge's agent when the phase is reached."""
    reached = w.stand_still_at(phase)
    moving = asyncio.create_task(w.agents["edge-1"].source.move(w.order()))
    await asyncio.wait_for(reached.wait(), 60)
    w.trouble = lambda now: None
    await w.kill_agent(edge)
    return moving


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_torn_line_of_the_source_is_asked_about(tmp_path: Path, kept: float) -> None:
    """The line that says that End was about to leave is cut off; the destination serves."""

    async def story(w: World) -> None:
        moving = await killed_at(w, "edge-1", "resumed")
        with suppress(asyncio.CancelledError):
            await moving
        path = tmp_path / "edge-1.journal"
        lines = path.read_bytes().splitlines(keepends=True)
        assert b'"step":"restore"' in lines[-1]
        os.truncate(path, path.stat().st_size - len(lines[-1]) + round(kept * len(lines[-1])))
        agent = await w.start_agent("edge-1")
        assert agent.host.journal.step_in(1, "source") is Step.TRANSFER
        w.go_on()
        outcome = await agent.recover()
        assert outcome is not None
        assert w.service.serves == {outcome.serves_at}
        assert outcome.outcome == ("moved" if outcome.serves_at == "edge-2" else "stayed")

    go(tmp_path, story)


def test_the_commit_is_told_to_the_server_first(tmp_path: Path) -> None:
    """The source gives nothing up before the destination's server has heard that it stays."""

    async def story(w: World) -> None:
        told: list[str] = []
        obey = w._obey

        async def deaf(edge: str, order: control.Order) -> dict[str, Any]:
            if isinstance(order, control.Commit):
                told.append("keep")
                assert "give_up_source" not in w.service.log
                if len(told) < 3:
                    raise MigrationError("not now")
            return await obey(edge, order)

        w._obey = deaf  # type: ignore[method-assign]
        for edge in ("edge-1", "edge-2"):
            await w.kill_agent(edge)
            w.containers[edge].service_pid = 100
            await w.start_agent(edge)
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "moved"
        assert len(told) >= 3
        assert w.service.leases["edge-2"].described()["kept"]

    go(tmp_path, story)


@pytest.mark.parametrize("agents", [("edge-1",), ("edge-2",), ("edge-1", "edge-2")])
def test_no_death_after_the_commit_ends_the_service(tmp_path: Path, agents: tuple[str, ...]) -> None:
    async def story(w: World) -> None:
        order = w.order(deadlines=SHORT_LEASE)
        assert (await w.agents["edge-1"].source.move(order)).outcome == "moved"
        for edge in agents:
            await w.kill_agent(edge)
        lease_s = SHORT_LEASE.restore_s + SHORT_LEASE.commit_s
        await asyncio.sleep(lease_s + KILL_AFTER_NS / NS_PER_S + 0.1)
        assert w.service.serves == {"edge-2"}
        for edge in agents:
            agent = await w.start_agent(edge)
            assert await agent.recover() is None
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


def test_a_destination_whose_agent_died_is_fenced_by_its_server(tmp_path: Path) -> None:
    """Nobody is there to take the server down; it holds itself back, and the source goes on afterwards."""

    async def story(w: World) -> None:
        async def die() -> None:
            agent = w.agents.pop("edge-2")
            await agent.rpc.stop(0)
            for task in asyncio.all_tasks():
                if "DestinationSide" in repr(task) and task is not asyncio.current_task():
                    task.cancel()
            agent.control.close()

        dying: list[asyncio.Task[None]] = []

        def trouble(now: str) -> Any:
            if now == "resumed":
                w.trouble = lambda now: None
                dying.append(asyncio.create_task(die()))
                return asyncio.sleep(60)
            # a dead agent abandons nothing
            return None

        w.trouble = trouble
        engine_end = w.service.end
        w.service.end = lambda edge: None  # type: ignore[method-assign]
        outcome = await w.agents["edge-1"].source.move(w.order(deadlines=SHORT_LEASE))
        w.service.end = engine_end  # type: ignore[method-assign]
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert w.service.serves == {"edge-1"}
        assert w.service.leases["edge-2"].held
        assert dying

    go(tmp_path, story)


def test_a_destination_that_was_taken_back_is_ended_when_it_can_ask(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        async def silent() -> None:
            await w.agents["edge-2"].rpc.stop(0)

        w.trouble = lambda now: silent() if now == "resumed" else None
        outcome = await w.agents["edge-1"].source.move(w.order(deadlines=SHORT_LEASE))
        assert outcome.outcome == "stayed"
        machine = w.agents["edge-2"].destination.machine
        assert await asyncio.to_thread(eventually, lambda: machine.step is Step.STAYED)
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


def test_margins() -> None:
    """The source waits longer than the kernel does, and a lease is renewed well before its end."""
    assert FENCE_MARGIN_S > KILL_AFTER_NS / NS_PER_S
    assert RENEWALS >= 3
    assert LEASE_S >= 1.0


def status(source: str, destination: str) -> AgentStatus:
    return AgentStatus(
        edge="x",
        service_pid=None,
        epoch=1,
        part=None,
        step="idle",
        as_source=source,
        as_destination=destination,
    )


def test_said_by(tmp_path: Path) -> None:
    """Only the last word of a side is a verdict, whatever the other says or does not say."""
    order = World(tmp_path).order()
    steps = [None, *(step.value for step in Step)]
    for source, destination in itertools.product(steps, steps):
        here = None if source is None else status(source, "idle")
        there = None if destination is None else status("idle", destination)
        _, step, edge = said_by(order, there, here)
        if destination == "moved":
            assert (step, edge) == (Step.MOVED, "edge-2")
        elif source in ("moved", "stayed", "lost"):
            assert (step, edge) == (Step(source), {"moved": "edge-2", "stayed": "edge-1"}.get(source))
        else:
            assert (step, edge) == (None, None), (source, destination)


def test_a_server_stands_still_for_no_longer_than_it_may(tmp_path: Path) -> None:
    """A link over which the state crosses too slowly: the source has its server back, with the reason."""
    #: wire-format 9.2: a server SHOULD NOT stand still for longer
    limits = msgspec.structs.replace(PATIENT, transfer_s=20.0, freeze_s=0.5)

    async def story(w: World) -> None:
        w.trouble = lambda phase: asyncio.sleep(0.3) if phase.startswith("chunk") else None
        outcome = await w.agents["edge-1"].source.move(w.order(deadlines=limits))
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert "does not cross in time" in (outcome.error or "")
        assert "0.5 s" in (outcome.error or "")
        assert w.service.serves == {"edge-1"}
        # by the same clock: before chunk 3 began the server was back, and not when the transfer was over
        assert "chunk 3" not in w.service.log
        assert "resume_source" in w.service.log

    go(tmp_path, story)
