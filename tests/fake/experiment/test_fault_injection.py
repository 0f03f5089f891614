"""The injector on an emulation that only pretends, with real processes that stand still."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import topologies
from quicferry import process
from quicferry.emulation.fake import Call, FakeEmulator
from quicferry.errors import EmulationError, FerryError
from quicferry.events import Event
from quicferry.experiment.context import Program, RunContext
from quicferry.experiment.fault_injector import FaultInjector
from quicferry.experiment.faults import ROWS, TRIGGERS, parse
from quicferry.migration.criu.sealed import SealedMemory
from quicferry.record import RunPaths
from quicferry.spec import FaultKind as Kind
from quicferry.spec import FaultPoint as Point
from quicferry.spec import RunSpec
from quicferry.units import now_ns
from tests.waiting import eventually

TOPOLOGY = topologies.get("two_edges").build_from_axes({}, {})
PARTS = ("source", "destination", "orchestrator", "client")


class FakeProcesses:
    """Four processes that do nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.programs: dict[str, Program] = {}
        self.expected: list[str] = []
        self.restarted: list[str] = []
        for part in PARTS:
            self.start(part)

    def start(self, part: str) -> None:
        log = self._directory / f"{part}.log"
        log.touch()
        self.programs[part] = Program(part, process.spawn(["sleep", "60"]), log, lambda line: None)

    def program(self, part: str) -> Program:
        return self.programs[part]

    def expect_end(self, part: str) -> None:
        self.expected.append(part)

    def start_again(self, part: str) -> None:
        self.restarted.append(part)
        self.start(part)

    def container_pid(self, part: str) -> int:
        raise FerryError("there is no container")

    def close(self) -> None:
        for program in self.programs.values():
            program.process.send_signal(signal.SIGCONT)
            program.end(grace_s=1.0)


def state(program: Program) -> str:
    return Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[FakeProcesses]:
    made = FakeProcesses(tmp_path)
    yield made
    made.close()


def context(tmp_path: Path, *faults: str, emulator: FakeEmulator | None = None) -> RunContext:
    emulator = emulator or FakeEmulator()
    emulator.deploy(TOPOLOGY)
    paths = RunPaths(tmp_path)
    return RunContext(
        RunSpec(faults=tuple(map(parse, faults)), engine="criu-hybrid"), TOPOLOGY, paths, emulator
    )


def reach(run: RunContext, processes: FakeProcesses, point: Point) -> None:
    """The agent of that point tells of it and stops itself."""
    trigger = TRIGGERS[point]
    program = processes.program(trigger.part)
    program.process.send_signal(signal.SIGSTOP)
    run.collect(Event(t_ns=now_ns(), vantage=run.part(trigger.part), name=trigger.event))


def injected(run: RunContext) -> list[str]:
    return [e.detail["fault"] for e in run.collected() if e.name == "fault.injected"]


def mended(run: RunContext) -> list[str]:
    return [e.detail["fault"] for e in run.collected() if e.name == "fault.mended"]


@pytest.mark.parametrize("point", [row.point for row in ROWS if row.kind is Kind.LINK_CUT])
def test_a_link_is_cut_and_mended(tmp_path: Path, processes: FakeProcesses, point: Point) -> None:
    emulator = FakeEmulator()
    run = context(tmp_path, f"{point}:link-cut=0.2", emulator=emulator)
    faults = FaultInjector(run, processes)
    reach(run, processes, point)
    assert emulator.links_down == {"edge-1--edge-2"}
    assert injected(run) == [f"{point}:link-cut"]
    assert state(processes.program(TRIGGERS[point].part)) != "T", "the agent must go on"
    assert eventually(lambda: not emulator.links_down)
    assert emulator.calls[-2:] == [
        Call("set_link", "edge-1--edge-2", ("down",)),
        Call("set_link", "edge-1--edge-2", ("up",)),
    ]
    faults.stop()
    assert mended(run) == [f"{point}:link-cut"]


def test_it_happens_once(tmp_path: Path, processes: FakeProcesses) -> None:
    run = context(tmp_path, "transfer:link-cut")
    faults = FaultInjector(run, processes)
    reach(run, processes, Point.TRANSFER)
    run.collect(Event(t_ns=now_ns(), vantage="edge-1", name=TRIGGERS[Point.TRANSFER].event))
    faults.stop()
    assert injected(run) == ["transfer:link-cut"]


def test_the_end_of_the_run_mends(tmp_path: Path, processes: FakeProcesses) -> None:
    emulator = FakeEmulator()
    run = context(tmp_path, "transfer:link-cut=60", emulator=emulator)
    faults = FaultInjector(run, processes)
    reach(run, processes, Point.TRANSFER)
    begun = time.monotonic()
    faults.stop()
    assert time.monotonic() - begun < 30
    assert emulator.links_down == set()


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (Kind.SOURCE_AGENT_KILLED, "source"),
        (Kind.DESTINATION_AGENT_KILLED, "destination"),
        (Kind.ORCHESTRATOR_KILLED, "orchestrator"),
    ],
)
def test_a_process_is_killed_and_started_again(
    tmp_path: Path, processes: FakeProcesses, kind: Kind, part: str
) -> None:
    run = context(tmp_path, f"checkpoint:{kind}=0.1")
    faults = FaultInjector(run, processes)
    first = processes.program(part)
    reach(run, processes, Point.CHECKPOINT)
    assert first.process.poll() == -signal.SIGKILL
    assert processes.expected == [part]
    faults.stop()
    assert processes.restarted == [part]
    assert processes.program(part).process.poll() is None


def test_the_client_is_silent_for_a_while(tmp_path: Path, processes: FakeProcesses) -> None:
    run = context(tmp_path, "notice:client-silent=0.5")
    faults = FaultInjector(run, processes)
    reach(run, processes, Point.NOTICE)
    assert eventually(lambda: state(processes.program("client")) == "T")
    assert eventually(lambda: state(processes.program("client")) != "T")
    faults.stop()


def test_a_link_that_is_lost_stays_down(tmp_path: Path, processes: FakeProcesses) -> None:
    emulator = FakeEmulator()
    run = context(tmp_path, "pages:link-lost", emulator=emulator)
    faults = FaultInjector(run, processes)
    reach(run, processes, Point.PAGES)
    faults.stop()
    assert emulator.links_down == {"edge-1--edge-2"}
    assert (injected(run), mended(run)) == (["pages:link-lost"], [])


def test_in_a_dump_the_agent_goes_on_and_dies_at_a_moment_of_the_seed(
    tmp_path: Path, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep: list[float] = []
    monkeypatch.setattr(FaultInjector, "_await_criu", lambda self, part, least: None)
    monkeypatch.setattr("quicferry.experiment.fault_injector.time.sleep", asleep.append)
    for seed in (1, 1, 2):
        run = context(tmp_path, "dump:source-agent-killed=0.01")
        run.spec = msgspec.structs.replace(run.spec, seed=seed)
        faults = FaultInjector(run, processes)
        victim = processes.program("source")
        reach(run, processes, Point.DUMP)
        faults.stop()
        assert victim.process.poll() == -signal.SIGKILL
        assert injected(run) == ["dump:source-agent-killed"]
    moments = [each for each in asleep if each > 0.0005]
    assert moments[0] == moments[1] != moments[2]


def test_nothing_is_done_to_an_agent_that_does_not_stand_still(
    tmp_path: Path, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quicferry.experiment.fault_injector.STOP_S", 0.1)
    emulator = FakeEmulator()
    run = context(tmp_path, "transfer:link-cut", emulator=emulator)
    FaultInjector(run, processes)
    run.collect(Event(t_ns=now_ns(), vantage="edge-1", name=TRIGGERS[Point.TRANSFER].event))
    assert not emulator.links_down
    assert injected(run) == []
    assert "did not stop" in run.warnings[0]


def test_a_fault_that_fails_is_told_and_the_agent_goes_on(tmp_path: Path, processes: FakeProcesses) -> None:
    broken = FakeEmulator(failures={"set_link": EmulationError("no such link")})
    run = context(tmp_path, "transfer:link-cut", emulator=broken)
    FaultInjector(run, processes)
    reach(run, processes, Point.TRANSFER)
    assert injected(run) == []
    assert run.warnings == ["the fault transfer:link-cut could not be injected: no such link"]
    assert state(processes.program("source")) != "T"


@pytest.mark.parametrize("names", [(), ("pages-1.img", "round-0/pages-1.img")], ids=["all came", "some"])
def test_state_that_a_destination_has_removed_itself_is_removed(
    tmp_path: Path, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """A server with all of its memory needs no images: they may be gone before the fault."""
    state_dir = tmp_path / "received"
    monkeypatch.setattr("quicferry.experiment.fault_kinds._state", lambda injection: state_dir)
    for name in names:
        (state_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (state_dir / name).write_bytes(b"page")
    run = context(tmp_path, "pages:restore-fails")
    FaultInjector(run, processes)
    reach(run, processes, Point.PAGES)
    assert injected(run) == ["pages:restore-fails"]
    assert run.warnings == []
    assert [path for path in state_dir.rglob("*") if path.is_file()] == []


def test_an_agent_is_told_only_what_concerns_it(tmp_path: Path, processes: FakeProcesses) -> None:
    run = context(tmp_path, "transfer:image-corrupted", "restore:link-cut")
    faults = FaultInjector(run, processes)
    source, destination = faults.failpoints("edge-1"), faults.failpoints("edge-2")
    assert source.stop_at == [TRIGGERS[Point.TRANSFER].event] and source.damage == ["transfer"]
    assert destination.stop_at == [TRIGGERS[Point.RESTORE].event] and not destination.damage
    assert not faults.client_refuses
    assert FaultInjector(context(tmp_path, "notice:client-refusing"), processes).client_refuses


def test_a_run_without_faults_hears_nothing(tmp_path: Path, processes: FakeProcesses) -> None:
    run = context(tmp_path)
    faults = FaultInjector(run, processes)
    assert run.listeners == []
    assert faults.failpoints("edge-1").stop_at == []
    assert parse("transfer:link-cut").name == "transfer:link-cut"


def test_a_byte_is_changed_wherever_a_destination_keeps_one_and_the_kernel_lets_it(
    tmp_path: Path, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sealed memory that is not so; of a file, and of memory that is not sealed, it is."""
    state_dir = tmp_path / "received"
    state_dir.mkdir()
    (state_dir / "small.img").write_bytes(b"few")
    (state_dir / "large.img").write_bytes(b"large")
    monkeypatch.setattr("quicferry.experiment.fault_kinds._state", lambda injection: state_dir)
    sealed = SealedMemory("rounds")
    sealed.append("round-0/pages-1.img", memoryview(b"sealed"))
    sealed.seal()
    plain = os.memfd_create("plain")
    os.write(plain, b"plain")
    processes.programs["destination"].end(grace_s=1.0)
    holder = process.spawn(["sleep", "60"], pass_fds=(sealed.descriptor, plain))
    processes.programs["destination"] = Program(
        "destination", holder, tmp_path / "destination.log", lambda line: None
    )
    run = context(tmp_path, "restore:image-corrupted")
    FaultInjector(run, processes)
    reach(run, processes, Point.RESTORE)
    assert injected(run) == ["restore:image-corrupted"]
    assert bytes(sealed.content("round-0/pages-1.img")) == b"sealed"
    assert os.pread(plain, 9, 0) == b"pl" + bytes([ord("a") ^ 1]) + b"in"
    assert (state_dir / "large.img").read_bytes() == b"la" + bytes([ord("r") ^ 1]) + b"ge"
    assert (state_dir / "small.img").read_bytes() == b"few"
    os.close(plain)
    sealed.close()
