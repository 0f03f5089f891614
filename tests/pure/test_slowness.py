"""How much longer a slow processor is waited for, and what is not waited for longer."""

from __future__ import annotations

import msgspec
import pytest

from quicferry import slowness
from quicferry.migration.order import Deadlines, deadlines_over


@pytest.fixture(autouse=True)
def unannounced(monkeypatch):
    monkeypatch.delenv(slowness.VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("trial_s", "slower"), [(0.005, 1.0), (0.012, 1.0), (0.035, 1.0), (0.036, 3.0), (0.2, 16.7), (9.0, 100.0)]
)
def test_a_processor_is_rated_by_how_long_the_trial_takes(trial_s, slower):
    assert slowness.rated(trial_s) == slower


def test_the_trial_counts_the_processor_not_the_wall(monkeypatch):
    monkeypatch.setattr(slowness.time, "thread_time", iter([0.0, 0.9, 1.0, 1.24, 2.0, 2.6]).__next__)
    assert slowness.measure() == 20.0


def test_bounds_are_longer_in_a_run_on_a_slow_processor(monkeypatch):
    assert slowness.longer(20.0) == 20.0
    slowness.announce(16.5)
    assert slowness.longer(20.0) == 330.0
    slowness.announce(1.0)
    assert slowness.VARIABLE not in slowness.os.environ


@pytest.mark.parametrize(("slower", "limit_s"), [(1.0, 90.0), (20.0, 90.0), (36.0, 162.0), (100.0, 450.0)])
def test_a_probe_has_longer_where_the_processor_is_slower_than_an_emulated_one(monkeypatch, slower, limit_s):
    monkeypatch.setattr(slowness, "measure", lambda: slower)
    assert slowness.longer_than_emulated(90.0) == limit_s


@pytest.mark.parametrize(("word", "slower"), [("0.1", 1.0), ("many", 1.0), ("", 1.0), ("1e9", 100.0)])
def test_a_word_that_is_none_of_ours_changes_nothing(monkeypatch, word, slower):
    monkeypatch.setenv(slowness.VARIABLE, word)
    assert slowness.slowness() == slower


def test_a_slow_processor_lengthens_no_lease_and_no_standstill():
    usual, slow = Deadlines(), deadlines_over(0.018, 16.0)
    assert (slow.freeze_s, slow.commit_s, slow.notice_s) == (usual.freeze_s, usual.commit_s, usual.notice_s)
    assert slow.transfer_s == usual.transfer_s
    assert (slow.prepare_s, slow.precopy_s, slow.pages_s) == (320.0, 1920.0, 1920.0)
    # a server may not stand still for longer because it is slow
    assert (slow.checkpoint_s, slow.restore_s) == (usual.freeze_s, usual.freeze_s)
    assert deadlines_over(0.018) == usual


@pytest.mark.parametrize(("clients", "notice_s"), [(1, 1.0), (300, 1.0), (2000, 6.0)])
def test_more_clients_have_longer_to_answer(clients: int, notice_s: float) -> None:
    more = deadlines_over(0.018, clients=clients)
    assert more.notice_s == notice_s
    assert msgspec.structs.replace(more, notice_s=1.0) == Deadlines()
