"""What a machine was found able to do is not tried again, until something that matters has changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from quicferry.errors import Unsupported
from quicferry.experiment import known_answers
from quicferry.experiment.known_answers import check_unless_known, forget


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Each time that probes are asked, and which. The probe ``criu`` says no."""
    times: list[list[str]] = []

    def check(names: Iterable[str]) -> None:
        times.append(list(names))
        if "criu" in times[-1]:
            raise Unsupported("no criu")

    monkeypatch.setattr(known_answers, "check", check)
    monkeypatch.delenv(known_answers.VARIABLE, raising=False)
    return times


def test_a_yes_is_asked_for_once(tmp_path: Path, asked: list[list[str]]) -> None:
    file = tmp_path / "cache" / "known.json"
    check_unless_known(["root", "tshark"], file)
    check_unless_known(["tshark", "root"], file)
    assert asked == [["root", "tshark"]]
    check_unless_known(["root", "mininet"], file)
    assert asked[1:] == [["mininet"]]


def test_a_no_is_asked_for_again(tmp_path: Path, asked: list[list[str]]) -> None:
    for _ in range(2):
        with pytest.raises(Unsupported, match="no criu"):
            check_unless_known(["criu"], tmp_path / "known.json")
    assert asked == [["criu"], ["criu"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/bin"),
        ("QUICFERRY_CRIU_PREFIX", "/opt/criu"),
        (known_answers.VARIABLE, known_answers.ALWAYS),
    ],
)
def test_another_environment_is_asked(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    check_unless_known(["root"], tmp_path / "known.json")
    monkeypatch.setenv(name, value)
    check_unless_known(["root"], tmp_path / "known.json")
    assert len(asked) == 2


def test_a_program_that_is_replaced_makes_all_be_asked(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tshark"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setattr(known_answers, "find_program", lambda name: program if name == "tshark" else None)
    check_unless_known(["tshark"], tmp_path / "known.json")
    check_unless_known(["tshark"], tmp_path / "known.json")
    assert len(asked) == 1
    program.write_text("#!/bin/sh\nexit 1\n")
    check_unless_known(["tshark"], tmp_path / "known.json")
    assert len(asked) == 2


def test_old_forgotten_and_damaged_answers_are_asked_for(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "known.json"
    check_unless_known(["root"], file)
    forget(file)
    check_unless_known(["root"], file)
    file.write_bytes(file.read_bytes()[:20])
    check_unless_known(["root"], file)
    monkeypatch.setattr(known_answers, "HOLDS_S", 0.0)
    check_unless_known(["root"], file)
    assert len(asked) == 4


def test_who_cannot_remember_asks_again(tmp_path: Path, asked: list[list[str]]) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        check_unless_known(["root"], tmp_path / "file" / "known.json")
    assert len(asked) == 2
