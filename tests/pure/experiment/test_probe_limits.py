"""How long a probe is waited for: longer where the processor is slower than an emulated one."""

from __future__ import annotations

import os

import msgspec
import pytest

from quicferry.emulation import probes
from quicferry.errors import Unsupported
from quicferry.experiment import preflight
from quicferry.probe import ProbeResult
from quicferry.process import TimeoutExpired

ANSWER = ProbeResult(name="veth", works=True, detail="", hint=None, needed_for="links", duration_ms=1.0)


class Root:
    """A private root whose program ends at a time of its own."""

    def __init__(self, ends_after_s: float) -> None:
        self.left_s = ends_after_s
        self.waited_s: list[float] = []

    def wait(self, timeout_s: float) -> int:
        self.waited_s.append(timeout_s)
        self.left_s -= timeout_s
        if self.left_s > 0:
            raise TimeoutExpired("program", timeout_s)
        return 0


@pytest.mark.parametrize(("ends_after_s", "waited_s"), [(5, [90.0]), (150, [90.0, 90.0])])
def test_a_program_that_ends_in_the_longer_time(monkeypatch, ends_after_s, waited_s):
    monkeypatch.setattr(probes, "longer_than_emulated", lambda seconds: 2 * seconds)
    root = Root(ends_after_s)
    assert probes._wait(root, "mn") == 0
    assert root.waited_s == waited_s


@pytest.mark.parametrize(
    ("factor", "said"), [(1, "mn in a private root did not end in 90 s"), (2, "in 180 s")]
)
def test_a_program_that_does_not(monkeypatch, factor, said):
    monkeypatch.setattr(probes, "longer_than_emulated", lambda seconds: factor * seconds)
    with pytest.raises(Unsupported, match=said):
        probes._wait(Root(1000), "mn")


@pytest.fixture
def stream():
    """A pipe: what answers come by, and where a test puts them."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as answers, os.fdopen(writing, "wb", buffering=0) as asked:
        yield answers, asked


def test_an_answer_that_comes_in_the_longer_time(monkeypatch, stream):
    answers, asked = stream

    def slow(seconds):
        asked.write(msgspec.json.encode(ANSWER) + b"\n")
        asked.close()
        return 6000 * seconds

    monkeypatch.setattr(preflight, "LIMIT_S", 0.01)
    monkeypatch.setattr(preflight, "longer_than_emulated", slow)
    assert list(preflight._answers(answers)) == [ANSWER]


@pytest.mark.parametrize(("factor", "said"), [(1, "0.01"), (2, "0.02")])
def test_an_answer_that_does_not(monkeypatch, stream, factor, said):
    monkeypatch.setattr(preflight, "LIMIT_S", 0.01)
    monkeypatch.setattr(preflight, "longer_than_emulated", lambda seconds: factor * seconds)
    with pytest.raises(TimeoutError, match=f"^{said}$"):
        list(preflight._answers(stream[0]))
