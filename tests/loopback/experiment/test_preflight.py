"""A probe that gives no answer is ended with what it started, and the next ones are asked all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from quicferry.emulation.sandbox.ownership import RUN_TAG
from quicferry.experiment import preflight


def probing():
    """The processes, here and in namespaces below, that ask probes for this process."""
    mark = f"{RUN_TAG}={os.getpid()}-".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.mark.needs("root")
def test_a_probe_without_an_answer_in_time(monkeypatch):
    limit_s = 0.01  # less than Python needs to start
    monkeypatch.setattr(preflight, "LIMIT_S", limit_s)
    begun = time.monotonic()
    results = list(preflight.ask(preflight.select(["mininet", "veth"])))
    assert [(result.name, result.works) for result in results] == [("mininet", False), ("veth", False)]
    assert all("no answer within 0.01 s" in result.detail and result.hint for result in results)
    assert time.monotonic() - begun < 20
    assert probing() == []


@pytest.mark.needs("root")
def test_probes_that_answer_in_time():
    results = preflight.ask(preflight.select(["netns", "veth"]))
    first = next(results)
    assert (first.name, first.works) == ("netns", True)
    assert probing() != []
    assert [(result.name, result.works) for result in results] == [("veth", True)]
    assert probing() == []
