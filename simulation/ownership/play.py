"""Plays a story of the world of ownership and judges it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from simulation.clock import Clock, VirtualLoop
from simulation.determinism import determined
from simulation.history import History
from simulation.nonces import watching
from simulation.ownership.adapter import Outcome, bound_to
from simulation.ownership.raw_sockets import THREAD
from simulation.ownership.story import Story
from simulation.ownership.world import ORCHESTRATOR, OwnershipWorld

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (files that live as long as one play)
START_S = 30.0  # for agents, orchestrator, server and client to come up
#: after the last fault has been mended: all deadlines of a move, a recovery, and the orchestrator's questions
SETTLE_S = 10.0
COMMITS = 4  # … of which so many depend on the deadline of the commit
ANSWER_S = 6.0
WAITING_MANY = 20
TASKS_MOST = 20  # of one agent that has nothing to do
TRAFFIC_MOST_S = 120.0
PIECES = 100  # requests between all moves, so that long stories cost no more than short ones


def play(story: Story) -> History:
    """Play it; what was wrong is in the history's violations."""
    clock = Clock()
    loop = VirtualLoop(clock)
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="quicferry-play-", dir=base))
    history = History(clock, hide=str(directory))

    def repeated(number: int) -> None:
        history.violated("nonce-reuse", f"packet number {number} protects two different packets")

    try:
        with determined(clock, story.seed), watching(repeated):
            world = OwnershipWorld(loop, story, history, directory)
            with bound_to(
                grpc=world.rpc.module(),
                files=world.files,
                udp_port=world.ports.make,
                path=world.path_of,
                event_log=world.server_event_log,
                sockets=world.raw.module(),
                thread=THREAD,
            ):
                try:
                    loop.run_until_complete(_live(world))
                finally:
                    history.closed = True
                    _bury(world)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return history


async def _live(world: OwnershipWorld) -> None:
    loop, story = world.loop, world.story
    for name in world.hosts:
        world.start_agent(name)
    if not await _until(world, lambda: bool(world.serving) or bool(world.history.violations), START_S):
        world.history.violated("no-start", "the server does not start")
    if not world.serving:
        return
    world.begin_client()
    assert world.client is not None
    client = world.client
    if not await _until(world, lambda: client.connected, START_S):
        world.history.violated("no-start", "the client does not connect")
        return
    world.connected.set()
    end = loop.time() + TRAFFIC_MOST_S
    lasts_s = sum(move.after_s for move in story.moves)
    pause_s = max(story.interval_s, lasts_s / PIECES)
    while loop.time() < end and not _done(world):
        client.ask()
        await asyncio.sleep(pause_s)
        if client.waiting > WAITING_MANY:
            pause_s = story.interval_s * 20  # nobody answers: more of the same would tell nothing new
    # what is to come comes; then one more request must be answered. A fault may begin meanwhile, each once
    for _ in range(1 + len(story.faults)):
        await _until(world, lambda: loop.time() >= world.calm_at and _quiet(world), SETTLE_S + 2.0)
        client.ask()
        await _until(world, lambda: not client.waiting or client.closed is not None, ANSWER_S)
        if loop.time() >= world.calm_at:
            break
    _judge(world)


def _done(world: OwnershipWorld) -> bool:
    """Whether all moves are over, all faults mended and somebody serves: or it has taken too long."""
    if world.loop.time() < world.calm_at:
        return False
    moved = world.next_move > len(world.story.moves)
    settle_s = SETTLE_S + COMMITS * world.story.commit_s
    late = world.loop.time() > world.calm_at + settle_s
    return late or (moved and len(world.serving) == 1 and _quiet(world))


def _quiet(world: OwnershipWorld) -> bool:
    return all(world.ready.get(name, False) for name in world.hosts)


async def _until(world: OwnershipWorld, condition: object, within_s: float) -> bool:
    end = world.loop.time() + within_s
    while not condition():  # type: ignore[operator]
        if world.loop.time() >= end:
            return False
        await asyncio.sleep(0.02)
    return True


def _judge(world: OwnershipWorld) -> None:
    """The rules that only the end can tell."""
    history, client = world.history, world.client
    assert client is not None
    if world.lost_server:
        return  # a killed server takes its connections with it; that there were never two is judged above
    if any(kind.startswith("two-owners") for kind in history.kinds()):
        return  # what follows from that is no news
    hosts = sorted(process.host for process in world.serving)
    steps = world.steps()
    if not hosts:
        history.violated(f"nobody-serves:{steps}", "all faults are mended, and no server serves")
    said = next((o for o in reversed(world.outcomes) if isinstance(o, Outcome)), None)
    if said is not None and said.serves_at is not None and hosts != [said.serves_at]:
        history.violated(
            f"wrong-verdict:{said.outcome}",
            f"the orchestrator says {said.serves_at}, the server is at {hosts or 'no host'}",
        )
    crashed = any(kind.startswith("crashed:orchestrator") for kind in history.kinds())
    if world.next_move <= len(world.story.moves) and not crashed:
        history.violated(f"orchestrator-stuck:{steps}", "the orchestrator has not come to an end")
    if hosts and client.closed is not None:
        history.violated("client-lost", f"the client's connection ended: {client.closed}")
    elif hosts and client.waiting:
        history.violated(f"unanswered:{steps}", f"{client.waiting} of {client.sent} requests have no answer")
    summary = client.load.summary()
    if not summary.state_ok and not client.waiting:
        history.violated("state-forked", summary.state_detail)
    if summary.requests_duplicated:
        history.violated("obeyed-twice", f"{summary.requests_duplicated} requests were carried out twice")
    for name, process in world.agents.items():
        if process.alive and len(process.tasks) > TASKS_MOST:
            history.violated("tasks-left", f"{name} has {len(process.tasks)} tasks and nothing to do")
    silent = [name for name in world.hosts if not world.ready.get(name) and name != ORCHESTRATOR]
    if silent:
        history.violated("agent-does-not-start", f"{', '.join(silent)} did not come back")


def _bury(world: OwnershipWorld) -> None:
    """Cancel whatever is left, so that nothing of this play runs in another."""
    loop = world.loop
    for process in world.processes:
        process.bury()
    loop.forget_timers()
    for _ in range(20):
        left = asyncio.all_tasks(loop)
        if not left:
            break
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(1.0))
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it will not be cancelled
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
