"""``quicferry demo``: which runs it makes. That they can be made is the business of the end-to-end tests."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

import cli.demo
from quicferry.strategies import strategies


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Call the command; the runs that it would make."""
    module = sys.modules["cli.demo"]
    specs = []
    monkeypatch.setattr(module, "ask_for_root", lambda _: None)
    monkeypatch.setattr(module, "perform_shown", lambda runs, _: specs.extend(runs) or [])
    monkeypatch.setattr(module, "show", lambda results, report: None)

    def call(*words):
        done = CliRunner().invoke(cli.demo.demo, ["--runs", str(tmp_path), *words])
        return done, [(spec.engine, spec.strategy) for spec in specs]

    return call


def test_every_strategy_by_both_engines(made):
    done, runs = made()
    assert done.exit_code == 0, done.output
    both = {(engine, strategy) for engine in ("handoff", "criu-cold") for strategy in strategies()}
    assert (set(runs), len(runs)) == (both, len(both))


def test_chosen_strategies_each_once(made):
    done, runs = made("--strategy", "symmetric", "--strategy", "pool", "--strategy", "symmetric")
    assert done.exit_code == 0, done.output
    assert sorted(runs) == [
        (engine, strategy) for engine in ("criu-cold", "handoff") for strategy in ("pool", "symmetric")
    ]


def test_a_strategy_that_there_is_not(made):
    done, runs = made("--strategy", "symetric")
    assert (done.exit_code, runs) == (2, [])
    assert "symmetric" in done.output
