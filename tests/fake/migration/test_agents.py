"""Two agents and every failure of an engine: the server ends up at one of the two, exactly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quicferry.errors import InvalidInput, MigrationError
from quicferry.migration.rpc.channel import RpcClient
from quicferry.migration.rpc.messages import (
    ABORT,
    COLLECT_FILES,
    COMMIT,
    MOVE,
    PREPARE_DESTINATION,
    START_SERVICE,
    STATUS,
    STOP_SERVICE,
    AbortMove,
    CollectFiles,
    MoveRequest,
    PrepareDestination,
    StartService,
    StatusQuery,
    StopService,
)
from quicferry.migration.states import Step
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from tests.migration_support import PATIENT, QUICK, SHORT_LEASE, Injected, World, go
from tests.waiting import eventually


def at(phase: str, error: Exception | None = None) -> Callable[[str], Any]:
    def trouble(now: str) -> None:
        if now == phase:
            raise error or Injected(f"no {phase}")

    return trouble


def stuck_at(phase: str, seconds: float = 20.0) -> Callable[[str], Any]:
    def trouble(now: str) -> Any:
        return asyncio.sleep(seconds) if now == phase else None

    return trouble


def test_a_move(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at, outcome.error) == ("moved", "edge-2", None)
        assert w.service.serves == {"edge-2"}
        assert w.service.arrived == w.service.state
        assert outcome.transferred_bytes == len(w.service.state)
        assert outcome.notice == {"ready": 1, "refused": 0, "silent": 0}
        assert set(outcome.steps_ms) == {
            "preparing", "ready", "checkpoint", "transfer", "restore", "commit",
        }  # fmt: skip
        names = [event.name for event in w.events]
        assert names == [
            "migration.prepare.started",
            "migration.prepare.complete",
            "migration.notice.started",
            "migration.notice.complete",
            "migration.transfer.started",
            "migration.transfer.complete",
            "migration.commit.started",
            "migration.commit.complete",
            "migration.finished",
        ]
        assert w.agents["edge-2"].destination.machine.step is Step.MOVED

    go(tmp_path, story)


BEFORE_FREEZE = ["prepare_source", "prepare_destination", "notice", "checkpoint"]
AFTER_FREEZE = ["frozen", "chunk 0", "chunk 2", "restore", "restored", "resumed"]


@pytest.mark.parametrize("phase", BEFORE_FREEZE + AFTER_FREEZE)
@pytest.mark.parametrize("how", ["MigrationError", "OSError", "never ends"])
def test_failures_leave_the_server_at_the_source(tmp_path: Path, phase: str, how: str) -> None:
    async def story(w: World) -> None:
        w.trouble = {
            "MigrationError": at(phase),
            "OSError": at(phase, OSError(28, "No space left on device")),
            "never ends": stuck_at(phase),
        }[how]
        deadlines = QUICK if how == "never ends" else PATIENT
        outcome = await w.agents["edge-1"].source.move(w.order(deadlines=deadlines))
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert outcome.error
        assert w.service.serves == {"edge-1"}
        # and the next move works
        w.trouble = lambda phase: None
        again = await w.agents["edge-1"].source.move(w.order(2))
        assert again.outcome == "moved", again
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


def test_a_server_that_cannot_be_brought_back_is_told(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        def trouble(now: str) -> None:
            if now in ("chunk 1", "resume_source"):
                raise Injected(f"no {now}")

        w.trouble = trouble
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("lost", None)
        assert "no chunk 1" in (outcome.error or "") and "no resume_source" in (outcome.error or "")

    go(tmp_path, story)


def test_a_source_that_cannot_clean_up_stays_silent(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.trouble = at("give_up_source")
        w.agents["edge-1"].container.adopt(7)
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "moved"
        assert w.agents["edge-1"].container.service_pid is None
        assert w.service.serves == {"edge-2"}
        assert "migration.commit.failed" in [event.name for event in w.events]

    go(tmp_path, story)


def test_an_unwilling_destination_is_ended_by_force(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        def trouble(now: str) -> None:
            if now in ("restored", "abandon_destination"):
                raise Injected(now)

        w.trouble = trouble
        w.agents["edge-2"].container.adopt(7)
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "stayed"
        assert w.agents["edge-2"].container.service_pid is None

    go(tmp_path, story)


def test_there_and_back(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        for epoch in range(1, 5):
            here, there = ("edge-1", "edge-2") if epoch % 2 else ("edge-2", "edge-1")
            outcome = await w.agents[here].source.move(w.order(epoch, source=here, destination=there))
            assert outcome.outcome == "moved", outcome
            assert w.service.serves == {there}

    go(tmp_path, story)


def test_orders_are_idempotent(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        source = w.agents["edge-1"].source
        first, second = await asyncio.gather(source.move(w.order()), source.move(w.order()))
        assert first == second == await source.move(w.order())
        assert w.service.log.count("frozen") == 1
        with pytest.raises(MigrationError, match="asked to move a server away from edge-2"):
            await source.move(w.order(9, source="edge-2"))
        assert (await source.move(w.order(2))).outcome == "moved"
        with pytest.raises(MigrationError, match="epoch 1 is over"):
            await source.move(w.order(1))

    go(tmp_path, story)


def test_one_move_at_a_time(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        reached = w.stand_still_at("chunk 1")
        source = w.agents["edge-1"].source
        moving = asyncio.create_task(source.move(w.order()))
        await reached.wait()
        with pytest.raises(MigrationError, match="a move is in progress"):
            await source.move(w.order(2))
        w.go_on()
        assert (await moving).outcome == "moved"

    go(tmp_path, story)


def test_an_abort_overtakes_its_order(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        destination = w.agents["edge-2"].destination
        assert (await destination.abort(1, "early")).resumed is None
        with pytest.raises(MigrationError, match="epoch 1 is over"):
            await destination.prepare(w.order())
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "stayed"
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


def test_an_abort_in_mid_transfer(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        reached = w.stand_still_at("chunk 2")
        moving = asyncio.create_task(w.agents["edge-1"].source.move(w.order()))
        await reached.wait()
        assert (await w.agents["edge-2"].destination.abort(1, "by hand")).resumed is None
        w.go_on()
        outcome = await moving
        assert outcome.outcome == "stayed"
        assert "by hand" in (outcome.error or "")
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


def test_an_abort_that_comes_too_late_hears_so(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        outcome = await w.agents["edge-1"].source.move(w.order())
        verdict = await w.agents["edge-2"].destination.abort(1, "too late")
        assert verdict.resumed is not None
        assert verdict.resumed.t_ns == outcome.resumed_t_ns
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


def test_a_destination_that_was_left_takes_a_newer_order(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.agents["edge-2"].destination.prepare(w.order(1))
        outcome = await w.agents["edge-1"].source.move(w.order(2))
        assert outcome.outcome == "moved"
        assert w.service.log.count("abandon_destination") == 1

    go(tmp_path, story)


# --- the network between the agents fails ---------------------------------------------------------


async def silence(w: World, edge: str) -> None:
    """From now on that agent's answers are lost: it cannot be called any more."""
    await w.agents[edge].rpc.stop(0)


def test_the_destination_falls_silent_before_the_end(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.trouble = lambda now: silence(w, "edge-2") if now == "chunk 2" else None
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "stayed"
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


@pytest.mark.parametrize("phase", ["restored", "resumed"])
def test_the_destination_falls_silent_after_the_end(tmp_path: Path, phase: str) -> None:
    """The source waits until the lease is over; the destination's server holds itself back by then."""

    async def story(w: World) -> None:
        w.trouble = lambda now: silence(w, "edge-2") if now == phase else None
        outcome = await w.agents["edge-1"].source.move(w.order(deadlines=SHORT_LEASE))
        assert outcome.outcome == "stayed"
        assert outcome.steps_ms["restore"] >= 800, "it did not wait for lease and fence"
        assert w.service.serves == {"edge-1"}
        machine = w.agents["edge-2"].destination.machine
        assert await asyncio.to_thread(eventually, lambda: machine.step is Step.STAYED)
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


def test_a_lost_word_is_asked_for_again(tmp_path: Path) -> None:
    """The stream breaks after the resume, but the destination can be asked."""

    async def story(w: World) -> None:
        destination = w.agents["edge-2"]
        original = destination.destination.receive

        async def receive(requests: Any, send: Any, caller: str) -> None:
            async def lossy(answer: Any) -> None:
                if type(answer).__name__ == "Resumed":
                    raise MigrationError("the stream breaks here")
                await send(answer)

            await original(requests, lossy, caller)

        destination.rpc.duplex(_receive_method(), receive)
        await _restart(destination)
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("moved", "edge-2")
        assert w.service.serves == {"edge-2"}
        assert destination.destination.machine.step is Step.MOVED

    go(tmp_path, story)


def test_a_lost_commit_is_asked_for(tmp_path: Path) -> None:
    """The destination asks the source before its fence, when nobody tells it."""

    async def story(w: World) -> None:
        destination = w.agents["edge-2"].destination
        original = destination.receive

        async def receive(requests: Any, send: Any, caller: str) -> None:
            async def deaf() -> Any:
                async for message in requests:
                    if type(message).__name__ != "Commit":
                        yield message

            await original(deaf(), send, caller)

        w.agents["edge-2"].rpc.duplex(_receive_method(), receive)
        await _restart(w.agents["edge-2"])
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome == "moved"
        assert w.service.serves == {"edge-2"}
        assert destination.machine.step is Step.MOVED

    go(tmp_path, story)


def test_a_server_whose_lease_ended_before_it_heard_of_the_commit_goes_on(tmp_path: Path) -> None:
    """It has said that it serves, then is cut off both ways: it holds itself back until it is told."""

    async def story(w: World) -> None:
        source, destination = w.agents["edge-1"], w.agents["edge-2"]
        original = destination.destination.receive
        walls: list[asyncio.Server] = []
        conversations: list[asyncio.StreamWriter] = []

        async def wall(edge: str) -> None:
            """The port is open, but nobody speaks: cut off, not gone."""
            await w.agents[edge].rpc.stop(0)
            walls.append(
                await asyncio.start_server(
                    lambda _, writer: conversations.append(writer), "127.0.0.1", w.ports[edge]
                )
            )

        async def receive(requests: Any, send: Any, caller: str) -> None:
            async def last_words(answer: Any) -> None:
                await send(answer)
                if type(answer).__name__ == "Resumed":
                    # the word arrives, then nothing more in either direction
                    await asyncio.sleep(0.02)
                    raise MigrationError("cut off")

            await original(requests, last_words, caller)

        destination.rpc.duplex(_receive_method(), receive)
        destination.rpc.unary(COMMIT, _never)
        await _restart(destination)
        moving = asyncio.create_task(source.source.move(w.order(deadlines=SHORT_LEASE)))
        while destination.destination.machine.step is not Step.COMMIT:  # noqa: ASYNC110  # of another task
            await asyncio.sleep(0.001)
        await wall("edge-1")
        await wall("edge-2")
        while w.service.serves:  # noqa: ASYNC110  # of another task
            await asyncio.sleep(0.01)
        assert w.service.leases["edge-2"].held, "its process is there, and has its state"
        assert destination.destination.machine.step is Step.COMMIT
        assert source.source.machine.step is Step.COMMIT, "it does not guess"
        for made in walls:
            made.close()
        for writer in conversations:
            writer.close()
        destination.rpc.unary(COMMIT, lambda request, caller: destination.destination.commit(request.epoch))
        await destination.rpc.start()
        outcome = await moving
        assert (outcome.outcome, outcome.serves_at) == ("moved", "edge-2")
        assert w.service.serves == {"edge-2"}
        assert w.service.leases["edge-2"].described() == {"epoch": 1, "kept": True, "held": False}

    go(tmp_path, story)


async def _never(request: Any, caller: str) -> Any:
    await asyncio.sleep(60)


@pytest.mark.parametrize("seed", range(6))
def test_any_trouble(tmp_path: Path, seed: int) -> None:
    """Several moves with failures, delays and silences drawn at random: one server after each."""

    async def story(w: World) -> None:
        draw = random.Random(seed)
        here, there = "edge-1", "edge-2"
        returning: set[asyncio.Task[None]] = set()

        async def absent(edge: str, seconds: float) -> None:
            rpc = w.agents[edge].rpc
            await rpc.stop(0)

            async def back() -> None:
                await asyncio.sleep(seconds)
                await rpc.start()

            task = asyncio.create_task(back())
            returning.add(task)
            task.add_done_callback(returning.discard)

        def trouble(phase: str) -> Any:
            # what may fail without anybody left to save the server is not among it
            if phase in ("resume_source", "abandon_destination", "give_up_source"):
                return None
            match draw.choices(["nothing", "fails", "is slow", "is cut off"], [30, 1, 1, 2])[0]:
                case "fails":
                    raise Injected(phase)
                case "is slow":
                    return asyncio.sleep(draw.uniform(0.0, 0.6))
                case "is cut off" if not returning:
                    # the destination only: a closed port of the source means that its host is gone
                    return absent(there, draw.uniform(0.0, 1.0))
            return None

        w.trouble = trouble
        for epoch in range(1, 6):
            order = w.order(epoch, source=here, destination=there, deadlines=QUICK)
            outcome = await w.agents[here].source.move(order)
            if returning:
                await asyncio.wait(returning)
            await _settled(w)
            assert w.service.serves == {outcome.serves_at}, (epoch, outcome)
            if outcome.outcome == "moved":
                here, there = there, here

    go(tmp_path, story)


async def _settled(w: World) -> None:
    async with asyncio.timeout(30):
        while not all(agent.destination.machine.is_over for agent in w.agents.values()):
            if any(
                agent.destination.machine.step in (Step.PREPARING, Step.READY) for agent in w.agents.values()
            ):
                return  # prepared for a move that did not come; the next order takes its place
            await asyncio.sleep(0.01)


def _receive_method() -> Any:
    from quicferry.migration.rpc.messages import RECEIVE

    return RECEIVE


async def _restart(agent: Any) -> None:
    await agent.rpc.stop(0)
    await agent.rpc.start()


# --- the methods ----------------------------------------------------------------------------------


def test_methods_over_the_wire(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        identity = w.authority.issue("orch")
        async with RpcClient(identity, "edge-1", Endpoint("127.0.0.1", w.ports["edge-1"])) as edge_1:
            await edge_1.ready(60)
            status = await edge_1.call(STATUS, StatusQuery(ask_server=True), timeout_s=60)
            assert (status.edge, status.epoch, status.service_pid) == ("edge-1", 0, None)
            assert status.server == {"standby": False}
            assert (await edge_1.call(START_SERVICE, StartService(), timeout_s=60)).pid == 100
            with pytest.raises(MigrationError, match="a server already runs at edge-1"):
                await edge_1.call(START_SERVICE, StartService(), timeout_s=60)
            w.agents["edge-1"].container.path("/run/events.jsonl").write_bytes(b"{}\n")
            files = await edge_1.call(COLLECT_FILES, CollectFiles(), timeout_s=60)
            assert files.files == {"/run/events.jsonl": b"{}\n"}
            with pytest.raises(InvalidInput, match="knows no edge 'edge-7'") as raised:
                await edge_1.call(
                    MOVE,
                    MoveRequest(order=w.order(destination="edge-7")),
                    timeout_s=60,
                )
            assert raised.value.hint == "it knows edge-2"
            with pytest.raises(MigrationError, match="asked to be the destination edge-2"):
                await edge_1.call(PREPARE_DESTINATION, PrepareDestination(order=w.order()), timeout_s=60)
            assert (await edge_1.call(ABORT, AbortMove(epoch=5, reason="x"), timeout_s=60)).resumed is None
            assert (await edge_1.call(STOP_SERVICE, StopService(), timeout_s=60)).summary == {
                "standby": False
            }
            request = MoveRequest(order=w.order(strategy=Strategy.SYMMETRIC))
            outcome = await edge_1.call(MOVE, request, timeout_s=60)
            assert outcome.outcome == "moved"
            status = await edge_1.call(STATUS, StatusQuery(), timeout_s=60)
            assert (status.epoch, status.part, status.step) == (1, "source", "moved")

    go(tmp_path, story)


def test_strangers_are_not_heard(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        from quicferry.migration.rpc.channel import Unreachable
        from quicferry.migration.rpc.credentials import Authority

        endpoint = Endpoint("127.0.0.1", w.ports["edge-1"])
        async with RpcClient(Authority().issue("orch"), "edge-1", endpoint) as stranger:
            with pytest.raises(Unreachable):
                await stranger.call(STATUS, StatusQuery(), timeout_s=60)
        # the right authority, but not the party that was meant
        async with RpcClient(w.authority.issue("orch"), "edge-2", endpoint) as mistaken:
            with pytest.raises(Unreachable):
                await mistaken.call(STATUS, StatusQuery(), timeout_s=60)

    go(tmp_path, story)
