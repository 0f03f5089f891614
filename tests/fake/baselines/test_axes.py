"""Every axis has an effect in the run of every baseline, or is refused with the reason.

A run is performed as ever, by ``session.play``, on an emulation and with processes that only pretend. All
that could differ is noted: the network, the configurations of the processes and what they are told, the
run's own waits. An axis that is not refused must make a difference there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import baselines
from apps.deployment.client_service import LoadClient
from apps.deployment.replies import Replies
from baselines.client_migration.baseline import MovingLoadClient
from baselines.dns.deployment import DnsDeployment
from baselines.dns.services import NameServer
from baselines.mptcp import baseline as mptcp
from quicferry.emulation.fake import FakeEmulator
from quicferry.errors import InvalidInput
from quicferry.experiment import run
from quicferry.experiment.context import Program
from quicferry.paths import CHECKOUT
from quicferry.process import Result
from quicferry.record import Manifest, RunPaths, RunResult, read_manifest, write_json
from quicferry.spec import Axis, RunSpec, axes
from session import play
from session.downtimes import Downtimes
from session.request import parts_of, to_spec, unread

MAC = '[{"address": "02:00:00:00:00:01"}]'
#: what a downtime that is borrowed is measured with
OF_A_DOWNTIME = ("engine", "compression", "base_image", "memory_by", "inter_edge_mbps", "downtime_ms")
#: what agents, orchestrator and updater answer
ANSWERS: dict[str, dict[str, Any]] = {
    "ready": {"init_pid": 1},
    "outcome": {"outcome": "moved"},
    "started": {},
    "ended": {},
    "updated": {},
}
#: values beside the default, for axes where not any value will do
OTHERS: dict[str, Any] = {
    "topology": "one_lan",
    "strategy": "symmetric",
    "engine": "runc-cold",
    "image": str(CHECKOUT / "docs"),
    "command": "/bin/sh -c {server}",
    "volumes": "data:/srv/data",
    "workload": "bursts",
    "faults": ["transfer:link-cut"],
    "jitter_ms": 2.0,
    "plain_clients": 1,
    "rate_trace": str(CHECKOUT / "docs" / "examples" / "cell.trace"),
    "flap": "up@0.1+0.1",
    "move_when": "request",
}


def another(axis: Axis) -> Any:
    """A value that the axis allows and that is not its default."""
    if axis.name in OTHERS:
        return OTHERS[axis.name]
    if axis.choices:
        return next(choice for choice in axis.choices if choice != axis.default)
    if axis.kind is bool:
        return not axis.default
    assert axis.least is not None and axis.most is not None
    return max(axis.least, (axis.default or axis.least) + 1)


class Watch:
    """What a run does that it could do otherwise."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.emulator = FakeEmulator()

    def note(self, *words: Any) -> None:
        self.done.append(words)


class Capture:
    """Captures nothing."""

    def __init__(self, *_: object) -> None:
        self.warnings: list[str] = []

    def begin(self, hosts: list[str]) -> dict[str, str]:
        return {}

    start = begin

    def ended(self) -> None:
        """Asked while a run lasts, if it lasts for long enough."""

    def ask_to_end(self) -> None:
        pass

    stop = ask_to_end


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Everything below a run pretends, and what it is asked to do is noted."""
    noted = Watch()

    def emulator(_folder: Path, *, seed: int, backend: str | None, forks: object) -> FakeEmulator:
        assert forks is None
        noted.note("emulator", seed, backend)
        made = FakeEmulator(answers={("client", "ip"): Result(["ip"], 0, MAC, "")})
        monkeypatch.setattr(made, "calibrate", lambda: noted.note("calibrate"))
        noted.emulator = made
        return made

    def wait(_replies: Replies, _program: Program, kinds: set[str], *_: object, **__: object) -> Any:
        return next(dict(answer) for kind, answer in ANSWERS.items() if kind in kinds)

    monkeypatch.setattr(play, "MininetEmulator", emulator)
    monkeypatch.setattr(play.ForkServer, "start", lambda _: None)  # nothing is started here
    monkeypatch.setattr(play.os, "nice", lambda _: 0)
    monkeypatch.setattr(play, "show", lambda _: None)
    # no file system of its own: this machine's mount table would keep it
    monkeypatch.setattr(play, "keep_in_memory", lambda directory: directory.mkdir(mode=0o700))
    monkeypatch.setattr(run, "CaptureSession", Capture)
    # no request is ever answered here that a move could wait for
    monkeypatch.setattr(
        run.RequestWatch, "wait_for", lambda _, when, interval_ms: noted.note("move when", when)
    )
    monkeypatch.setattr(run, "versions_of", lambda _: {})
    waits = SimpleNamespace(
        sleep=lambda seconds: noted.note("sleep", round(seconds, 3)), monotonic=time.monotonic
    )
    monkeypatch.setattr(run, "time", waits)  # the module's own, as other threads wait by theirs
    monkeypatch.setattr(mptcp, "time", waits)
    monkeypatch.setattr(Replies, "wait", wait)
    monkeypatch.setattr(Program, "tell", lambda program, line: noted.note("tell", program.name, line))
    monkeypatch.setattr(Program, "wait", lambda *_: 0)
    monkeypatch.setattr(LoadClient, "wait_ready", lambda *_: None)
    monkeypatch.setattr(NameServer, "wait_ready", lambda *_: None)
    monkeypatch.setattr(MovingLoadClient, "change_address", lambda _: noted.note("the client moves"))
    monkeypatch.setattr(DnsDeployment, "_await_service", lambda _, address: noted.note("served at", address))
    pretend_mptcp(monkeypatch, noted)
    return noted


def pretend_mptcp(monkeypatch: pytest.MonkeyPatch, noted: Watch) -> None:
    """The namespace, its plugs and the kernel's path manager."""

    def named(kind: str) -> Callable[..., Any]:
        class Noting:
            def __init__(self, *_: object) -> None:
                pass

            def __getattr__(self, name: str) -> Callable[..., Any]:
                def call(*arguments: object, **named: object) -> Any:
                    noted.note(kind, name, arguments, named)
                    return {"t_ns": 0} if name == "ask" else 1

                return call

        return Noting

    monkeypatch.setattr(mptcp, "Pod", named("pod"))
    monkeypatch.setattr(mptcp, "Orders", named("order"))
    monkeypatch.setattr(mptcp, "netlink_in", named("netlink"))
    manager = SimpleNamespace(
        prepare=lambda _: None, PathManager=named("manager"), Subflows=named("subflows")
    )
    monkeypatch.setattr(mptcp, "path_manager", manager)
    monkeypatch.setattr(mptcp, "wait_for_namespace", lambda *_: None)
    monkeypatch.setattr(mptcp, "now_ns", lambda: 0)


def performed(spec: RunSpec, folder: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> str:
    """Perform a run in a folder; returns all that was noted."""
    watch.done.clear()

    def perform(chosen: RunSpec) -> RunResult:
        if chosen.baseline is None:
            watch.note("a downtime is measured", msgspec.json.encode(chosen))
        else:
            root = folder / "run"
            root.mkdir(parents=True)
            paths = RunPaths(root)
            for made in (paths.logs, paths.captures, paths.keys.parent):
                made.mkdir(parents=True, exist_ok=True)
            manifest = Manifest(id="run", created="", spec=chosen, topology=parts_of(chosen).topology)
            write_json(paths.manifest, manifest)
            monkeypatch.setattr(sys, "argv", ["play", str(root)])
            play.main()
            manifest = read_manifest(root)
            assert (manifest.outcome, manifest.error) == ("succeeded", None)
            watch.note("network", msgspec.json.encode(manifest.topology))
            watch.note("calls", watch.emulator.calls)
            for config in sorted((root / "configs").iterdir()):
                watch.note(config.name, config.read_text())
        return RunResult(
            outcome="succeeded",
            strategy="any",
            engine=chosen.engine,
            seed=chosen.seed,
            container_downtime_ms=7.0,
        )

    Downtimes([]).perform(spec, perform)
    return repr(watch.done).replace(str(folder), "")


@pytest.mark.parametrize("baseline", baselines.names())
@pytest.mark.parametrize(
    "axis", [axis for axis in axes().values() if axis.name != "baseline"], ids=lambda axis: axis.name
)
def test_an_axis_has_an_effect_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch, baseline: str, axis: Axis
) -> None:
    common: dict[str, Any] = {"baseline": baseline}
    if axis.name == "memory_by":
        common["engine"] = "criu-pre-copy"  # with others no memory moves outside of the downtime
    if axis.name in ("compression", "base_image"):
        common["engine"] = "criu-cold"  # handoff sends no images
    if axis.name == "dirty_mib_s":
        common["memory_mib"] = 1  # else there is nothing to rewrite
    if baselines.get(baseline).borrows_downtime and axis.name not in OF_A_DOWNTIME:
        common["downtime_ms"] = 20.0  # else all of the request is in the run that is measured for it
    usual, values = to_spec(common), {**common, axis.name: another(axis)}
    if axis.name in (reasons := unread(usual, parts_of(usual))):
        with pytest.raises(InvalidInput) as refused:
            to_spec(values)
        assert str(refused.value) == reasons[axis.name]
        assert axis.name in str(refused.value) or baseline in str(refused.value)
        return
    without = performed(usual, tmp_path / "without", watch, monkeypatch)
    given = performed(to_spec(values), tmp_path / "given", watch, monkeypatch)
    assert given != without


@pytest.mark.parametrize("baseline", baselines.names())
def test_the_same_request_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch, baseline: str
) -> None:
    """Else a difference would say nothing."""
    spec = to_spec({"baseline": baseline})
    first = performed(spec, tmp_path / "a", watch, monkeypatch)
    assert "sleep" in first
    assert performed(spec, tmp_path / "b", watch, monkeypatch) == first


def test_what_shapes_a_borrowed_downtime_is_refused_beside_a_given_one() -> None:
    assert to_spec({"baseline": "mptcp", "inter_edge_mbps": 50.0}).inter_edge_mbps == 50.0
    for name, value in (("inter_edge_mbps", 50.0), ("compression", "none"), ("memory_by", "agents")):
        with pytest.raises(InvalidInput, match=f"{name} shapes the downtime"):
            to_spec({"baseline": "mptcp", "downtime_ms": 20.0, name: value})
