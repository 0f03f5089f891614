"""What an image is, how the layers of one lie over each other, and what is refused."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

import pytest
import zstandard

from quicferry.errors import InvalidInput
from quicferry.migration.container import volumes
from quicferry.migration.container.oci_bundle import RootFiles, lacking, spec
from quicferry.migration.container.oci_image import ARCHITECTURES, read_image

HERE = ARCHITECTURES.get(platform.machine(), platform.machine())
SECCOMP = {"defaultAction": "SCMP_ACT_ERRNO"}


def archive(files: dict[str, str | None], packed: str = "") -> bytes:
    """A layer: contents by name, None for a directory; a link for contents that begin with ``->``."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz" if packed == "gzip" else "w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            if text is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            elif text.startswith("->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, text[2:]
            else:
                entry.size = len(text)
            tar.addfile(entry, io.BytesIO((text or "").encode()))
    data = made.getvalue()
    return zstandard.ZstdCompressor().compress(data) if packed == "zstd" else data


def layout(directory: Path, layers: list[bytes], **config: object) -> Path:
    """An OCI layout with these layers."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    described = {"architecture": HERE, "os": "linux", **config}
    manifest = {"config": blob(json.dumps(described).encode()), "layers": [blob(layer) for layer in layers]}
    index = {"manifests": [blob(json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def test_layers_lie_over_each_other_and_whiteouts_remove(tmp_path):
    first = {"a": None, "a/old": "1", "a/kept": "2", "b": None, "b/x": "3", "file": "4", "link": "->file"}
    second = {"a/.wh.old": "", "b/.wh..wh..opq": "", "b/y": "5", "file": "6"}
    made = layout(
        tmp_path / "image",
        [archive(first, "gzip"), archive(second, "zstd")],
        config={"Entrypoint": ["/app"], "Cmd": ["x"], "Env": ["A=1", "odd"], "WorkingDir": "/a"},
    )
    image = read_image(made, tmp_path / "cache")
    root = Path(image.root)
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    assert found == {"a/kept", "b/y", "file", "link"}
    assert (root / "file").read_text() == "6"
    assert (image.argv, image.env, image.cwd) == (["/app", "x"], {"A": "1"}, "/a")
    assert read_image(made, tmp_path / "cache").root == image.root, "unpacked once"


def test_a_bundle_says_how_it_wants_to_be_run(tmp_path):
    (tmp_path / "rootfs").mkdir()
    config = {
        "process": {
            "args": ["/x"], "env": ["A=1"], "cwd": "/", "capabilities": {"bounding": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 64, "soft": 64}],
        },
        "root": {"path": "rootfs", "readonly": True},
        "linux": {"seccomp": SECCOMP, "maskedPaths": ["/proc/kcore"]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    image = read_image(tmp_path)
    made = spec(["x"], {"A": "2", "B": "3"}, hostname="edge-1", log="/run/log", binds=[], image=image)
    assert made.root.readonly
    assert made.process.env == ["A=1", "B=3"], "what the image says goes before what the agent has"
    assert made.process.capabilities == {"bounding": ["CAP_KILL"]}
    assert made.process.rlimits == config["process"]["rlimits"]
    assert made.linux.seccomp == SECCOMP
    assert made.linux.maskedPaths == ["/proc/kcore"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "riscv128"}, "is for linux/riscv128"),
        ({"os": "plan9"}, "is for plan9"),
        ({"config": {"User": "70000"}}, "user 70000"),
        ({"config": {"User": "nobody-here"}}, "user nobody-here"),
        ({"config": {"User": "1000:no-group"}}, "user 1000 of group no-group"),
    ],
)
def test_an_image_that_cannot_run_here_is_refused_with_the_reason(tmp_path, config, words):
    made = layout(tmp_path / "image", [archive({"x": "1"})], **config)
    with pytest.raises(InvalidInput, match=words) as caught:
        read_image(made, tmp_path / "cache")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", (0, 0)), ("root", (0, 0)), ("1000", (1000, 0)), ("1000:1001", (1000, 1001)), ("web", (33, 34)),
        ("web:staff", (33, 50)), ("33", (33, 34)),
    ],
)  # fmt: skip
def test_the_user_of_an_image_is_found_by_number_or_name(tmp_path, user, ids):
    tables = {"etc/passwd": "web:x:33:34:Web:/:/bin/sh\nodd\n", "etc/group": "staff:x:50:web\n"}
    made = layout(tmp_path / "image", [archive(tables)], config={"User": user})
    image = read_image(made, tmp_path / "cache")
    assert (image.uid, image.gid) == ids
    described = spec(["x"], {}, hostname="edge-1", log="/run/log", binds=[], image=image)
    assert (described.process.user.uid, described.process.user.gid) == (ids if ids[0] else (0, 0))
    assert ("user" in {each.type for each in described.linux.namespaces}) == bool(ids[0])


def test_a_damaged_blob_and_what_is_no_image_are_refused(tmp_path):
    made = layout(tmp_path / "image", [archive({"x": "1"})])
    for blob in (made / "blobs/sha256").iterdir():
        blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(InvalidInput, match="damaged"):
        read_image(made, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="empty"):
        read_image(tmp_path / "empty")
    with pytest.raises(InvalidInput, match="no directory"):
        read_image(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"cannot be unpacked|damaged"):
        read_image(layout(tmp_path / "other", [b"no tar"]), tmp_path / "cache")
    assert not any((tmp_path / "cache").iterdir()), "no half image is left"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        ('{"process": {"capabilities": 7}}', r"capabilities"),
        ('{"process": {"args": "/x"}}', r"args"),
        ('{"process": {"user": {"uid": "web"}}}', r"uid"),
        ('{"linux": []}', r"linux"),
        ('{"root": {"path": "elsewhere"}}', "elsewhere is no directory"),
    ],
)
def test_a_bundle_that_is_not_one_is_refused_with_the_place(tmp_path, config, words):
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InvalidInput, match=words) as caught:
        read_image(tmp_path)
    assert caught.value.hint


def test_a_bundle_is_known_by_its_config_wherever_its_root_is(tmp_path):
    (tmp_path / "files").mkdir()
    config = tmp_path / "config.json"
    config.write_text('{"ociVersion": "1.0.2", "root": {"path": "files", "readonly": true}, "linux": {}}')
    assert (read_image(tmp_path).root, read_image(tmp_path).readonly) == (str(tmp_path / "files"), True)
    config.write_text('{"ociVersion": "1.0.2"}')
    with pytest.raises(InvalidInput, match="has no root file system"):
        read_image(tmp_path)
    for own in ('{"color": "blue"}', "[1, 2]"):
        config.write_text(own)
        assert read_image(tmp_path).root == str(tmp_path), "a file of some program in a root directory"


@pytest.mark.parametrize(
    "index",
    [
        {"manifests": None}, {"manifests": [{}]}, {"manifests": ["x"]}, {"layers": 3}, {"layers": []},
        {"manifests": [{"digest": 5}]},
    ],
)  # fmt: skip
def test_a_layout_that_is_not_one_is_refused(tmp_path, index):
    made = layout(tmp_path / "image", [archive({"x": "1"})])
    (made / "index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match="is not understood") as caught:
        read_image(made, tmp_path / "cache")
    assert caught.value.hint


@pytest.mark.parametrize("config", [[], "x", {"Env": "A=1"}, {"Cmd": "/x"}])
def test_an_image_config_that_is_not_one_is_refused(tmp_path, config):
    made = layout(tmp_path / "image", [archive({"x": "1"})], config=config)
    with pytest.raises(InvalidInput, match="is not understood"):
        read_image(made, tmp_path / "cache")


def test_a_layer_cannot_write_or_remove_outside(tmp_path):
    (tmp_path / "precious").write_text("kept")
    for name in ("../../../precious", "../../../.wh.precious"):
        made = layout(tmp_path / hashlib.sha256(name.encode()).hexdigest()[:8], [archive({name: "x"})])
        with pytest.raises(InvalidInput):
            read_image(made, tmp_path / "cache")
    assert (tmp_path / "precious").read_text() == "kept"


def test_what_an_image_lacks_of_the_system_comes_from_the_machine(tmp_path):
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    files = RootFiles({"/bin": "usr/bin", "/lib": "usr/lib"}, ["/etc", "/usr", "/srv/checkout"])
    (tmp_path / "bin").symlink_to("usr/bin")
    assert lacking(tmp_path, files) == RootFiles({"/lib": "usr/lib"}, ["/etc", "/srv/checkout"])


def test_volumes_are_read_as_they_are_asked_for(tmp_path):
    one, two = volumes.parse(f"data:/srv/data,{tmp_path}:/mnt:ro")
    assert (one.source, one.target, one.moves) == ("data", "/srv/data", True)
    assert (two.source, two.target, two.moves) == (str(tmp_path), "/mnt", False)
    assert volumes.parse(None) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data", "not understood"), ("data:relative", "not understood"), ("a:/x:rw", "cannot be had"),
        ("/:/mnt", "cannot be had"), ("/nowhere/at/all:/mnt:ro", "does not exist at the destination"),
        ("a:/run/x", "the container's own"), ("a:/", "the container's own"), ("a:/x,b:/x", "twice"),
        ("a:/x,a:/y", "twice"), ("a:/../etc", "not understood"),
    ],
)  # fmt: skip
def test_a_volume_that_cannot_be_is_refused(text, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        volumes.parse(text)
    assert caught.value.hint
