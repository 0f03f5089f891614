"""The marker `needs`: skipped with the probe's reason, or failed where the probe is required."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quicferry.process import run

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
ANSWERS = """
_answers["criu"] = ProbeResult(
    name="criu", works=False, detail="no such kernel", hint="take another", needed_for="", duration_ms=0.0
)
_answers["veth"] = ProbeResult(name="veth", works=True, detail="seen", needed_for="", duration_ms=0.0)
"""


@pytest.fixture
def project(tmp_path):
    """A project with our conftest, in which criu does not work and veth does."""
    tests = tmp_path / "tests"
    for layer in ("pure", "loopback"):
        (tests / layer).mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST.read_text() + ANSWERS)
    (tests / "loopback" / "test_a.py").write_text(
        "import pytest\n"
        "@pytest.mark.needs('veth', 'criu')\n"
        "def test_dump(): pass\n"
        "@pytest.mark.needs('veth')\n"
        "def test_link(): pass\n"
    )
    (tests / "pure" / "test_z.py").write_text("def test_sum(): pass\n")

    def call(*arguments):
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "-v",
            "-ra",
        ]
        return run([*argv, *arguments, "tests"], cwd=tmp_path, check=False)

    return call


def test_what_does_not_work_is_skipped_with_its_reason(project):
    done = project()
    assert done.status == 0, done.stdout
    assert "2 passed, 1 skipped" in done.stdout
    assert "criu: no such kernel (take another)" in done.stdout


def test_what_is_required_fails(project):
    done = project("--require=veth,criu")
    assert done.status == 1
    assert "required, but does not work here: criu: no such kernel (take another)" in done.stdout
    assert "skipped" not in done.stdout


def test_requiring_something_else_changes_nothing(project):
    assert "2 passed, 1 skipped" in project("--require=veth").stdout


def test_an_unknown_requirement_is_refused(project):
    done = project("--require=criuu")
    assert done.status == 4
    assert "no such probe: criuu" in done.stderr


def test_only_tests_that_need_a_probe_are_collected(project):
    out = project("--needing=criu").stdout
    assert "1 skipped, 2 deselected" in out
    assert "2 passed" not in out
    assert "1 passed, 1 skipped, 1 deselected" in project("--needing=criu,veth").stdout
    done = project("--needing=criuu")
    assert done.status == 4
    assert "--needing: no such probe: criuu" in done.stderr


def test_layers_are_markers_and_the_fast_ones_come_first(project):
    assert "1 passed, 2 deselected" in project("-m", "pure").stdout
    out = project().stdout
    assert out.index("test_sum") < out.index("test_link")


def test_a_test_in_no_layer_is_refused(project, tmp_path):
    (tmp_path / "tests" / "test_stray.py").write_text("def test_it(): pass\n")
    done = project()
    assert done.status == 4
    assert "test_stray.py is in no layer" in done.stdout + done.stderr
