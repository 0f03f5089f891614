"""The clock of the probes."""

from __future__ import annotations

import itertools

import pytest

from quicferry.quic.config import Timings
from quicferry.quic.probing import Allowance, Prober

ADDRESS = ("10.0.2.2", 4433)


def prober(**keywords) -> Prober:
    return Prober(Timings(**keywords), max_probes=1000, running=True)


def sent_at(prober: Prober, until: float) -> list[float]:
    times = []
    while (at := prober.next_at()) is not None and at <= until:
        for candidate in prober.due(at):
            prober.challenge(candidate, at)
            times.append(at)
    return times


def test_the_interval_is_fixed_while_the_downtime_runs_and_grows_after_it():
    race = prober()
    race.add(ADDRESS, ADDRESS, named=True, start_at=0.0, downtime_s=0.5)
    times = sent_at(race, 3.0)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(gap == pytest.approx(0.010) for gap in gaps[:75])
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(gaps[80:]))
    assert max(gaps) == pytest.approx(0.250)


@pytest.mark.parametrize(
    ("downtime_s", "wanted_s", "interval_s"),
    [
        (0.1, 0.0, 0.010),
        (1.5, 0.0, 0.015),
        (2.0, 0.0, 0.020),
        (100.0, 0.0, 0.250),
        (0.1, 0.05, 0.05),
        (0.1, 0.5, 0.5),
        (0.1, 9, 1.0),
    ],
)
def test_a_long_downtime_costs_no_more_probes(downtime_s, wanted_s, interval_s):
    assert prober().interval_s(downtime_s, wanted_s) == pytest.approx(interval_s)


@pytest.mark.parametrize(
    ("clients", "interval_s"), [(0, 0.010), (1, 0.010), (10, 0.010), (100, 0.1), (500, 0.5), (5000, 1.0)]
)
def test_many_clients_share_the_probes_that_a_server_can_bear(clients, interval_s):
    #: wire-format 4.2: SHOULD wish for an interval
    assert Timings().shared_interval_s(clients) == pytest.approx(interval_s)
    assert Timings(probes_per_second=0.0).shared_interval_s(clients) == 0.010


def test_any_challenge_may_be_answered():
    race = prober()
    race.add(ADDRESS, ADDRESS, named=True, start_at=0.0, downtime_s=0.5)
    (candidate,) = race.due(0.0)
    first = race.challenge(candidate, 0.0)
    second = race.challenge(candidate, 1.0)
    assert first != second
    assert race.answered(second) == (candidate, 1.0)
    assert race.answered(first) == (candidate, 0.0)
    assert race.answered(b"????????") is None


def test_a_candidate_has_a_limit_of_probes():
    race = Prober(Timings(), max_probes=3, running=True)
    race.add(ADDRESS, ADDRESS, named=True, start_at=0.0, downtime_s=0.5)
    assert len(sent_at(race, 100.0)) == 3
    assert race.next_at() is None


def test_a_race_that_does_not_run_has_no_timer():
    race = prober()
    race.add(ADDRESS, ADDRESS, named=True, start_at=0.0, downtime_s=0.5)
    race.running = False
    assert race.next_at() is None
    assert list(race.due(1.0)) == []


def test_what_goes_to_addresses_that_were_never_heard_is_bounded():
    bucket = Allowance(Timings(probe_allowance=5, probe_allowance_per_second=2.0))
    assert sum(bucket.take(0.0) for _ in range(20)) == 5
    assert sum(bucket.take(0.1 * n) for n in range(1, 101)) == 20
    assert sum(bucket.take(1000.0) for _ in range(20)) == 5


def test_an_allowance_that_is_used_up_starves_nobody():
    timings = Timings(probe_allowance=4, probe_allowance_per_second=10.0)
    race = Prober(timings, max_probes=1000, running=True)
    bucket = Allowance(timings)
    for n in range(7):
        race.add((f"10.0.{n}.2", 1), (f"10.0.{n}.2", 1), named=True, start_at=0.0, downtime_s=0.5)
    while (at := race.next_at()) is not None and at < 10.0:
        for candidate in race.due(at):
            if bucket.take(at):
                race.challenge(candidate, at)
            else:
                bucket.postpone(candidate, at)
    tries = [candidate.tries for candidate in race.candidates.values()]
    assert 100 <= sum(tries) <= 105
    assert max(tries) - min(tries) <= 2
