"""What is done inside the virtual machine, done here: bash that can be read, and an ending for every step."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time

import pytest

from quicferry.paths import CHECKOUT

FOLDER = CHECKOUT / "provision" / "vm"


def load(name):
    """A file of the folder, which is no package: it runs before there is an environment."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def vm_test():
    return load("vm_test")


@pytest.fixture(scope="module")
def guest_steps():
    return load("guest_steps")


def test_every_command_is_bash(vm_test):
    for step in vm_test.STEPS:
        checked = subprocess.run(["bash", "-n", "-c", step.command], capture_output=True, check=False)
        assert checked.returncode == 0, (step.name, checked.stderr)


def test_the_machines_side_does_every_step(guest_steps, tmp_path):
    steps = [
        {"name": "good", "command": "echo done", "budget_s": 60},
        {"name": "bad", "command": "echo sorry; exit 3", "budget_s": 60},
        {"name": "endless", "command": "echo waits; exec sleep 600", "budget_s": 0.05},
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "steps.json").write_text(json.dumps({"host_cpu_s": 1000.0, "steps": steps}))
    assert guest_steps.main(tmp_path) == 0
    endings = {
        step["name"]: json.loads((tmp_path / "results" / f"{step['name']}.json").read_text())
        for step in steps
    }
    assert (endings["good"]["status"], endings["good"]["timed_out"]) == (0, False)
    assert (endings["bad"]["status"], endings["bad"]["timed_out"]) == (3, False)
    assert endings["endless"]["timed_out"] is True
    assert (tmp_path / "results" / "bad.txt").read_text() == "sorry\n"
    assert json.loads((tmp_path / "results" / "machine.json").read_text())["slower"] == 1.0


def test_the_frequency_of_the_time_stamp_counter():
    machine = load("machine")
    khz = [machine.tsc_khz(0.05) for _ in range(3)]
    if khz[0] is None:  # another architecture
        assert khz == [None] * 3
        assert "tsc" not in machine.kernel_arguments(machine.TCG)
    else:
        assert min(khz) > 100_000
        assert max(khz) - min(khz) < 0.001 * max(khz)
        assert "tsc_early_khz=" in machine.kernel_arguments(machine.TCG)
    assert "tsc" not in machine.kernel_arguments(machine.KVM)


def test_processor_time_leaves_out_what_others_do(guest_steps):
    before = guest_steps.cpu_s()
    time.sleep(0.2)
    assert guest_steps.cpu_s() - before < 0.1
    assert guest_steps.speed_s(guest_steps.cpu_s) > 0.005


@pytest.mark.parametrize(
    ("script", "who"),
    [
        ("vm/image.sh", "image"),
        ("vm/vagrant_test.sh", "vagrant-test"),
        ("container/container_test.sh", "container-test"),
    ],
)
def test_what_the_scripts_say_of_an_unknown_argument(script, who):
    path = CHECKOUT / "provision" / script
    done = subprocess.run([path, "--nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"{who}: unknown argument --nothing\n  hint: provision/{script} --help\n"


def test_the_name_of_the_disk_stands_for_what_is_on_it(tmp_path):
    provision = tmp_path / "provision"
    shutil.copytree(CHECKOUT / "provision", provision)
    shutil.copy(CHECKOUT / "requirements.lock", tmp_path)

    def key():
        done = subprocess.run([provision / "vm" / "image.sh", "--key"], capture_output=True, check=True)
        return done.stdout

    before = key()
    (provision / "podman.sh").write_text("exit 1\n")
    assert key() == before
    for name in ("setup.sh", "criu.sh", "vm/guest.sh"):
        (provision / name).write_text("exit 1\n")
        after = key()
        assert after != before, name
        before = after


def test_what_mininet_says_of_every_topology_stays(vm_test, guest_steps, tmp_path):
    said = "printf '*** Results: %s dropped\\n' $it" + f" {vm_test.ALL_ARRIVED}"
    output = tmp_path / "mininet.txt"
    status, _, _ = guest_steps.do(vm_test._each("0% 0%", said), output, 60)
    assert (status, output.read_text().count("Results: 0% dropped")) == (0, 2)
    status, _, _ = guest_steps.do(vm_test._each("0% 5% 0%", said), output, 60)
    assert (status, output.read_text().count("dropped")) == (1, 3)
