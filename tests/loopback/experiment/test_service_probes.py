"""The probes of MPTCP and DNS leave nothing behind, and give reasons when they say no."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicferry.experiment.service_probes import NAMED_DIRECTORY, PROBES
from quicferry.process import run

BY_NAME = {probe.name: probe for probe in PROBES}


def host_state():
    """What a probe that escaped from its namespaces would change."""
    return (
        run(["ip", "-o", "addr"]).stdout,
        Path("/proc/self/mounts").read_text(),
        sorted(path.name for path in NAMED_DIRECTORY.iterdir()) if NAMED_DIRECTORY.is_dir() else None,
    )


@pytest.mark.needs("mptcp", "dns")
@pytest.mark.parametrize("name", ["mptcp", "dns"])
def test_a_probe_leaves_the_host_as_it_was(name):
    before = host_state()
    result = BY_NAME[name].run()
    assert result.works, result.detail
    assert host_state() == before


@pytest.mark.needs("root")
def test_a_machine_without_named(monkeypatch, tmp_path):
    for program in ("ip", "unshare", "mount"):
        found = run(["/bin/sh", "-c", f"command -v {program}"]).stdout.strip()
        (tmp_path / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = BY_NAME["dns"].run()
    assert not result.works
    assert "named" in result.detail
    assert result.hint is not None
    assert "make setup" in result.hint


@pytest.mark.parametrize("name", ["mptcp", "dns"])
def test_a_user_who_is_not_root(monkeypatch, name):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = BY_NAME[name].run()
    assert not result.works
    assert "needs root" in result.detail
    assert result.hint == "run it as root"
