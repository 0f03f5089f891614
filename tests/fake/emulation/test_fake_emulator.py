"""The fake keeps the promises of the interface, so that flows tested on it hold on the real one."""

import inspect
import signal

import pytest

import topologies
from quicferry.emulation.emulator import DeployPhase, Emulator
from quicferry.emulation.fake import Call, FakeEmulator
from quicferry.emulation.mininet.emulator import MininetEmulator
from quicferry.errors import CommandFailed, EmulationError, InvalidInput
from quicferry.process import Result, TimeoutExpired

TWO_EDGES = topologies.get("two_edges").build()
METHODS = [name for name in vars(Emulator) if not name.startswith("_")]


@pytest.mark.parametrize("kind", [FakeEmulator, MininetEmulator])
@pytest.mark.parametrize("name", METHODS)
def test_both_emulators_have_the_interface_to_the_letter(kind: type, name: str) -> None:
    promised, offered = vars(Emulator)[name], vars(kind)[name]
    if isinstance(promised, property):
        assert isinstance(offered, property)
    else:
        assert inspect.signature(offered) == inspect.signature(promised)


def deployed(**options: object) -> FakeEmulator:
    emulator = FakeEmulator(**options)
    emulator.deploy(TWO_EDGES)
    return emulator


def test_the_phases_of_a_deployment_are_told_in_their_order() -> None:
    told: list[DeployPhase] = []
    with FakeEmulator(progress=told.append) as emulator:
        emulator.deploy(TWO_EDGES)
    assert told == list(DeployPhase)
    assert emulator.destroyed == 1


@pytest.mark.parametrize("phase", list(DeployPhase))
def test_a_deployment_that_fails_in_any_phase_leaves_nothing(phase: DeployPhase) -> None:
    told: list[DeployPhase] = []
    emulator = FakeEmulator(failures={phase: EmulationError("no")}, progress=told.append)
    with pytest.raises(EmulationError, match="no"):
        emulator.deploy(TWO_EDGES)
    assert told == list(DeployPhase)[: list(DeployPhase).index(phase)]
    assert emulator.destroyed == 1
    with pytest.raises(EmulationError, match="no topology"):
        emulator.topology  # noqa: B018 - the access itself raises


@pytest.mark.parametrize(
    "act",
    [
        lambda e: e.spawn("client", ["true"]),
        lambda e: e.execute("client", ["true"]),
        lambda e: e.calibrate(),
        lambda e: e.set_link("edge-1--edge-2", up=False),
        lambda e: e.destroy(),
    ],
    ids=["spawn", "execute", "calibrate", "set_link", "destroy"],
)
def test_any_later_step_can_be_told_to_fail(act: object, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    emulator = deployed(failures={name: OSError("told so")})
    with pytest.raises(OSError, match="told so"):
        act(emulator)


def test_nothing_works_before_the_deployment_and_nothing_twice() -> None:
    emulator = FakeEmulator()
    with pytest.raises(EmulationError):
        emulator.spawn("client", ["true"])
    emulator.deploy(TWO_EDGES)
    with pytest.raises(EmulationError, match="already"):
        emulator.deploy(TWO_EDGES)


def test_unknown_hosts_and_links_are_refused() -> None:
    emulator = deployed()
    for act in (
        lambda: emulator.spawn("moon", ["true"]),
        lambda: emulator.execute("moon", ["true"]),
        lambda: emulator.address("moon"),
        lambda: emulator.pid("moon"),
        lambda: emulator.interface("client", "edge-1--edge-2"),
        lambda: emulator.interface("client", "moon--sun"),
        lambda: emulator.set_link("moon--sun", up=True),
    ):
        with pytest.raises(InvalidInput):
            act()


def test_programs_answer_as_they_were_told_to() -> None:
    answer = Result(["ping"], 1, "", "unreachable")
    emulator = deployed(answers={("client", "ping"): answer}, exits={("dns", "named"): 3})
    assert emulator.execute("client", ["ping", "x"], check=False) is answer
    with pytest.raises(CommandFailed, match="unreachable"):
        emulator.execute("client", ["ping", "x"])
    assert emulator.execute("edge-1", ["ping"]).status == 0
    assert emulator.spawn("dns", ["named"]).wait() == 3
    assert Call("execute", "client", ("ping", "x")) in emulator.calls


def test_a_spawned_program_runs_until_it_is_ended() -> None:
    emulator = deployed()
    process = emulator.spawn("edge-1", ["server"])
    assert process.poll() is None
    with pytest.raises(TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    other = emulator.spawn("edge-1", ["server"])
    emulator.destroy()
    assert other.poll() == -signal.SIGKILL


def test_addresses_interfaces_and_readings_are_those_of_the_topology() -> None:
    emulator = deployed()
    assert emulator.address("edge-1") == "10.0.1.2"
    assert emulator.interface("edge-1", "edge-1--edge-2") == "edge-1-eth1"
    readings = emulator.link_readings()
    assert len(readings) == 2 * len(TWO_EDGES.links)
    assert {reading.measured_delay_ms for reading in readings} == {None}
    measured = {r.link: r.measured_delay_ms for r in emulator.calibrate()}
    assert measured["core--edge-2"] == 9.0


def test_links_go_down_and_up() -> None:
    emulator = deployed()
    emulator.set_link("edge-1--edge-2", up=False)
    assert emulator.links_down == {"edge-1--edge-2"}
    emulator.set_link("edge-1--edge-2", up=True)
    assert emulator.links_down == set()
