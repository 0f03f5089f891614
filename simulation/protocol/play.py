"""Plays a story of the protocol's world and judges it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from quicferry.strategies import Strategy
from simulation.clock import Clock, VirtualLoop
from simulation.determinism import determined
from simulation.history import History
from simulation.nonces import watching
from simulation.protocol.applications import Exchange
from simulation.protocol.endpoint import client_view, server_view
from simulation.protocol.faults import edge_address
from simulation.protocol.mover import Mover
from simulation.protocol.story import Ending, Story, Traffic
from simulation.protocol.traffic import Load
from simulation.protocol.world import CLIENT, LIVENESS_S, ProtocolWorld

TAIL_S = 0.3  # traffic goes on this long after the last move
#: what a client may send to addresses that it has only been told of (docs/wire-format.md, section 10.3)
UNTRIED_BYTES = 256 * 1200
UNTRIED_BYTES_S = 40 * 1200


def play(story: Story) -> History:
    """Play it; what was wrong is in the history's violations."""
    clock = Clock()
    loop = VirtualLoop(clock)
    history = History(clock)

    def repeated(number: int) -> None:
        how = "process" if story.process_moves else "hand-off"
        history.violated(f"nonce-reuse:{how}", f"packet number {number} protects two different packets")

    with determined(clock, story.seed), watching(repeated):
        world_made: list[ProtocolWorld] = []

        async def live() -> None:
            world = ProtocolWorld(loop, story, history)
            world_made.append(world)
            await _live(world)

        try:
            loop.run_until_complete(live())
        except Exception as error:  # whatever the code under test raised is a finding
            if not world_made:
                raise
            world_made[0].raised(error)
        finally:
            _end(loop)
            history.closed = True
    return history


def _end(loop: VirtualLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.forget_timers()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def _live(world: ProtocolWorld) -> None:
    story = world.story
    if not await world.connect():
        return
    world.mark("start")
    end: list[float | None] = [None]
    Load(world).begin(lambda: end[0])
    await asyncio.sleep(story.before_s)
    mover = Mover(world)
    for number, move in enumerate(story.moves, 1):
        await asyncio.sleep(move.after_s)
        await mover.carry_out(number, move)
    end[0] = world.loop.time() + TAIL_S
    await asyncio.sleep(TAIL_S + 2 * max(story.interval_s, 0.1))
    await _settle(world)
    judge(world)


async def _settle(world: ProtocolWorld) -> None:
    """Wait for what is open; then ask once more, in both directions."""
    if not await _all_closed(world):
        return
    if world.story.traffic is Traffic.PUSH or is_over(world):
        return
    world.load.ask(world.client.connection, 50, 300)
    world.client.proceed()
    if not await _all_closed(world):
        return
    if world.server is not None:
        Load(world).feed(400, last=True)
        world.server.proceed()
    await _all_closed(world)


async def _all_closed(world: ProtocolWorld) -> bool:
    world.calm()

    def settled() -> bool:
        is_quiet = not world.load.open and not world.closed_by_service  # a close is still on its way
        return world.loop.time() >= world.calm_at and (is_quiet or is_over(world))

    patience_s = LIVENESS_S + _transfer_s(world) + _trusted_s(world)
    while not await world.until(settled, world.calm_at + patience_s, 0.05):
        if world.loop.time() >= world.calm_at + patience_s:
            return False
    return not is_over(world)


def _trusted_s(world: ProtocolWorld) -> float:
    """How long a client waits besides for a server that has announced more downtime than it had.

    It takes the word for that long, and half as long again, before it looks for the server elsewhere.
    """
    moves = world.story.moves
    return max((1.5 * each.announced_s - each.downtime_s for each in moves if each.announced_s), default=0.0)


def _transfer_s(world: ProtocolWorld) -> float:
    """How long what is open may take besides: congestion avoidance from the smallest window.

    That is one datagram more in each round trip (RFC 9002 §7.3.3); the faults may have left no more.
    """
    is_upload = world.story.traffic is Traffic.UPLOAD
    size_bytes = world.story.size_bytes if is_upload and world.load.open else 0
    size_bytes += sum(each.size_bytes - each.received for each in world.load.open)
    return world.story.rtt_s * math.sqrt(2 * size_bytes / 1200)


def is_over(world: ProtocolWorld) -> bool:
    """Whether the client knows that the connection has ended."""
    return client_view(world.client.connection)["closed"] is not None


def judge(world: ProtocolWorld) -> None:
    """The rules that only the end can tell."""
    client = client_view(world.client.connection)
    history = world.history
    if any(kind.startswith("drawn-away") for kind in history.kinds()):
        return  # what follows from that is no news
    situation = _situation(world)
    waiting = world.load.open
    if client["closed"] is not None and (world.closed_by_service or world.close_thrown_away):
        pass  # it heard what the service wanted
    elif client["closed"] is not None:
        reason = client["closed"].reason_phrase or f"error {client['closed'].error_code}"
        history.violated(f"connection-lost:{_word(reason)}:{situation}", f"the client ended: {reason}")
    elif world.closed_by_service and client["closed"] is None:
        if any(fault.kind != "server-closes" for fault in world.story.faults):
            return  # it is said once, and may be lost: that is QUIC's way
        history.violated(
            f"close-not-heard:{situation}",
            f"the service closed the connection; {LIVENESS_S} s later the client does not know",
        )
    elif waiting and client["closed"] is None and not _can_meet(world, client):
        history.note("oracle", "neither end can know where the other is, and nobody hands on")
    elif waiting and client["closed"] is None and _is_out_of_reach_of_the_draft(world, client):
        history.note("oracle", "the set of the draft has not reached the client: see wire-format 13.3")
    elif waiting and client["closed"] is None:
        history.violated(
            f"hang:{_why(world, client)}:{situation}",
            f"{len(waiting)} exchanges are open {LIVENESS_S} s after all faults: {_first(waiting)}",
        )
    elif client["closed"] is None:
        _judge_settled(world, client, situation)
    told_s = world.loop.time() - (world.misuse_at or world.loop.time())
    if world.to_victims_bytes > UNTRIED_BYTES + UNTRIED_BYTES_S * told_s:
        history.violated(
            "amplification", f"{world.to_victims_bytes} bytes went to strangers that a server named"
        )


def _judge_settled(world: ProtocolWorld, client: dict[str, Any], situation: str) -> None:
    history = world.history
    if not client["spare_ids"]:
        history.violated(f"no-spare-id:{situation}", "the client has no connection ID left for the next move")
    ended = [e for e in world.load.exchanges.values() if e.closed_at is not None and not e.given_up]
    answered = {e.number for e in ended}
    forgotten = answered - set(world.service.obeyed)
    if forgotten:
        history.violated(
            f"answer-forgotten:{situation}",
            f"{len(forgotten)} requests were answered by a server whose state was thrown away",
        )


def _situation(world: ProtocolWorld) -> str:
    """The last move, in words that equal faults share."""
    moves = world.story.moves[: world.number]
    if not moves:
        return "no-move"
    last = moves[-1]
    first = "+server-first" if last.server_first else ""
    ending = "" if last.ending is Ending.COMMIT else f":{last.ending}"
    if any(move.ending is Ending.FENCED for move in moves):
        ending = ":fenced"  # a state that clients know of was thrown away: all may follow from that
    return f"{last.strategy}{first}{ending}"


def _why(world: ProtocolWorld, client: dict[str, Any]) -> str:
    """What a hang looks like from above."""
    if world.server is None:
        return "no-server"
    server = server_view(world.server.connection)
    if server["closed"] is not None:
        return "server-closed"
    if server["mute"]:
        return "mute"
    if client["address"] != edge_address(world.here):
        return "no-id-left" if not client["spare_ids"] else "client-elsewhere"
    if server["address"] != world.client_at:
        return "server-to-dead-path"
    return "stalled"


def _can_meet(world: ProtocolWorld, client: dict[str, Any]) -> bool:
    """Whether one end knows where the other is, or somebody who does.

    A client whose address has changed while no server was there to see it can only be found by its own
    datagrams; they must go to where the server is, or be handed on to there.
    """
    if world.server is None or server_view(world.server.connection)["address"] == world.client_at:
        return True
    edges = {address for address in client["places"] if address[0].startswith("10.0.")}
    for address in edges:
        edge, hops = int(address[0].split(".")[2]), 0
        while edge != world.here and edge in world.handed_on_by and hops < len(world.handed_on_by):
            edge, hops = world.handed_on_by[edge], hops + 1
        if edge == world.here:
            return True
    return False


def _is_out_of_reach_of_the_draft(world: ProtocolWorld, client: dict[str, Any]) -> bool:
    """Whether the limit of ALTERNATIVE_ADDRESS is met that no endpoint can lift.

    The set did not reach the client in time. The destination may not send it, as it is no probing frame; and
    what comes from a server that was not named is dropped (RFC 9000 §9, §9.6.2). A source that goes on is
    heard, unless the client's address has changed as well. What counts is the place where the server is: a
    later move that was called off, because the client is untold, changes nothing.
    """
    last = world.story.moves[world.number - 1]
    is_untold = edge_address(world.here) not in client["places"]
    is_unheard = edge_address(last.to) not in client["places"] and world.client_at != CLIENT
    return last.strategy is Strategy.ALTERNATIVE_ADDRESS and (is_untold or is_unheard)


def _first(waiting: list[Exchange]) -> str:
    each = waiting[0]
    return f"{each.what} {each.number}, {each.received} of {each.size_bytes} bytes"


def _word(text: str) -> str:
    return "-".join(text.lower().split())[:40]
