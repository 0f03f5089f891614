"""What Podman is told of a container, what it is given for runc, and what it prints."""

import asyncio
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from quicferry.errors import InvalidInput, MigrationError, Unsupported
from quicferry.migration.container.oci_image import ImageSettings, read_image, write_layout
from quicferry.migration.container.podman_container import (
    LOGS,
    RUNTIME_SCRIPT,
    PodmanContainer,
    find_podman,
    run_words,
)
from quicferry.migration.container.processes import Completed
from quicferry.migration.container.volumes import Volume
from quicferry.migration.criu.command import explain
from quicferry.migration.criu.podman import ARCHIVE, PREVIOUS, Podman, statistics_in
from quicferry.migration.engines.registry import get
from quicferry.spec import RunSpec
from session.request import needs, parts_of


def values_of(option: str, words: list[str]) -> list[str]:
    """What stands behind each occurrence of an option."""
    return [value for word, value in pairwise(words) if word == option]


def test_a_plain_server_has_the_machines_files_and_podmans_defaults():
    words = run_words({"A": "1"}, binds=["/usr"])
    assert values_of("--mount", words) == [
        "type=bind,source=/run/box,target=/run,readonly=false,bind-nonrecursive=true",
        "type=bind,source=/usr,target=/usr,readonly=true,bind-nonrecursive=true",
    ]
    assert values_of("--env", words) == ["A=1"]
    assert values_of("--network", words) == ["host"], "that of the edge host, in which Podman runs"
    assert not {"--cap-drop", "--security-opt", "--ulimit", "--user", "--read-only"} & set(words)


def test_what_a_bundle_says_goes_to_podman_in_its_words():
    image = ImageSettings(
        root="/image",
        env={"A": "2"},
        cwd="/srv",
        uid=1000,
        gid=1001,
        readonly=True,
        capabilities={"bounding": ["CAP_CHOWN"], "effective": []},
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048}],
        seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
        masked_paths=["/proc/kcore", "/proc/keys"],
    )
    volumes = [Volume(source="data", target="/srv/data"), Volume(source="/etc/ssl", target="/ssl")]
    words = run_words({"A": "1", "B": "1"}, binds=[], image=image, volumes=volumes)
    assert values_of("--env", words) == ["A=2", "B=1"], "the image's own value counts"
    assert values_of("--user", words) == ["1000:1001"]
    assert values_of("--uidmap", words) == values_of("--gidmap", words) == ["0:0:65536"]
    assert values_of("--workdir", words) == ["/srv"]
    assert "--read-only" in words and "--read-only-tmpfs=false" in words
    assert values_of("--cap-drop", words) == ["all"] and values_of("--cap-add", words) == ["CAP_CHOWN"]
    assert values_of("--ulimit", words) == ["nofile=1024:2048"]
    assert values_of("--security-opt", words) == [
        "seccomp=/run/podman/settings/seccomp.json",
        "mask=/proc/kcore:/proc/keys",
    ]
    assert values_of("--mount", words)[1:3] == [
        "type=volume,source=data,target=/srv/data",
        "type=bind,source=/etc/ssl,target=/ssl,readonly=true,bind-nonrecursive=true",
    ]


@pytest.mark.parametrize("path", ["/a,b", '/a"b', "/a\nb"])
def test_a_path_that_podmans_options_cannot_have_is_refused(path):
    with pytest.raises(InvalidInput, match="podman cannot be given") as caught:
        run_words({}, binds=[path])
    assert "runc-cold" in (caught.value.hint or "")


def test_the_same_files_give_the_same_image_and_it_can_be_read(tmp_path):
    digests = []
    for name in ("one", "two"):
        layer = tmp_path / name / "layer.tar"
        layer.parent.mkdir()
        layer.write_bytes(b"\0" * 10240)  # an empty archive
        digests.append(write_layout(layer.parent, layer))
    assert digests[0] == digests[1]
    assert (tmp_path / "one" / "blobs" / "sha256" / digests[0]).is_file()
    assert Path(read_image(tmp_path / "one", tmp_path / "cache").root).is_dir(), "its digests fit"


@pytest.fixture
def runtime(tmp_path):
    """What Podman takes for runc, over one that says how it was called and ends with status 3."""
    (tmp_path / "logs").mkdir()
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    script = tmp_path / "runtime"
    script.write_text(RUNTIME_SCRIPT.format(runc=runc, logs=tmp_path / "logs", more=""))
    for program in (runc, script):
        program.chmod(0o755)
    return script


def called(script: Path, *words: str) -> str:
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 3, "as runc ended"
    return done.stdout.strip()


def test_a_restore_goes_without_the_time_namespace_and_what_criu_said_is_kept(tmp_path, runtime):
    images, work = tmp_path / "images", tmp_path / "work"
    for directory, name in ((images, "timens-0.img"), (images, "core-1.img"), (work, "restore.log")):
        directory.mkdir(exist_ok=True)
        (directory / name).write_text("words")
    words = ["--log", "f", "restore", "--image-path", str(images), "--work-path", str(work), "id"]
    assert called(runtime, *words) == " ".join(words)
    assert [path.name for path in images.iterdir()] == ["core-1.img"]
    assert (tmp_path / "logs" / "restore.log").read_text() == "words"


def test_a_dump_keeps_all_images_and_other_commands_are_runcs(tmp_path, runtime):
    images = tmp_path / "images"
    images.mkdir()
    (images / "timens-0.img").touch()
    words = ["checkpoint", "--image-path", str(images), "--work-path", str(images), "id"]
    assert called(runtime, *words) == " ".join(words)
    assert (images / "timens-0.img").exists()
    assert called(runtime, "state", "id") == "state id"


def test_what_podman_prints_is_read_and_what_it_does_not_print_is_nothing():
    printed = '{"container_statistics": [{"criu_statistics": {"pages_written": 7}}]}'
    assert statistics_in(printed) == {"pages_written": 7}
    assert statistics_in("") == statistics_in('{"container_statistics": []}') == statistics_in("[]") == {}


class Box(PodmanContainer):
    """A container whose Podman answers with what is put into ``done``, and whose CRIU says ``said``."""

    def __init__(self, root: Path) -> None:
        self.edge, self._init_pid, self.root, self.asked = "edge-1", 0, root, []
        self.done, self.said = Completed([], 0, "", ""), ""
        for directory in (LOGS, Path("/images")):
            self.path(str(directory)).mkdir(parents=True)

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    async def run_tool(self, *words, **_):
        self.asked.append(list(words))
        for log in ("dump.log", "restore.log"):
            (self.path(str(LOGS)) / log).write_text(self.said)
        return self.done

    async def forget(self) -> None:
        self.asked.append(["forget"])

    async def remove(self) -> None:
        self.asked.append(["remove"])


IMAGES = Path("/images")


def test_a_pre_checkpoint_goes_before_and_is_given_to_the_restore(tmp_path):
    box = Box(tmp_path)
    podman = Podman(box, Path("/bin/criu"), keep_tcp=True)
    asyncio.run(podman.pre_dump(7, IMAGES, None, timeout_s=1.0))
    (box.path("/images") / PREVIOUS).touch()
    asyncio.run(podman.restore(IMAGES, timeout_s=1.0))
    assert box.asked[0] == [
        *("container", "checkpoint", "--print-stats", "--export", "/images/previous.tar"),
        *("--compress", "none", "--tcp-established", "--pre-checkpoint", "quicferry"),
    ]
    assert box.asked[1:] == [
        ["forget"],
        [
            *("container", "restore", "--print-stats", "--import", "/images/checkpoint.tar"),
            *("--tcp-established", "--import-previous", "/images/previous.tar"),
        ],
    ]


def test_a_restore_that_fails_is_told_by_criu_and_leaves_neither_archive_nor_container(tmp_path):
    box = Box(tmp_path)
    box.done = Completed([], 125, "", "Error: OCI runtime error\n")
    box.said = "(00.01) Error (sk-inet.c:1035): inet: Can't bind inet socket: Address already in use\n"
    for name in (ARCHIVE, PREVIOUS):
        (box.path("/images") / name).touch()
    with pytest.raises(MigrationError, match="podman restore failed with status 125: inet: Can't bind"):
        asyncio.run(Podman(box, Path("/bin/criu")).restore(IMAGES, timeout_s=1.0))
    assert list(box.path("/images").iterdir()) == []
    assert box.asked[-1] == ["remove"]


def test_what_is_not_ready_is_started_in_the_downtime_and_leaves_the_source(tmp_path):
    box = Box(tmp_path)
    podman = Podman(box, Path("/bin/criu"))
    asyncio.run(podman.dump(7, IMAGES, timeout_s=1.0))
    asyncio.run(podman.pre_dump(7, IMAGES, None, timeout_s=1.0))
    asyncio.run(podman.dump(7, IMAGES, timeout_s=1.0))
    plain, _, on_top = (words[words.index("none") + 1 :] for words in box.asked)
    assert plain == ["--leave-running", "quicferry"]
    assert on_top == ["--leave-running", "--with-previous", "quicferry"]
    with pytest.raises(MigrationError, match="without its memory"):
        asyncio.run(podman.ready_to_dump(IMAGES, memory=False))


def test_without_podman_it_says_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("quicferry.process.SYSTEM_DIRECTORIES", ())
    with pytest.raises(Unsupported, match="there is no podman") as caught:
        find_podman()
    assert "provision/podman.sh" in (caught.value.hint or "")


def test_pre_copy_needs_what_a_pre_checkpoint_needs_and_is_asked_for_that_first():
    spec = RunSpec(engine="podman-pre-copy")
    assert needs(spec, parts_of(spec))[:3] == ["root", "oci-pre-dump", "podman"]
    assert get("podman-pre-copy").copies_ahead and not get("podman-cold").is_long


def test_a_full_disk_is_told_as_one():
    done = Completed(["podman"], 125, "", "Error: write /run/x: no space left on device\n")
    assert "there is no room" in (explain("restore", done, "", "podman").hint or "")
