"""provision/criu.sh: quick when done, works from what it kept, says clearly what is missing."""

import os
import shutil

import pytest

from quicferry.migration.criu.command import CHECKOUT, find_criu
from quicferry.process import Result, run

SCRIPT = CHECKOUT / "provision" / "criu.sh"


def criu_sh(prefix, *arguments: str, **env: str) -> Result:
    # a mirror that nobody listens at: these tests must not need a network
    closed = {"QUICFERRY_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}
    variables = {**os.environ, **closed, "QUICFERRY_CRIU_PREFIX": str(prefix), **env}
    return run([SCRIPT, *arguments], check=False, env=variables, timeout_s=120)


@pytest.mark.needs("criu")
def test_what_is_there_and_works_is_left_alone(tmp_path):
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "criu"
    launcher.write_text(f'#!/bin/sh\nexec {find_criu()} "$@"\n')
    launcher.chmod(0o755)
    before = launcher.stat().st_mtime_ns
    done = criu_sh(tmp_path)
    assert done.status == 0, done.stderr
    assert "works on kernel" in done.stderr and "already there" in done.stderr
    assert launcher.stat().st_mtime_ns == before
    assert criu_sh(tmp_path, "--check").status == 0


@pytest.mark.needs("criu")
def test_a_broken_launcher_is_made_anew_without_a_network(tmp_path):
    """From the packages that were kept, or from the system's criu where that one works."""
    kept = find_criu().parent.parent / "debs"
    if kept.exists():
        shutil.copytree(kept, tmp_path / "debs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "criu").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "criu").chmod(0o755)
    refused = criu_sh(tmp_path, "--check")
    assert refused.status == 127
    assert "no working criu" in refused.stderr and "hint: run provision/criu.sh" in refused.stderr
    done = criu_sh(tmp_path)
    assert done.status == 0, done.stderr
    assert run([tmp_path / "bin" / "criu", "--version"]).stdout.startswith("Version: ")


def test_an_unreachable_mirror_is_said_with_a_remedy(tmp_path):
    # hide a criu of the system: this is about what happens without one
    hide = 'for f in /usr/*/criu /usr/local/*/criu; do [ ! -e $f ] || mount --bind /dev/null $f; done; "$@"'
    hidden = ["unshare", "--mount", "sh", "-c", hide, "sh"]
    variables = {
        **os.environ,
        "QUICFERRY_DEBIAN_MIRROR": "http://127.0.0.1:9/debian",
        "QUICFERRY_CRIU_PREFIX": str(tmp_path),
    }
    done = run([*hidden, SCRIPT], check=False, env=variables, timeout_s=120)
    assert done.status == 1
    assert "http://127.0.0.1:9/debian sid cannot be read" in done.stderr
    assert "QUICFERRY_DEBIAN_MIRROR" in done.stderr
    assert not (tmp_path / "bin").exists()


@pytest.mark.needs("criu")
def test_a_system_whose_criu_works_gets_no_other(tmp_path):
    script = 'mount -t tmpfs none /usr/local/sbin && ln -s "$0" /usr/local/sbin/criu && exec "$1"'
    variables = {**os.environ, "QUICFERRY_CRIU_PREFIX": str(tmp_path)}
    done = run(["unshare", "--mount", "sh", "-c", script, find_criu(), SCRIPT], env=variables)
    assert "the system's own, /usr/" in done.stderr
    assert "exec '/usr/" in (tmp_path / "bin" / "criu").read_text()
    assert not (tmp_path / "root").exists(), "nothing was fetched"


def test_a_wrong_argument_and_help(tmp_path):
    wrong = criu_sh(tmp_path / "new", "--frobnicate")
    assert wrong.status == 2 and "--help" in wrong.stderr
    assert "provision/criu.sh --check" in criu_sh(tmp_path / "new", "--help").stdout
    assert not (tmp_path / "new").exists()
    assert criu_sh(tmp_path / "new", "--check").status == 127
    assert not (tmp_path / "new").exists()
