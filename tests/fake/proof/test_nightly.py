"""The night's steps: each is given the seed, all are done, and what one finds decides the exit status."""

from __future__ import annotations

import pytest

from proof import nightly
from proof.explore import __main__ as explore
from proof.fuzz import __main__ as fuzz
from simulation import __main__ as simulation


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []

    def perform(words: list[str]) -> int:
        seen.append(words)
        return int("proof.fuzz" in words)

    monkeypatch.setattr(nightly, "_perform", perform)
    return seen


def test_all_steps_are_done_with_the_seed(
    performed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert nightly.main(["--seed", "4711"]) == 1
    assert [words[words.index("-m") + 1] for words in performed] == [
        "simulation", "simulation", "simulation", "proof.explore", "proof.fuzz", "pytest",
    ]  # fmt: skip
    assert sum("4711" in words for words in performed) == 4  # models and decoders draw nothing from it
    printed = capsys.readouterr().out
    assert "NIGHT_SEED=4711" in printed.splitlines()[0]
    assert "fuzz       FOUND SOMETHING" in printed and "matrix     nothing new" in printed


def test_single_steps_and_unknown_ones(performed: list[list[str]]) -> None:
    assert nightly.main(["--seed", "1", "models"]) == 0
    assert performed == [["-m", "simulation", "--models"]]
    with pytest.raises(SystemExit, match="2"):
        nightly.main(["--seed", "1", "sleep"])


@pytest.mark.parametrize("module", [simulation, explore, fuzz])
def test_the_instruments_know_the_options(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of each step are those that its program takes: only --help is asked, nothing is drawn."""
    name = module.__name__.removesuffix(".__main__")  # type: ignore[attr-defined]
    options = {"seed": 1, "seeds": 1, "minutes": 1.0, "seconds": 1, "cells": 1}
    lines = [words for step in nightly.STEPS for words in nightly.words_of(step, options) if name in words]
    assert lines
    for words in lines:
        monkeypatch.setattr("sys.argv", [*words[words.index(name) :], "--help"])
        with pytest.raises(SystemExit, match="0"):
            module.main()  # type: ignore[attr-defined]
