"""The commit that crosses while the server resumes: what it saves, and what it must not give away."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.rpc.messages import RECEIVE, Commit, Committed, Renew, Resumed, Resuming
from quicferry.migration.states import Step
from tests.migration_support import PATIENT, SHORT_LEASE, Injected, World, go


async def granted(w: World) -> None:
    """Wait until the source has recorded the commit."""
    machine = w.agents["edge-1"].source.machine
    while machine.step is not Step.COMMIT:  # noqa: ASYNC110  # of another task
        await asyncio.sleep(0.001)


async def heard(w: World) -> None:
    """Wait until the destination's agent has heard of it, too."""
    destination = w.agents["edge-2"].destination
    while not destination._granted:  # noqa: ASYNC110  # of another task
        await asyncio.sleep(0.001)


async def listening(w: World, words: list[str], breaks_at: type[Any] | None = None) -> None:
    """Have the destination's stream write down what crosses, and break before that message."""
    agent = w.agents["edge-2"]
    original = agent.destination.receive

    async def receive(requests: Any, send: Any, caller: str) -> None:
        async def heard() -> Any:
            async for message in requests:
                words.append(type(message).__name__)
                yield message

        async def said(answer: Any) -> None:
            if breaks_at is not None and isinstance(answer, breaks_at):
                raise MigrationError("the stream breaks here")
            words.append(type(answer).__name__)
            await send(answer)

        await original(heard(), said, caller)

    agent.rpc.duplex(RECEIVE, receive)
    await agent.rpc.stop(0)
    await agent.rpc.start()


def test_the_commit_crosses_while_the_server_resumes(tmp_path: Path) -> None:
    #: wire-format 9.1: a destination SHOULD ask for it as soon as
    #: wire-format 9.1: server MUST NOT be told of the commit before it has resumed
    async def story(w: World) -> None:
        words: list[str] = []
        w.asks_early = True
        await listening(w, words)
        w.trouble = lambda now: heard(w) if now == "asked" else None
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("moved", "edge-2")
        words = [word for word in words if word not in ("Begin", "Piece", "End", "Received", "Renew")]
        assert words == ["Resuming", "Commit", "Resumed", "Committed"]
        log = w.service.log
        assert log.index("Commit") == log.index("resumed") + 1, "the server hears of it once it serves"
        assert log.count("Commit") == 1
        assert not w.service.leases["edge-2"].described()["held"]
        assert w.service.leases["edge-2"].described()["kept"]
        names = [event.name for event in w.events]
        assert names.index("migration.granted") < names.index("migration.commit.started")

    go(tmp_path, story)


@pytest.mark.parametrize("error", [Injected("injected"), OSError(28, "No space left on device")])
def test_a_restore_that_fails_after_the_commit_gives_it_back(tmp_path: Path, error: Exception) -> None:
    async def story(w: World) -> None:
        async def fail() -> None:
            await granted(w)
            raise error

        w.asks_early = True
        w.trouble = lambda now: fail() if now == "asked" else None
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert str(error) in (outcome.error or "")
        assert w.service.serves == {"edge-1"}
        assert "Commit" not in w.service.log, "no server heard of it"
        w.trouble = lambda now: None
        assert (await w.agents["edge-1"].source.move(w.order(2))).outcome == "moved"

    go(tmp_path, story)


def test_a_restore_that_never_ends_gives_it_back_when_the_lease_is_over(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.asks_early = True
        w.trouble = lambda now: asyncio.sleep(3600) if now == "asked" else None
        outcome = await w.agents["edge-1"].source.move(w.order(deadlines=SHORT_LEASE))
        assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
        assert w.service.serves == {"edge-1"}

    go(tmp_path, story)


@pytest.mark.parametrize("word", [Resuming, Resumed, Committed])
def test_a_stream_that_breaks(tmp_path: Path, word: type[Any]) -> None:
    """Whichever of the destination's words is lost, it is asked, and the move ends at one place."""

    async def story(w: World) -> None:
        w.asks_early = True
        await listening(w, [], word)
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert outcome.outcome in (("moved", "stayed") if word is Resuming else ("moved",))
        assert w.service.serves == {outcome.serves_at}

    go(tmp_path, story)


def test_a_source_that_was_killed_after_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has told the destination, which resumes: the agent that is started again finds the server there."""
    #: wire-format 9.1: MUST NOT go on before the destination says that it never will

    async def story(w: World) -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            await granted(w)
            reached.set()
            await go_on.wait()

        # nobody renews the lease of a source that was killed, and the destination resumes within it
        monkeypatch.setattr("quicferry.migration.agent.source_move.LEASE_S", PATIENT.restore_s)
        w.asks_early = True
        w.trouble = lambda now: wait() if now == "asked" else None
        moving = asyncio.create_task(w.agents["edge-1"].source.move(w.order()))
        await reached.wait()
        await w.kill_agent("edge-1")
        with suppress(asyncio.CancelledError):
            await moving
        again = await w.start_agent("edge-1")
        assert again.host.journal.step_in(1, "source") is Step.COMMIT
        recovering = asyncio.create_task(again.recover())
        await asyncio.sleep(0.1)
        assert w.service.serves == set(), "it does not guess"
        go_on.set()
        outcome = await recovering
        assert outcome is not None
        assert (outcome.outcome, outcome.serves_at) == ("moved", "edge-2")
        assert w.service.serves == {"edge-2"}

    go(tmp_path, story)


def test_a_longer_lease_is_heard_between_commit_and_resume(tmp_path: Path) -> None:
    """A restore that takes its time after the commit goes by the lease as it was renewed last."""

    async def story(w: World) -> None:
        destination = w.agents["edge-2"].destination
        renewed: list[Renew] = []
        original = destination._renew
        destination._renew = lambda message: (renewed.append(message), original(message))[1]  # type: ignore[method-assign]

        async def wait() -> None:
            await granted(w)
            before = len(renewed)
            while len(renewed) == before:  # noqa: ASYNC110  # of another task
                await asyncio.sleep(0.01)

        w.asks_early = True
        w.trouble = lambda now: wait() if now == "asked" else None
        assert (await w.agents["edge-1"].source.move(w.order())).outcome == "moved"
        assert renewed

    go(tmp_path, story)


def test_a_commit_twice_is_one(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.asks_early = True
        assert (await w.agents["edge-1"].source.move(w.order())).outcome == "moved"
        verdict = await w.agents["edge-2"].destination.commit(Commit(epoch=1).epoch)
        assert verdict.resumed is not None
        assert w.service.log.count("Commit") == 1

    go(tmp_path, story)
