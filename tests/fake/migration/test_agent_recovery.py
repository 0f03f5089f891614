"""Agents and orchestrators that are killed and started again: the journal tells what they were doing."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from quicferry.errors import InvalidInput, MigrationError
from quicferry.events import EventLog
from quicferry.migration.agent.failpoints import Failpoints
from quicferry.migration.orchestrator import MoveCommand, Orchestrator, OrchestratorConfig
from quicferry.migration.rpc.credentials import Authority
from quicferry.migration.rpc.messages import STATUS, Outcome, StatusQuery
from quicferry.migration.rpc.peer import PeerClient
from quicferry.migration.states import Step
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from tests.migration_support import EDGES, PATIENT, World, go
from tests.ports import free_port
from tests.waiting import eventually


async def move_until(w: World, phase: str) -> asyncio.Task[Outcome]:
    """Begin a move and come back when it has reached that phase, where it stands still until it may go on."""
    reached = w.stand_still_at(phase)
    moving = asyncio.create_task(w.agents["edge-1"].source.move(w.order()))
    await asyncio.wait_for(reached.wait(), 60)
    w.trouble = lambda now: None
    return moving


async def killed(w: World, edge: str, moving: asyncio.Task[Outcome]) -> None:
    await w.kill_agent(edge)
    with suppress(asyncio.CancelledError):
        await moving


@pytest.mark.parametrize("phase", ["notice", "frozen", "chunk 1"])
def test_a_source_that_was_killed_before_the_end_brings_its_server_back(tmp_path: Path, phase: str) -> None:
    async def story(w: World) -> None:
        await killed(w, "edge-1", await move_until(w, phase))
        outcome = await (await w.start_agent("edge-1")).recover()
        assert outcome is not None
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert "was killed in the step" in (outcome.error or "")
        assert w.service.serves == {"edge-1"}
        # the epoch is used up: it is answered again; the next one works
        assert await w.agents["edge-1"].source.move(w.order(1)) == outcome
        assert (await w.agents["edge-1"].source.move(w.order(2))).outcome == "moved"

    go(tmp_path, story)


@pytest.mark.parametrize("phase", ["restored", "resumed", "give_up_source"])
def test_a_source_that_was_killed_after_the_end_asks_first(tmp_path: Path, phase: str) -> None:
    async def story(w: World) -> None:
        await killed(w, "edge-1", await move_until(w, phase))
        agent = await w.start_agent("edge-1")
        if phase != "restored":
            w.go_on()
        outcome = await agent.recover()
        assert outcome is not None
        # a destination that is asked to abort before it has resumed does so: both ends are right
        expected = ("stayed", "edge-1") if phase == "restored" else ("moved", "edge-2")
        if phase == "resumed" and outcome.outcome == "stayed":
            expected = ("stayed", "edge-1")
        assert (outcome.outcome, outcome.serves_at) == expected
        assert w.service.serves == {outcome.serves_at}

    go(tmp_path, story)


def test_an_agent_with_nothing_to_finish(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        assert (await w.agents["edge-1"].source.move(w.order())).outcome == "moved"
        await w.kill_agent("edge-1")
        agent = await w.start_agent("edge-1")
        assert await agent.recover() is None
        assert agent.source.machine.step is Step.MOVED
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


def test_a_destination_that_comes_back_knows_that_it_serves(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        moving = await move_until(w, "give_up_source")
        await w.kill_agent("edge-2")
        agent = await w.start_agent("edge-2")
        w.go_on()
        assert (await moving).outcome == "moved"
        assert (await agent.destination.abort(1, "too late")).resumed is not None
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


def test_a_destination_that_was_killed_while_it_was_ready(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.agents["edge-2"].destination.prepare(w.order())
        await w.kill_agent("edge-2")
        agent = await w.start_agent("edge-2")
        assert agent.destination.machine.step is Step.STAYED
        assert (await w.agents["edge-1"].source.move(w.order())).outcome == "stayed"
        assert (await w.agents["edge-1"].source.move(w.order(2))).outcome == "moved"

    go(tmp_path, story)


# --- the orchestrator -------------------------------------------------------------------------------


def orchestrator(w: World) -> Orchestrator:
    config = OrchestratorConfig(
        name="orch",
        agents={edge: Endpoint("127.0.0.1", w.ports[edge]) for edge in EDGES},
        tls=w.authority.issue("orch").save(w.directory / "tls", "orch"),
        journal=str(w.directory / "orch.journal"),
    )
    return Orchestrator(config, EventLog("orch", None, w.events.append))


COMMAND = MoveCommand(
    strategy=Strategy.PROACTIVE_EXPLICIT,
    engine="fake",
    source="edge-1",
    destination="edge-2",
    service=Endpoint("10.0.2.2", 4433),
    deadlines=PATIENT,
)


async def kill_at(w: World, phase: str) -> None:
    """Order a move, and lose the orchestrator when that phase is reached."""
    reached = w.stand_still_at(phase)
    first = orchestrator(w)
    moving = asyncio.create_task(first.move(COMMAND))
    await asyncio.wait_for(reached.wait(), 60)
    w.trouble = lambda now: None
    moving.cancel()
    with suppress(asyncio.CancelledError):
        await moving
    await first.close()


@pytest.mark.parametrize(
    ("phase", "outcome", "edge"),
    [
        ("prepare_destination", "stayed", "edge-1"),
        ("notice", "moved", "edge-2"),
        ("restored", "moved", "edge-2"),
    ],
)
def test_an_orchestrator_finishes_its_account(tmp_path: Path, phase: str, outcome: str, edge: str) -> None:
    async def story(w: World) -> None:
        await kill_at(w, phase)
        w.go_on()
        second = orchestrator(w)
        found = await second.recover()
        assert found is not None
        assert (found.outcome, found.serves_at) == (outcome, edge)
        assert w.service.serves == {edge}
        assert second.machine.step.value == outcome
        assert await second.recover() is None
        await second.close()

    go(tmp_path, story)


# --- a host that has lost its power -----------------------------------------------------------------


async def lose_power(w: World, edge: str) -> None:
    """End the agent and the server of an edge; of its journal nothing is left."""
    await w.kill_agent(edge)
    w.service.serves.discard(edge)
    w.containers[edge].service_pid = None
    (w.directory / f"{edge}.journal").unlink()


def tear_last_line(journal: Path) -> None:
    content = journal.read_bytes()
    journal.write_bytes(content[: content[:-1].rindex(b"\n") + 20])


def test_a_destination_stays_when_the_source_has_lost_all_it_had(tmp_path: Path) -> None:
    """Its own record of the commit is torn, and the source knows of no move: but has no server either."""

    async def story(w: World) -> None:
        assert (await w.agents["edge-1"].source.move(w.order())).outcome == "moved"
        await lose_power(w, "edge-1")
        await w.kill_agent("edge-2")
        tear_last_line(tmp_path / "edge-2.journal")
        await w.start_agent("edge-1")
        machine = (await w.start_agent("edge-2")).destination.machine
        assert machine.step is Step.COMMIT
        assert await asyncio.to_thread(eventually, lambda: machine.step is Step.MOVED)
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


@pytest.mark.parametrize(
    ("phase", "source_said", "outcome", "edge"),
    [("give_up_source", True, "moved", "edge-2"), ("chunk 1", False, "lost", None)],
)
def test_no_order_is_repeated_to_a_source_that_has_lost_all_it_had(
    tmp_path: Path, phase: str, source_said: bool, outcome: str, edge: str | None
) -> None:
    async def story(w: World) -> None:
        await kill_at(w, phase)
        if source_said:
            w.go_on()
            assert await asyncio.to_thread(eventually, lambda: w.agents["edge-1"].source.machine.is_over)
        await lose_power(w, "edge-1")
        await w.start_agent("edge-1")
        second = orchestrator(w)
        found = await second.recover()
        assert found is not None
        assert (found.outcome, found.serves_at) == (outcome, edge)
        assert w.service.serves == ({edge} if edge is not None else set())
        assert w.service.log.count("prepare_source") == 1
        await second.close()

    go(tmp_path, story)


# --- detours and damage -----------------------------------------------------------------------------


def test_a_question_takes_the_detour_when_the_link_is_cut(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        identity = w.authority.issue("edge-1").save(tmp_path / "more", "edge-1").load()
        nobody = Endpoint("127.0.0.1", free_port())
        there = Endpoint("127.0.0.1", w.ports["edge-2"])
        for direct, detour in ((nobody, there), (there, nobody)):
            client = PeerClient(identity, "edge-2", direct, detour)
            status = await client.call(STATUS, StatusQuery(), timeout_s=2.0, wait=True)
            assert status.edge == "edge-2"
            await client.close()
        client = PeerClient(identity, "edge-2", nobody, nobody)
        with pytest.raises(MigrationError):
            await client.call(STATUS, StatusQuery(), timeout_s=0.4, wait=True)
        await client.close()

    go(tmp_path, story)


def test_both_ways_to_a_peer_are_opened_before_they_are_needed() -> None:
    """Else an agent has one descriptor more from the first call on that is late, and that call waits."""

    async def story(direct: socket.socket, detour: socket.socket) -> None:
        ways = [Endpoint(*way.getsockname()) for way in (direct, detour)]
        client = PeerClient(Authority().issue("edge-1"), "edge-2", *ways)
        client.connect()
        for way in (direct, detour):
            way.setblocking(False)
            connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(way), 30)
            connection.close()
        await client.close()

    with socket.create_server(("127.0.0.1", 0)) as direct, socket.create_server(("127.0.0.1", 0)) as detour:
        asyncio.run(story(direct, detour))


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.kill_agent("edge-1")
        await w.start_agent("edge-1", failpoints=Failpoints(damage=["transfer"]))
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert "damaged on its way" in (outcome.error or "")
        # only once: what goes wrong does not go on going wrong
        assert (await w.agents["edge-1"].source.move(w.order(2))).outcome == "moved"

    go(tmp_path, story)


def test_a_move_that_all_clients_refuse_is_called_off(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.notice = {"ready": 0, "refused": 2, "unable": 0, "silent": 0}
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "stayed"
        assert "all clients refuse" in (outcome.error or "")
        # one who follows is enough
        w.notice = {"ready": 1, "refused": 2, "unable": 3, "silent": 1}
        assert (await w.agents["edge-1"].source.move(w.order(2))).outcome == "moved"

    go(tmp_path, story)


def test_an_edge_nobody_knows(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        second = orchestrator(w)
        with pytest.raises(InvalidInput, match="no agent"):
            second.agent("edge-9")
        await second.close()

    go(tmp_path, story)
