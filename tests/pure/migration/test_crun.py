"""crun in the place of runc: how it is recognised, what it is told, and what it is refused for."""

import importlib
from pathlib import Path

import pytest

from apps.deployment import services
from quicferry.errors import Unsupported
from quicferry.migration.container.oci_container import (
    RUNC_VARIABLE,
    OciContainer,
    can_leave_memory_out,
    is_crun,
)
from quicferry.migration.container.podman_container import PodmanContainer
from quicferry.migration.criu import runc_probes
from quicferry.migration.criu.runc import Runc
from quicferry.migration.criu.versions import name_and_version, versions_of
from quicferry.migration.engines.registry import engines, engines_that
from quicferry.spec import RunSpec

WITH_CRIU = "+SYSTEMD +CAP +SECCOMP +EBPF +CRIU +YAJL"


def program(directory: Path, version: str, more: str = "") -> Path:
    """A program that tells its version, and knows no ``--lazy-pages`` if it is a crun."""
    made = directory / "runtime"
    refuses = "" if version.startswith("runc") else 'case " $* " in *lazy*) exit 64 ;; esac\n'
    made.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && printf "%s\\n" "{version}" "{more}"\n{refuses}exit 0\n'
    )
    made.chmod(0o755)
    return made


def test_each_is_told_by_its_version(tmp_path, monkeypatch):
    crun = program(tmp_path, "crun version 1.28", WITH_CRIU)
    assert is_crun(crun)
    assert name_and_version(crun) == "crun 1.28"
    monkeypatch.setenv(RUNC_VARIABLE, str(crun))
    assert versions_of(["runc"]) == {"crun": "1.28"}


def test_a_runc_is_none(tmp_path, monkeypatch):
    runc = program(tmp_path, "runc version 1.4.3+ds1")
    assert not is_crun(runc)
    assert name_and_version(runc) == "runc 1.4.3+ds1"
    monkeypatch.setenv(RUNC_VARIABLE, str(runc))
    assert versions_of(["runc"]) == {"runc": "1.4.3+ds1"}
    assert runc_probes.without_memory() == "runc 1.4.3+ds1 has --lazy-pages"


def test_a_crun_without_criu_is_refused_before_it_is_tried(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNC_VARIABLE, str(program(tmp_path, "crun version 1.8.1", "+SYSTEMD +CAP")))
    with pytest.raises(Unsupported, match=r"crun 1\.8\.1 is built without CRIU") as caught:
        runc_probes.checkpoint_and_restore()
    monkeypatch.setattr(runc_probes, "find_podman", lambda: Path("/bin/true"))
    with pytest.raises(Unsupported, match="is built without CRIU"):
        runc_probes.by_podman()
    assert "Debian 13" in (caught.value.hint or "")


def test_a_runtime_that_dumps_all_memory_at_once_is_refused_for_what_needs_less(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNC_VARIABLE, str(program(tmp_path, "crun version 1.28", WITH_CRIU)))
    with pytest.raises(Unsupported, match=r"crun 1\.28 has no option --lazy-pages for checkpoint"):
        runc_probes.without_memory()
    assert engines_that(lambda entry: "oci-lazy-pages" in entry.needs) == {
        *("runc-pre-copy", "runc-post-copy", "runc-hybrid"),
        *("published-post-copy", "published-hybrid"),
    }


@pytest.mark.parametrize(("by_crun", "times"), [(True, 1), (False, 0)])
def test_crun_is_told_to_keep_criu_from_groups_on_each_step(by_crun, times):
    box = PodmanContainer.__new__(PodmanContainer)
    box.edge, box.by_crun, box.runc = "edge-1", by_crun, Path("/bin/crun")
    assert box.runtime_script().count("--manage-cgroups-mode ignore") == times
    box = OciContainer.__new__(OciContainer)
    box.edge, box.by_crun = "edge-1", by_crun
    runc = Runc(box, Path("criu"))
    for words in (
        runc.words("checkpoint", Path("/images"), "--leave-running"),
        runc.words("restore", Path("/images"), "--detach"),
    ):
        assert words.count("--manage-cgroups-mode") == times
        assert words[-1] == "quicferry-edge-1"


@pytest.mark.parametrize(("version", "it_can"), [("runc version 1.4.3", True), ("crun version 1.28", False)])
def test_there_is_a_base_image_where_memory_can_be_left_out_of_a_dump(tmp_path, monkeypatch, version, it_can):
    monkeypatch.setenv(RUNC_VARIABLE, str(program(tmp_path, version, WITH_CRIU)))
    monkeypatch.setattr(services, "is_possible", lambda: True)
    assert can_leave_memory_out() == it_can
    assert services.uses_base_image(RunSpec(engine="runc-cold")) == it_can
    assert services.uses_base_image(RunSpec(engine="criu-cold"))
    monkeypatch.setenv(RUNC_VARIABLE, str(tmp_path / "none"))
    assert not can_leave_memory_out()


def test_a_container_of_ones_own_has_no_base_image(tmp_path, monkeypatch):
    monkeypatch.setenv(RUNC_VARIABLE, str(program(tmp_path, "runc version 1.4.3")))
    monkeypatch.setattr(services, "is_possible", lambda: True)
    for more in ({"image": "/somewhere"}, {"command": "/app/start"}, {"base_image": False}):
        assert not services.uses_base_image(RunSpec(engine="runc-post-copy", **more))
    assert services.uses_base_image(RunSpec(engine="runc-post-copy", disk_mib=3, volumes="data:/data"))


def test_what_a_container_has_written_goes_ahead_with_every_engine_of_runcs():
    entries = [entry for entry in engines().values() if entry.name.startswith("runc-")]
    assert len(entries) == 4
    for entry in entries:
        places = {entry.implementation, entry.on_base_image, entry.by_criu and entry.by_criu.implementation}
        for place in filter(None, places):
            module, _, name = place.partition(":")
            made = getattr(importlib.import_module(module), name)
            assert callable(made.copy_ahead) and callable(made.accept_ahead), place
