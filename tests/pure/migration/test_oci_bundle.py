"""The bundle that runc is given, and what is said where runc cannot be had."""

import sys
from pathlib import Path, PurePosixPath

import msgspec
import pytest

from quicferry.errors import InvalidInput, MigrationError, Unsupported
from quicferry.migration.container import oci_bundle
from quicferry.migration.container.oci_bundle import NODES, SYSTEM, root_files, spec
from quicferry.migration.container.oci_container import OciContainer, find_runc, last_words
from quicferry.migration.container.processes import Completed
from quicferry.migration.criu.command import CHECKOUT, explain
from quicferry.migration.criu.runc import criu_config
from quicferry.migration.engines.registry import engines as known_engines
from quicferry.migration.engines.registry import runs_in_oci
from tests.specs import needs_with


def bundle(**changes):
    """``config.json``, decoded again."""
    given = {"argv": ["server", "config.json"], "env": {"WORD": "word"}, "hostname": "edge-1"}
    given |= {"log": "/run/log", "binds": ["/usr", "/srv/project"], **changes}
    return msgspec.json.decode(msgspec.json.encode(spec(given.pop("argv"), given.pop("env"), **given)))


def test_the_server_has_namespaces_of_its_own_in_the_network_of_its_host():
    namespaces = bundle()["linux"]["namespaces"]
    assert [n["type"] for n in namespaces] == ["pid", "mount", "ipc", "uts", "network"]
    assert [n.get("path") for n in namespaces] == [None] * 4 + ["/proc/1/ns/net"]


def test_the_server_can_do_and_write_as_little_as_possible():
    made = bundle()
    assert made["root"] == {"path": "rootfs", "readonly": True}
    assert made["process"]["noNewPrivileges"] is True
    assert made["process"]["capabilities"] == {"bounding": [], "effective": [], "permitted": []}
    options = {mount["destination"]: mount["options"] for mount in made["mounts"]}
    assert [path for path, words in options.items() if "ro" not in words] == ["/proc", "/run"]
    assert "ro" in options["/srv/project"]


def test_the_server_reaches_neither_its_bundle_nor_images():
    sources = {mount["destination"]: mount["source"] for mount in bundle()["mounts"]}
    for runc_reads in (oci_bundle.HOME, oci_bundle.BUNDLE, oci_bundle.STATE, PurePosixPath("/run/state")):
        assert not runc_reads.is_relative_to(sources["/run"])
    box = OciContainer.__new__(OciContainer)
    box.edge = "edge-1"
    assert box.place_of("/run/server.jsonl") == "/run/box/server.jsonl"
    assert box.place_of("/run/box/x") == "/run/box/box/x", "what it calls so is not what the agent calls so"
    assert box.place_of("/etc/hosts") == "/etc/hosts"
    assert box.log_path(0) == "/run/box/service-edge-1.log"


def test_nothing_is_mounted_that_hinders_a_checkpoint():
    assert {mount["type"] for mount in bundle()["mounts"]} == {"proc", "bind"}
    assert "seccomp" not in bundle()["linux"]
    assert "rlimits" not in bundle()["process"]
    assert bundle()["annotations"] == {"org.criu.config": "/run/oci/criu.conf"}


def test_with_a_control_group_only_the_devices_that_are_there_can_be_opened():
    plain, own = bundle()["linux"], bundle(group=PurePosixPath("/server"))["linux"]
    assert "cgroupsPath" not in plain and "resources" not in plain
    assert own["cgroupsPath"] == "/server"
    first, *others = own["resources"]["devices"]
    assert (first["allow"], first["access"], first["type"]) == (False, "rwm", "a"), "all are refused at first"
    assert {(rule["major"], rule["minor"]) for rule in others} == set(NODES.values())
    assert all(rule["allow"] and "m" not in rule["access"] for rule in others)


def test_an_environment_that_is_a_link_is_seen_with_what_it_leads_to(tmp_path, monkeypatch):
    shared, link = tmp_path / "shared", tmp_path / "mine" / ".venv"
    shared.mkdir()
    link.parent.mkdir()
    link.symlink_to(shared)
    monkeypatch.setattr(sys, "prefix", str(link))
    files = root_files([])
    assert files.links[str(link)] == str(shared)
    assert str(shared) in files.binds and str(link) not in files.binds


def test_the_program_gets_its_arguments_environment_and_log_inside():
    process = bundle(argv=["a b", "$c", "'"])["process"]
    assert process["args"][:2] == ["/bin/sh", "-c"]
    assert process["args"][3:] == ["sh", "/run/log", "a b", "$c", "'"], "no shell reads them"
    assert process["env"] == ["WORD=word"]
    assert process["terminal"] is False


def test_the_system_is_seen_as_it_is_and_nothing_twice(tmp_path):
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    system = [str(tmp_path / name) for name in ("bin", "usr", "lib32")]
    files = root_files([tmp_path / "usr" / "bin", tmp_path / "run" / "configs"], system)
    links = {path: target for path, target in files.links.items() if path.startswith(str(tmp_path))}
    assert links == {str(tmp_path / "bin"): "usr/bin"}
    mine = [path for path in files.binds if path.startswith(str(tmp_path))]
    assert mine == [str(tmp_path / "run" / "configs"), str(tmp_path / "usr")]
    always = root_files([]).binds
    for needed in (
        sys.base_prefix,
        sys.prefix,
        CHECKOUT / "quicferry",
        CHECKOUT / "apps",
        CHECKOUT / "baselines",
    ):
        assert any(Path(needed).resolve().is_relative_to(path) for path in always), needed


def test_runs_below_the_checkout_are_not_seen_and_what_is_asked_for_there_is():
    """Keys lie on a file system of their own there, which a bind of the checkout would hide."""
    mine = CHECKOUT / "runs" / "one.partial" / "credentials" / "service"
    binds = root_files([mine]).binds
    assert str(mine) in binds
    assert not any((CHECKOUT / "runs" / "other").is_relative_to(path) for path in binds)


def test_links_of_the_system_are_those_it_has():
    environment = {sys.prefix} if Path(sys.prefix).is_symlink() else set()
    assert set(root_files([]).links) - environment <= set(SYSTEM)


@pytest.mark.parametrize("path", ["/run/configs", "/proc", "/dev/shm", "relative", "/usr/../run/x"])
def test_what_the_container_has_for_itself_cannot_come_from_outside(path):
    with pytest.raises(InvalidInput, match="cannot be given") as caught:
        root_files([path])
    assert "absolute path" in caught.value.hint


def test_criu_is_told_what_runc_has_no_option_for():
    assert criu_config(keep_tcp=False).splitlines() == [
        "network-lock skip", "file-validation filesize", "skip-in-flight", "tcp-close",
    ]  # fmt: skip
    assert "tcp" not in criu_config(keep_tcp=True)


def test_a_missing_runc_is_unsupported_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("quicferry.process.SYSTEM_DIRECTORIES", ())
    with pytest.raises(Unsupported, match="there is no runc") as caught:
        find_runc()
    assert "apt-get install runc" in caught.value.hint


def test_an_engine_that_needs_runc_says_so():
    in_oci = [engine for engine in known_engines() if runs_in_oci(engine)]
    ours = ["runc-cold", "runc-pre-copy", "runc-post-copy", "runc-hybrid"]
    published = ["published-cold", "published-pre-copy", "published-post-copy", "published-hybrid"]
    podmans = ["podman-cold", "podman-pre-copy"]
    assert in_oci == [*ours, *podmans, *published]
    assert all("podman" in needs_with(engine=engine) for engine in podmans)
    assert not any("podman" in needs_with(engine=engine) for engine in [*ours, *published])
    assert all("oci" in needs_with(engine=engine) for engine in in_oci)
    assert "oci" not in needs_with(engine="criu-cold")


def test_a_failure_of_criu_under_runc_is_told_by_its_cause():
    done = Completed(["runc"], 1, "", 'time="…" level=error msg="criu failed: type NOTIFY errno 0"\n')
    log = "(00.01) Error (sk-inet.c:1035): inet: Can't bind inet socket (id 35): Address already in use\n"
    error = explain("restore", done, log, "runc")
    assert str(error) == (
        "runc restore failed with status 1: inet: Can't bind inet socket (id 35): Address already in use"
    )
    assert "another process holds the port" in (error.hint or "")


def test_a_runc_that_insists_on_a_cgroup_is_explained():
    done = Completed(["runc"], 1, "", "cgroup manager can not access cgroup (rootless container)\n")
    error = explain("restore", done, "", "runc")
    assert isinstance(error, MigrationError)
    assert "runc 1.1" in (error.hint or "")


def test_the_last_words_of_a_silent_program_are_its_status():
    assert last_words(Completed(["runc"], 3, "", "")) == "it ended with status 3 and without a message"
    assert last_words(Completed(["runc"], 1, "", "first\nlast\n")) == "last"


def test_a_directory_that_is_a_link_stays_one_to_what_is_bound(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real")
    files = root_files([link], [])
    assert files.links[str(link)] == str(tmp_path / "real")
    assert str(tmp_path / "real") in files.binds and str(link) not in files.binds
