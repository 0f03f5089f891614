"""The job in a virtual machine: what is asked of it, and what is made of what it left."""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest

import topologies
from quicferry import process
from quicferry.paths import CHECKOUT
from session.scenario import read_scenario

FOLDER = CHECKOUT / "provision" / "vm"


@pytest.fixture(scope="module")
def vm_test():
    """The command, which is no package: it runs before there is an environment."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("vm_test", FOLDER / "vm_test.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def leave(results, name, *, status=0, timed_out=False, said="fine\n"):
    ending = {"status": status, "seconds": 12.5, "budget_s": 100.0, "timed_out": timed_out}
    (results / f"{name}.json").write_text(json.dumps(ending))
    (results / f"{name}.txt").write_text(said)


def test_steps_are_done_in_their_own_order(vm_test):
    assert [step.name for step in vm_test.choose(["demo", "doctor"])] == ["doctor", "demo"]
    assert vm_test.choose(None) == list(vm_test.STEPS)
    assert len({step.name for step in vm_test.STEPS}) == len(vm_test.STEPS)


def test_an_unknown_step(vm_test, capsys):
    assert vm_test.main(["--only", "docter"]) == 2
    said = capsys.readouterr().err
    assert "no step 'docter'" in said
    assert "doctor" in said


def test_the_list_of_steps(vm_test, capsys):
    assert vm_test.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [step.name for step in vm_test.STEPS]


def test_a_host_without_qemu(vm_test, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vm_test.main(["--only", "doctor", "--results", str(tmp_path / "results")]) == 127
    assert "hint" in capsys.readouterr().err


def test_steps_that_succeeded_failed_and_took_too_long(vm_test, tmp_path):
    steps = vm_test.choose(["doctor", "handoff", "cable"])
    leave(tmp_path, "doctor")
    leave(tmp_path, "handoff", status=1, said="first\nno server\n")
    leave(tmp_path, "cable", status=-15, timed_out=True)
    doctor, handoff, cable = vm_test.outcomes(steps, tmp_path)
    assert doctor == ("doctor", True, 12.5, "fine")
    assert handoff == ("handoff", False, 12.5, "no server")
    assert not cable.ok
    assert "longer than its 100 s" in cable.said


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"status": 0}'])
def test_a_result_that_is_missing_or_torn_is_a_failure(vm_test, tmp_path, text):
    if text is not None:
        (tmp_path / "doctor.json").write_text(text)
    (found,) = vm_test.outcomes(vm_test.choose(["doctor"]), tmp_path)
    assert (found.ok, found.seconds) == (False, None)
    assert "left no result" in found.said


def test_patience_is_by_what_the_machine_has_measured(vm_test, tmp_path):
    steps = vm_test.choose(["doctor"])
    assert vm_test.patience_s(steps, 25.0, tmp_path) == vm_test.BOOT_S * 25
    (tmp_path / "machine.json").write_text(json.dumps({"boot_s": 90.0, "slower": 10.0}))
    assert vm_test.patience_s(steps, 25.0, tmp_path) == 90 + vm_test.SPARE_S + 10 * steps[0].budget_s


def test_patience_with_a_machine_whose_time_goes_slower_than_the_hosts(vm_test, tmp_path):
    steps = vm_test.choose(["doctor"])
    assert vm_test.patience_s(steps, 5.0, tmp_path, 50.0) == vm_test.BOOT_S * 5 * 50
    (tmp_path / "machine.json").write_text(json.dumps({"boot_s": 9.0, "slower": 3.0}))
    expected = (9 + vm_test.SPARE_S + 3 * steps[0].budget_s) * 50
    assert vm_test.patience_s(steps, 5.0, tmp_path, 50.0) == expected
    assert vm_test.machine.ICOUNT.dilation > vm_test.machine.TCG.dilation == 1.0


def test_an_emulated_processor_does_what_needs_exact_time_in_emulated_time(vm_test, tmp_path):
    steps = vm_test.choose(["kernel", "hybrid", "calibration"])
    usual, exact = vm_test.starts(steps, "tcg", tmp_path, by_name=False)
    assert (usual.accelerator, [step.name for step in usual.steps]) == ("tcg", ["kernel"])
    assert (exact.accelerator, [step.name for step in exact.steps]) == ("icount", ["hybrid", "calibration"])
    assert usual.results != exact.results
    for name, by_name in (("kvm", False), ("kvm", True), ("tcg", True), ("icount", True)):
        (start,) = vm_test.starts(steps, name, tmp_path, by_name=by_name)
        assert (start.accelerator, start.steps) == (name, steps)
    (only,) = vm_test.starts(vm_test.choose(["kernel"]), "tcg", tmp_path, by_name=False)
    assert only.accelerator == "tcg"


def test_no_step_is_left_out_of_all_starts(vm_test, tmp_path):
    done = [
        step
        for start in vm_test.starts(vm_test.choose(None), "tcg", tmp_path, by_name=False)
        for step in start.steps
    ]
    assert sorted(step.name for step in done) == sorted(step.name for step in vm_test.STEPS)


@pytest.mark.parametrize(
    ("slower", "said"), [("2", "all"), ("16", "demo --strategy proactive-explicit --strategy symmetric")]
)
def test_an_emulated_processor_shows_a_part_of_the_demo_and_says_so(vm_test, tmp_path, slower, said):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "quicferry").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "bin" / "quicferry").chmod(0o755)
    (step,) = vm_test.choose(["demo"])
    env = {"PATH": os.environ["PATH"], "QUICFERRY_VM_SLOWER": slower}
    done = process.run(["bash", "-c", step.command], cwd=tmp_path, env=env)
    assert done.stdout.splitlines()[-1] == ("demo" if said == "all" else said)
    assert ("emulated processor" in done.stdout) == (said != "all")


def test_stock_mininet_is_tried_with_every_topology(vm_test):
    (step,) = vm_test.choose(["mininet"])
    tried = step.command.partition(" in ")[2].partition(";")[0].split()
    assert tuple(tried) == topologies.names()


def test_the_number_of_processors(vm_test, tmp_path):
    machine = vm_test.machine
    assert machine.accelerator("tcg", tmp_path) is machine.TCG
    words = machine.accelerator("tcg", tmp_path, 1).arguments
    assert words[words.index("-smp") + 1] == "1"
    assert machine.TCG.arguments[machine.TCG.arguments.index("-smp") + 1] == "2"


def test_the_machines_sweep_runs_each_way_of_moving_memory_once():
    scenario = read_scenario(FOLDER / "engines.toml")
    assert scenario.warm_up == 0
    assert [(run.engine, run.link_backend, run.memory_by) for run in scenario.runs()] == [
        ("handoff", "netem", "auto"),
        ("handoff", "cable", "auto"),
        ("criu-cold", "netem", "auto"),
        ("criu-pre-copy", "netem", "criu"),
        ("criu-hybrid", "netem", "criu"),
    ]


def test_the_machines_sweep_of_containers_is_over_netem():
    scenario = read_scenario(FOLDER / "containers.toml")
    assert scenario.warm_up == 0
    assert [(run.engine, run.link_backend, run.memory_by) for run in scenario.runs()] == [
        ("runc-cold", "netem", "auto"),
        ("runc-pre-copy", "netem", "criu"),
        ("published-pre-copy", "netem", "auto"),
        ("published-hybrid", "netem", "auto"),
        ("published-cold", "netem", "auto"),
    ]


def test_the_machines_sweep_as_published_has_ours_beside_it():
    scenario = read_scenario(FOLDER / "published.toml")
    runs = [(run.engine, run.memory_mib, run.inter_edge_mbps) for run in scenario.runs()]
    ours = [("runc" + engine.removeprefix("published"), *rest) for engine, *rest in runs if engine[0] == "p"]
    assert len(runs) == 16
    assert set(ours) <= set(runs)
    assert {run.link_backend for run in scenario.runs()} == {"netem"}


def test_a_step_with_mininet_fails_when_a_packet_is_lost(vm_test):
    for step in vm_test.choose(["mininet", "openvswitch"]):
        assert "grep -q 'Results: 0% dropped'" in step.command


@pytest.mark.parametrize(("step", "probe"), [("links", "netem"), ("tests", "criu-tracking")])
def test_every_file_with_tests_that_need_its_kernel_is_named(vm_test, step, probe):
    (step,) = vm_test.choose([step])
    assert f"--needing={probe} " in step.command
    folder = CHECKOUT / "tests" / "e2e"
    having = [path for path in folder.rglob("test_*.py") if f'needs("{probe}")' in path.read_text()]
    named = [CHECKOUT / word for word in step.command.split() if word.startswith("tests/")]
    assert sorted(named) == sorted(having)


def test_a_machine_that_cannot_be_made_fails_every_step(vm_test, tmp_path, monkeypatch, capsys):
    def no_image():
        raise vm_test.machine.MachineError("the image could not be made")

    monkeypatch.setattr(vm_test.machine, "image", no_image)
    monkeypatch.setattr(vm_test.shutil, "which", lambda _: "/usr/bin/qemu")
    assert vm_test.main(["--only", "doctor", "--results", str(tmp_path / "results")]) == 1
    out, err = capsys.readouterr()
    assert "doctor" in out
    assert "FAILED" in out
    assert "could not be made" in err
    assert json.loads((tmp_path / "results" / "outcomes.json").read_text())[0]["ok"] is False


@pytest.mark.parametrize(("inside_s", "outside_s", "rate"), [(100, 100, 1.0), (160, 100, 1.6), (5, 5, None)])
def test_the_machines_clock_is_judged_by_the_hosts(vm_test, tmp_path, inside_s, outside_s, rate):
    for name, clock_s, at_s in (("machine", 50, 1_000_000), ("end", 50 + inside_s, 1_000_000 + outside_s)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"clock_s": clock_s}))
        os.utime(path, (at_s, at_s))
    assert vm_test.clock_rate(tmp_path) == rate


def test_no_clock_to_judge(vm_test, tmp_path):
    assert vm_test.clock_rate(tmp_path) is None
