"""However the tool is ended, and whenever: nothing of it is left. ``make signals`` plays all combinations."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import signals
from bench.signals import MOMENTS, SIGNALS, end_at
from quicferry.emulation.sandbox import ownership
from quicferry.paths import CHECKOUT

AT_ONCE = 3
#: each signal in a run and in a probe, each of the moments that cost little
CASES = (
    ("doctor captures", "KILL"),
    ("preflight", "KILL"),
    ("doctor captures", "TERM"),
    ("the client loads", "TERM"),
    ("no memory is left", "TERM"),
    ("doctor asks", "HUP"),
    ("the server starts", "HUP"),
    ("doctor dumps", "INT"),
    ("captures run", "INT"),
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future[list[str]]]]:
    folder = tmp_path_factory.mktemp("signals")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            (name, number): pool.submit(
                end_at, name, signal.Signals[f"SIG{number}"], folder / f"{name}-{number}"
            )
            for name, number in CASES
        }


@pytest.mark.needs("mininet", "criu", "tshark", "shaped-link")
@pytest.mark.parametrize(("name", "number"), CASES)
def test_nothing_is_left(name: str, number: str, ended: dict[tuple[str, str], Future[list[str]]]) -> None:
    assert ended[name, number].result() == []


def test_each_signal_and_a_moment_of_each_kind_is_tried() -> None:
    assert {number for _, number in CASES} == set(SIGNALS)
    assert {name for name, _ in CASES} <= set(MOMENTS)


def test_what_is_left_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, of a tool that leaves a process, a file and a key behind."""
    tool = tmp_path / "bin" / "quicferry"
    tool.parent.mkdir()
    tool.write_text(
        f"""#!{sys.executable}
import os, subprocess, time
from pathlib import Path
from quicferry.emulation.sandbox.ownership import tags
Path(os.environ["TMPDIR"], "capture.pcapng").touch()
run = Path(os.environ["QUICFERRY_RUNS"], "one")
run.mkdir(parents=True)
(run / "server.key.pem").write_text("PRIVATE KEY")
argv = ["unshare", "--net", "sleep", "600"]
subprocess.Popen(argv, env={{**os.environ, **tags("left")}}, start_new_session=True)
time.sleep(600)
"""
    )
    tool.chmod(0o755)
    monkeypatch.setattr(signals, "CHECKOUT", tmp_path)
    monkeypatch.setattr(signals, "GONE_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setitem(MOMENTS, "sleeping", signals.Moment(("run",), "sleep 600"))
    found = " | ".join(end_at("sleeping", signal.SIGKILL, tmp_path / "played"))
    left = [process for process in ownership.orphans() if process.run_id == "left"]
    assert len(left) == 1
    assert ownership.end(left[0])
    for words in ("is left: ", "namespaces are left", "capture.pcapng is left", "server.key.pem is left"):
        assert words in found
