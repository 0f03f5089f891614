"""The set-up script's ways out, and that the environment is what the lock file says."""

from __future__ import annotations

import re
import shutil
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quicferry.paths import CHECKOUT
from quicferry.process import run

SCRIPTS = [
    CHECKOUT / "bin" / "quicferry",
    CHECKOUT / ".ci" / "run",
    *CHECKOUT.glob("provision/*.sh"),
    *CHECKOUT.glob("tools/*.sh"),
]


@pytest.fixture
def checkout(tmp_path):
    """A checkout that was never set up, of what the script reads."""
    shutil.copytree(CHECKOUT / "provision", tmp_path / "checkout" / "provision")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, tmp_path / "checkout")
    return tmp_path / "checkout"


def pinned():
    """Package -> version, of the lines of the lock that hold on this machine."""
    lines = re.findall(r"^(?!\s)(\S+==[^\\\n]*)", (CHECKOUT / "requirements.lock").read_text(), re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_run_and_parsed(script):
    assert script.stat().st_mode & 0o111 == 0o111
    shell = script.read_text().partition("\n")[0].removeprefix("#!")
    run([shell, "-n", script])


def test_help_and_a_wrong_argument(checkout):
    script = checkout / "provision" / "setup.sh"
    assert "--force" in run([script, "--help"]).stdout
    wrong = run([script, "--hlep"], check=False)
    assert wrong.status == 2
    assert "--hlep" in wrong.stderr


def test_a_user_who_is_not_root_is_told_so_before_anything_happens(checkout, tmp_path):
    fake = tmp_path / "bin" / "id"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 1000\n")
    fake.chmod(0o755)
    before = sorted(checkout.rglob("*"))
    done = run(
        [checkout / "provision" / "setup.sh"],
        check=False,
        env={"PATH": f"{fake.parent}:/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert done.status == 127
    assert "sudo make setup" in done.stderr
    assert sorted(checkout.rglob("*")) == before


def test_the_lock_names_every_dependency():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    locked = pinned()
    for text in wanted:
        requirement = Requirement(text)
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), text


def test_the_environment_is_what_the_lock_says():
    for name, version in pinned().items():
        assert metadata.version(name) == version, name
