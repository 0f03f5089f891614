"""The corpus of the fuzzer, on every run of the tests: no decoder may end in an undeclared way.

What is open, tests/fuzz/open.toml says; it must crash exactly as it is said to, so that a mended decoder
takes its line out.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from proof.fuzz.attempt import Crash, Target, attempt
from proof.fuzz.findings import CORPUS, Collector, inputs, open_crashes
from proof.fuzz.targets import TARGETS, pieces
from proof.fuzz.unguided import fuzz
from quicferry.errors import InvalidInput
from quicferry.experiment import faults

OPEN = {(each.target, each.input): each for each in open_crashes()}
FILES = [(name, path.name) for name in TARGETS for path in inputs(name)]
MOST_BYTES = 16_384


@pytest.mark.parametrize(("target", "file"), [each for each in FILES if each not in OPEN])
def test_a_decoder_ends_as_it_says(target: str, file: str) -> None:
    assert attempt(TARGETS[target], (CORPUS / target / file).read_bytes()) is None


def test_what_is_open_is_still_there() -> None:
    seen = {
        (target, file): attempt(TARGETS[target], (CORPUS / target / file).read_bytes())
        for target, file in OPEN
    }
    expected = {each: listed.crash for each, listed in OPEN.items()}
    assert seen == expected, "mended? then take it out of tests/fuzz/open.toml"


def test_every_target_has_a_corpus_that_is_small_and_belongs_to_it() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for name, file in FILES:
        assert (CORPUS / name / file).stat().st_size <= MOST_BYTES
    assert {name for name, _ in FILES} == set(TARGETS)


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_has_an_input_that_is_accepted(target: str, tmp_path) -> None:
    """Else the format has changed, and nothing behind its first check is reached any more."""
    for number, path in enumerate(inputs(target)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        if (target, path.name) not in OPEN and _accepts(TARGETS[target], path.read_bytes(), scratch):
            return
    pytest.fail(f"no input of {target} is accepted: renew its corpus, see tools/renew_fuzz_corpus.py")


def _accepts(target: Target, data: bytes, scratch: Path) -> bool:
    try:
        target.call(data, scratch)
    except target.errors:
        return False
    return True


def test_what_is_open_says_why_and_has_its_input() -> None:
    for each in open_crashes():
        assert (each.target, each.input) in FILES
        assert len(each.text) > 20


def _target(call) -> Target:
    return Target("planted", call, (ValueError,), "a decoder with a fault")


def test_a_declared_error_is_no_crash() -> None:
    assert attempt(_target(lambda data, _: int(data)), b"x") is None


def test_an_undeclared_error_is_one_and_has_its_place() -> None:
    assert attempt(_target(lambda data, _: data[9]), b"") == Crash("IndexError", "outside")
    undeclared = Target("planted", lambda data, _: faults.parse(data), (), "bytes for words")  # type: ignore[arg-type]
    assert attempt(undeclared, b"x") == Crash("TypeError", "quicferry/experiment/faults.py:parse")
    declared = Target("planted", lambda data, _: faults.parse("x"), (InvalidInput,), "words")
    assert attempt(declared, b"") is None


def _for_ever(data: bytes, _: Path) -> None:
    while True:
        try:
            data = data + b"" if data else b"x"
        except Exception:  # a decoder that catches everything still has to stop
            continue


def test_time_is_bounded() -> None:
    begun = time.process_time()
    assert attempt(_target(_for_ever), b"", time_s=0.1) == Crash("TooLong", "outside")
    assert time.process_time() - begun < 5.0


def test_memory_is_bounded_and_free_again_afterwards() -> None:
    assert attempt(_target(lambda data, _: bytearray(2 << 30)), b"") == Crash("MemoryError", "outside")
    assert attempt(_target(lambda data, _: np.zeros(2 << 30, np.uint8)), b"") == Crash(
        "MemoryError", "outside"
    )
    assert len(bytearray(600 << 20)) == 600 << 20


def test_each_attempt_has_an_empty_directory_that_goes(tmp_path) -> None:
    seen = []

    def call(data: bytes, scratch: Path) -> None:
        assert not any(scratch.iterdir())
        (scratch / "x").write_bytes(data)
        seen.append(scratch)

    target = _target(call)
    assert attempt(target, b"1") is None
    assert attempt(target, b"2") is None
    assert not any(path.exists() for path in seen)


def test_of_each_crash_the_smallest_input_is_kept(tmp_path) -> None:
    collector = Collector(tmp_path)
    one, two = Crash("KeyError", "a"), Crash("KeyError", "b")
    for crash, data in [(one, b"long"), (None, b""), (one, b"s"), (two, b"xy"), (one, b"longer")]:
        collector.take(crash, data)
    assert collector.smallest == {one: b"s", two: b"xy"}
    assert collector.executed == 5
    assert sorted(path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".txt") == [b"s", b"xy"]


def test_without_atheris_faults_near_the_corpus_are_found(tmp_path) -> None:
    def call(data: bytes, _: Path) -> None:
        if data.startswith(b"magic") and len(data) > 6 and data[6] > 0x7F:
            raise KeyError

    collector = Collector(tmp_path)
    fuzz(_target(call), 2.0, [b"magic and more"], collector)
    assert [crash.error for crash in collector.smallest] == ["KeyError"]


def test_pieces_are_packets_with_flags() -> None:
    assert list(pieces(b"\x01\x00\x02ab\x00\x00\x09cd\x07\x00")) == [(1, b"ab"), (0, b"cd\x07\x00")]
    assert list(pieces(b"")) == []
