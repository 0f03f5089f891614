"""How the rate comes back: from the initial window, or with care from what was known of the path."""

from __future__ import annotations

import random

import pytest

from quicferry.quic import Congestion, ExtensionConfig
from quicferry.quic._aioquic.careful_resume import PathFacts, Phase
from quicferry.strategies import RULES, strategies

from .harness import EDGE_1, EDGE_2, Address, Network, Pair

RTT_S = 0.06
RATE = 1_250_000  # bytes per second
DOWNLOAD_BYTES = 3_000_000
P = Phase
CAREFUL = ExtensionConfig(congestion=Congestion.CAREFUL_RESUME)


class Bottleneck(Network):
    """A link of a certain rate on the way down, with a queue of one RTT; each path may have its own."""

    def __init__(self, pair_of_rates: dict[Address, int]) -> None:
        super().__init__(drop=self._queue)
        self._rates = pair_of_rates
        self._free_at: dict[Address, float] = {}
        self._waits_s = 0.0
        self.clock = lambda: 0.0
        self.dropped = 0

    def _queue(self, data: bytes, address: Address, direction: str) -> bool:
        self._waits_s = 0.0
        if direction == "up":
            return False
        now = self.clock()
        begins = max(now, self._free_at.get(address, 0.0))
        if begins - now > RTT_S:
            self.dropped += 1
            return True
        self._free_at[address] = begins + len(data) / self._rates[address]
        self._waits_s = self._free_at[address] - now
        return False

    def delay_s(self, address: Address, rng: random.Random) -> float:
        return RTT_S / 2 + self._waits_s


def downloading(
    strategy: str, server: ExtensionConfig, *, rate_after: int = RATE, rtt_after_s: float = RTT_S
):
    network = Bottleneck({EDGE_1: RATE, EDGE_2: rate_after})
    pair = Pair(server=server, network=network, seed=7)
    network.clock = lambda: pair.now
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
        pair.drive(limit_s=0.5)
    pair.response_size = DOWNLOAD_BYTES
    pair.request()
    pair.drive(limit_s=1.5)
    if rtt_after_s != RTT_S:
        whole = network.delay_s
        network.delay_s = lambda address, rng: (  # type: ignore[method-assign]
            whole(address, rng) + (rtt_after_s - RTT_S) / 2 * (address == EDGE_2)
        )
    pair.move(strategy, to=EDGE_2, downtime_s=0.1, server_first=True)
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=5.0)
    pair.server.record_commit()
    return pair


def recovered_s(pair: Pair) -> float:
    """From the resumption until 90 % of the link's rate come in, over two RTTs."""
    stamps = [(pair.now, sum(map(len, pair.received.values())))]
    while pair.now < pair.resumed_at + 4.0:
        pair.drive(limit_s=0.005)
        stamps.append((pair.now, sum(map(len, pair.received.values()))))
        early = next(
            each for each in reversed(stamps) if each[0] <= pair.now - 2 * RTT_S or each is stamps[0]
        )
        if stamps[-1][1] - early[1] >= 0.9 * RATE * 2 * RTT_S * 1150 / 1200:
            return pair.now - pair.resumed_at
    return float("inf")


@pytest.mark.parametrize("strategy", strategies())
def test_the_rate_is_back_sooner_with_care_than_from_the_initial_window(strategy):
    plain = recovered_s(downloading(strategy, ExtensionConfig()))
    pair = downloading(strategy, CAREFUL)
    careful = recovered_s(pair)
    assert careful < plain
    assert careful < 8 * RTT_S
    assert pair.server._careful.phases[:2] == [P.RECONNAISSANCE, P.UNVALIDATED]
    assert pair.drive(pair.answered, limit_s=10.0)
    pair.assert_open()


def test_the_phases_of_a_path_that_is_as_good_as_the_old_one():
    pair = downloading("symmetric", CAREFUL)
    pair.drive(limit_s=1.0)
    assert pair.server._careful.phases == [P.RECONNAISSANCE, P.UNVALIDATED, P.VALIDATING, P.NORMAL]


def test_a_jump_that_was_too_high_is_taken_back():
    """The new path bears a tenth: the queue overflows, and the window becomes half of what came through."""
    pair = downloading("symmetric", CAREFUL, rate_after=RATE // 10)
    saved = pair.server._role._path_before
    for _ in range(400):
        pair.drive(limit_s=0.005)
        if P.SAFE_RETREAT in pair.server._careful.phases:
            break
    assert pair.server._careful.phases == [P.RECONNAISSANCE, P.UNVALIDATED, P.VALIDATING, P.SAFE_RETREAT]
    assert pair.server._loss._cc.congestion_window < saved.congestion_window / 4
    pair.drive(limit_s=3.0)
    assert pair.server._careful.phase is P.NORMAL
    before = sum(map(len, pair.received.values()))
    pair.drive(limit_s=2.0)
    assert sum(map(len, pair.received.values())) - before > 0.6 * 2.0 * RATE / 10


@pytest.mark.parametrize("rtt_after_s", [RTT_S / 4, RTT_S * 40])
def test_a_path_with_another_round_trip_is_not_jumped_on(rtt_after_s):
    pair = downloading("symmetric", CAREFUL, rtt_after_s=rtt_after_s)
    pair.drive(limit_s=4 * rtt_after_s + 0.1)
    assert pair.server._careful.phases == [P.RECONNAISSANCE, P.NORMAL]


def test_what_is_known_crosses_in_the_hand_off_image_and_outlives_a_second_move_at_once():
    pair = downloading("symmetric", CAREFUL)
    known = pair.server._role._path_before
    assert known.congestion_window > 4 * 12_000 and known.rtt_s == pytest.approx(RTT_S, rel=1.2)
    pair.server.hold()
    assert pair.server._role._path_before == known, "nothing is known of a path that is still being probed"
    state = pair.server.extension_state()
    assert PathFacts(*state["path_before"]) == known


def test_a_client_resumes_its_upload_with_care():
    network = Bottleneck({EDGE_1: RATE, EDGE_2: RATE})
    pair = Pair(client=CAREFUL, network=network, seed=7)
    network.clock = lambda: pair.now
    pair.handshake(settle_s=1.0)
    stream = pair.client.get_next_available_stream_id(is_unidirectional=True)
    pair.client.send_stream_data(stream, bytes(4_000_000), end_stream=True)
    pair.drive(limit_s=0.4)
    pair.move("symmetric", to=EDGE_2, downtime_s=0.1)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    assert pair.client._careful is not None
    assert pair.drive(lambda: len(pair.uploaded.get(stream, b"")) == 4_000_000, limit_s=10.0)
    assert P.UNVALIDATED in pair.client._careful.phases
