"""The oracle judges right: a good story violates nothing, and each fault that is planted is caught."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from aioquic.quic.connection import QuicConnection

from apps.server.server import QuicServer
from apps.server.service import Session
from quicferry.migration import control
from quicferry.migration.serving_lease import ServingLease
from quicferry.quic import MigratableConnection
from quicferry.quic._aioquic import lease
from quicferry.quic._aioquic.seam import Seam
from quicferry.quic.client import ClientRole
from quicferry.quic.server import ServerRole
from quicferry.strategies import Strategy
from simulation.campaign import quiet
from simulation.history import History
from simulation.ownership import play as ownership
from simulation.ownership import story as ownership_story
from simulation.protocol import play as protocol
from simulation.protocol import story as protocol_story
from simulation.protocol.applications import Service
from simulation.protocol.story import Ending, Move, Story, Traffic


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


def lived(traffic: Traffic = Traffic.ECHO, **changes: Any) -> History:
    values: dict[str, Any] = {
        "seed": 5,
        "moves": [Move(to=2, strategy=Strategy.SYMMETRIC)],
        "traffic": traffic,
        **changes,
    }
    return protocol.play(Story(**values))


def owned(*faults: ownership_story.Fault, **changes: Any) -> History:
    moves = [ownership_story.Move(to=2, server_first=True)]
    return ownership.play(
        ownership_story.Story(seed=5, moves=moves, faults=list(faults), commit_s=5.0, **changes)
    )


@pytest.mark.parametrize("process_moves", [False, True])
@pytest.mark.parametrize("strategy", [s for s in Strategy if s is not Strategy.PREFERRED_ADDRESS])
def test_a_good_life_violates_nothing(strategy: Strategy, process_moves: bool) -> None:
    moves = [
        Move(to=2, strategy=strategy, server_first=True),
        Move(to=3, strategy=strategy, server_first=True, after_s=1.5, ending=Ending.ROLLED_BACK),
        Move(to=3, strategy=strategy, server_first=True, after_s=1.5),
    ]
    history = lived(moves=moves, pool=[2, 3], process_moves=process_moves, strategies=list(Strategy))
    assert not history.violations, history.violations
    switched = [entry.detail["new"][0] for entry in history.entries if entry.what.startswith("switched")]
    assert switched == ["10.0.2.2", "10.0.3.2"]


def test_a_good_move_of_agents_violates_nothing() -> None:
    history = owned()
    assert not history.violations, history.violations
    said = [entry.what for entry in history.entries if entry.who == "edge-1"]
    assert "server.frozen" in said and "migration.finished" in said


def test_a_nonce_that_is_used_twice_is_caught() -> None:
    """Destination and source that both go on where the source was frozen."""
    with mock.patch.object(lease, "skip_packet_numbers", lambda connection, count: None):
        back = [Move(to=2, strategy=Strategy.SYMMETRIC, ending=Ending.ROLLED_BACK)]
        assert "nonce-reuse:hand-off" not in lived(moves=back).kinds()  # the destination never sent
        fenced = [Move(to=2, strategy=Strategy.SYMMETRIC, ending=Ending.FENCED, served_s=0.1)]
        assert "nonce-reuse:hand-off" in lived(moves=fenced).kinds()


received = ServerRole.received


def stays_mute(self: ServerRole, *args: Any, **keywords: Any) -> None:
    mute = self.mute
    received(self, *args, **keywords)
    self.mute = mute


def test_a_server_that_stays_mute_is_caught() -> None:
    with mock.patch.object(ServerRole, "received", stays_mute):
        moves = [Move(to=2, strategy=Strategy.PROACTIVE_EXPLICIT)]
        assert lived(moves=moves).kinds() == ["hang:mute:proactive-explicit"]


def test_bytes_that_are_wrong_are_caught() -> None:
    take = Service.take

    def wrong(self: Service, *args: Any) -> bytes | None:
        answer = take(self, *args)
        return None if answer is None else answer[:-1] + b"!"

    with mock.patch.object(Service, "take", wrong):
        assert "bytes:answer" in lived().kinds()


def test_bytes_that_are_missing_are_caught() -> None:
    take = Service.take

    def short(self: Service, *args: Any) -> bytes | None:
        answer = take(self, *args)
        return None if answer is None else answer[:-1]

    with mock.patch.object(Service, "take", short):
        assert "bytes:length" in lived().kinds()


def test_a_probe_with_data_is_caught() -> None:
    with mock.patch.object(ClientRole, "_switch_if_allowed", _switches_at_once):
        kinds = lived(moves=[Move(to=2, strategy=Strategy.PROACTIVE_EXPLICIT)]).kinds()
    assert "probing:frames" in kinds or "probing:size" in kinds


def _switches_at_once(self: ClientRole, now: float) -> None:
    """What a client must never do: go to an address that has not answered."""
    for candidate in list(self._prober.candidates.values()):
        if candidate.cid is not None:
            self._seam.adopt(candidate.network_address, candidate.cid, [], 0.018, now, is_sample=True)
            candidate.cid = None


def test_code_that_raises_is_caught() -> None:
    with mock.patch.object(Seam, "change_cid", side_effect=KeyError("planted")):
        assert any(kind.startswith("raised:KeyError") for kind in lived().kinds())


def test_two_owners_are_caught() -> None:
    """A server that ignores its lease."""
    cut = ownership_story.Fault(
        kind="all-cut", anchor="edge-2 migration.restore.started", at="edge-2", seconds=8.0
    )
    assert not any(kind.startswith("two-owners") for kind in owned(cut).kinds())
    with mock.patch.object(ServingLease, "_over", lambda self: None):
        assert any(kind.startswith("two-owners") for kind in owned(cut).kinds())


def test_clocks_may_differ_as_far_as_is_said_and_no_further() -> None:
    """The lease is an instant of one clock. Where the destination's is far behind, there are two servers."""
    cut = ownership_story.Fault(
        kind="all-cut", anchor="edge-2 migration.restore.started", at="edge-2", seconds=8.0
    )
    most = ownership_story.SKEW_MOST_S
    for clocks in ([most, -most], [-most, most]):
        kinds = owned(cut, clocks_ahead_s=clocks).kinds()
        assert not any(kind.startswith("two-owners") for kind in kinds)
    kinds = owned(cut, clocks_ahead_s=[0.0, -3.0]).kinds()
    assert any(kind.startswith("two-owners") for kind in kinds)


def test_a_request_that_is_given_up_must_be_answered_with_a_reset() -> None:
    assert not lived(Traffic.RESETS).violations
    with mock.patch.object(MigratableConnection, "reset_stream", _resets_nothing_at_the_server):
        assert any(kind.startswith("hang:") for kind in lived(Traffic.RESETS).kinds())


def _resets_nothing_at_the_server(self: MigratableConnection, stream_id: int, error_code: int) -> None:
    if self._is_client:
        QuicConnection.reset_stream(self, stream_id, error_code)


def test_what_an_attacker_replays_to_other_edges_does_no_harm() -> None:
    faults = [protocol_story.Fault(kind="replay-elsewhere", seconds=3.0, amount=0.5)]
    moves = [Move(to=2, strategy=strategy, after_s=0.3) for strategy in (Strategy.SYMMETRIC,)]
    assert not lived(moves=moves, faults=faults).violations


def test_a_server_that_nobody_thaws_is_caught() -> None:
    abort = QuicServer._abort

    def refuses(self: QuicServer, order: control.Abort) -> dict[str, Any]:
        if self.frozen_epoch is not None:
            raise OSError("planted")
        return abort(self, order)

    killed = ownership_story.Fault(
        kind="agent-killed", anchor="edge-2 wrote transfer", at="edge-2", seconds=0.3
    )
    assert not owned(killed).violations
    with mock.patch.object(QuicServer, "_abort", refuses):
        assert any(kind.startswith("nobody-serves") for kind in owned(killed).kinds())


def test_a_request_that_is_obeyed_twice_is_caught() -> None:
    def forgets(self: Session, number: int) -> bool:
        return number % 2 == 0

    with mock.patch.object(Session, "obey", forgets):
        kinds = owned().kinds()
    assert "obeyed-twice" in kinds and "state-forked" in kinds


@pytest.mark.parametrize("notice_is_lost", [True, False])
def test_whom_the_draft_cannot_find(notice_is_lost: bool) -> None:
    """Only a client that was not told and has changed its address; one that was told finds its server."""
    rebinds = protocol_story.Fault(kind="rebind", anchor="start" if notice_is_lost else "ready 1")
    move = Move(to=2, strategy=Strategy.ALTERNATIVE_ADDRESS, after_s=0.3)
    history = lived(Traffic.IDLE, moves=[move], faults=[rebinds], strategies=[move.strategy])
    assert not history.violations
    limits = [entry for entry in history.entries if entry.who == "oracle"]
    assert bool(limits) == notice_is_lost, limits


def test_a_client_that_was_told_by_the_draft_must_be_found() -> None:
    """The limit excuses nothing else: a server that stays mute is caught, although its client was rebound."""
    rebinds = protocol_story.Fault(kind="rebind", anchor="ready 1")
    move = Move(to=2, strategy=Strategy.ALTERNATIVE_ADDRESS, after_s=0.3)
    with mock.patch.object(ServerRole, "received", stays_mute):
        history = lived(Traffic.IDLE, moves=[move], faults=[rebinds], strategies=[move.strategy])
    assert history.kinds() == ["hang:mute:alternative-address"]
