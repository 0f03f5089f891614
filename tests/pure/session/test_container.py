"""What is asked of a container is checked before anything starts."""

import shutil
import sys
from pathlib import Path

import pytest

from quicferry.errors import InvalidInput
from session.container import elf_machine, resolved
from session.request import to_spec
from tests.pure.migration.test_oci_image import archive, layout


def asked(**values):
    return to_spec({"engine": "runc-cold", **values})


def test_an_image_is_known_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "image" / "app").mkdir(parents=True)
    (tmp_path / "image" / "app" / "start").write_text("")
    (tmp_path / "image" / "app" / "start").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    spec = asked(image="image", command="/app/start {server}")
    assert spec.image == str(tmp_path / "image")
    assert asked(image="image", command="sh -c true").command == "sh -c true", "the machine's, which it lacks"


@pytest.mark.parametrize("engine", ["runc-cold", "podman-cold", "podman-pre-copy"])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"command": "/app/missing"}, "has no program '/app/missing'"),
        ({"command": "no-such-program"}, "has no program"),
        ({"command": "'"}, "not understood"),
        ({"command": " "}, "empty"),
        ({"volumes": "/nowhere/at/all:/x:ro"}, "does not exist at the destination"),
        ({"engine": "criu-cold"}, "moves none"),
        ({"image": "nowhere"}, "no directory"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(tmp_path, engine, values, words):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "x").write_text("")
    with pytest.raises(InvalidInput, match=words) as caught:
        asked(**{"engine": engine, "image": str(tmp_path), **values})
    assert caught.value.hint


@pytest.mark.parametrize("engine", ["runc-cold", "podman-cold"])
def test_an_image_for_another_architecture_is_refused(tmp_path, engine):
    made = layout(tmp_path / "image", [archive({"app/start": ""})], architecture="mips")
    with pytest.raises(InvalidInput, match="is for linux/mips") as caught:
        to_spec({"engine": engine, "image": str(made)})
    assert "--override-arch" in caught.value.hint


def elf(machine):
    return b"\x7fELF\x02\x01" + bytes(12) + machine.to_bytes(2, "little") + bytes(44)


def program(path, content=b"#!/bin/sh\n", mode=0o755):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


@pytest.mark.parametrize("engine", ["runc-post-copy", "podman-cold"])
def test_a_program_that_cannot_be_executed_here_is_refused(tmp_path, engine):
    program(tmp_path / "app/start", mode=0o644)
    with pytest.raises(InvalidInput, match=r"'/app/start' of the image .* is not executable") as caught:
        to_spec({"engine": engine, "image": str(tmp_path), "command": "/app/start"})
    assert "chmod" in caught.value.hint
    ours = elf_machine(Path(sys.executable))
    assert ours is not None
    program(tmp_path / "app/start", elf(ours + 1))
    with pytest.raises(InvalidInput, match="is built for another machine"):
        to_spec({"engine": engine, "image": str(tmp_path), "command": "/app/start"})
    program(tmp_path / "app/start", elf(ours))
    assert to_spec({"engine": engine, "image": str(tmp_path), "command": "/app/start"}).command


def test_an_image_needs_a_shell_of_its_own_or_the_machines(tmp_path):
    program(tmp_path / "usr/bin/busybox")
    (tmp_path / "bin").symlink_to("usr/bin")
    with pytest.raises(InvalidInput, match="has no /bin/sh, with which every container") as caught:
        asked(image=str(tmp_path))
    assert "distroless" in caught.value.hint
    (tmp_path / "usr/bin/sh").symlink_to("/bin/busybox")  # absolute, as Alpine's are: within the image
    assert asked(image=str(tmp_path)).image
    program(tmp_path / "usr/bin/busybox", elf(elf_machine(Path(sys.executable)) + 1))
    with pytest.raises(InvalidInput, match=r"'/bin/sh' of the image .* is built for another machine"):
        asked(image=str(tmp_path))
    shutil.rmtree(tmp_path / "usr")
    assert asked(image=str(tmp_path)).image, "/usr comes from the machine, and the link leads there"


@pytest.mark.parametrize(
    ("links", "path", "found"),
    [
        ({}, "/app/run", ("/app/run", False)),
        ({"bin": "usr/bin"}, "/bin/sh", ("/usr/bin/sh", False)),
        ({"bin": "/usr/bin"}, "/bin/sh", ("/usr/bin/sh", False)),
        ({"usr/bin/sh": "/bin/busybox", "bin": "/usr/bin"}, "/bin/sh", ("/usr/bin/busybox", True)),
        ({"a/b/c": "../../d/e", "d": "a"}, "/a/b/c/f", ("/a/e/f", False)),
        ({"a/b/c": "x"}, "/a/b/c/", ("/a/b/x", True)),
        ({"up": "../../../etc"}, "/up/../up/passwd", ("/etc/passwd", False)),
        ({"one": "two", "two": "one"}, "/one/x", None),
    ],
)
def test_links_are_followed_within_the_image(tmp_path, links, path, found):
    for name, target in links.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    assert resolved(tmp_path, path) == found


def test_a_directory_link_never_leads_to_the_machine(tmp_path):
    """With an absolute link for a directory, the machine's program of that name is not the image's."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("/usr/bin")
    with pytest.raises(InvalidInput, match="has no /bin/sh"):
        asked(image=str(tmp_path))
    (tmp_path / "opt").symlink_to("/data")
    program(tmp_path / "usr/bin/sh")
    with pytest.raises(InvalidInput, match="has no program '/opt/run'"):
        asked(image=str(tmp_path), command="/opt/run")
    assert asked(image=str(tmp_path), command="/opt/run", volumes="data:/data").image, "a volume may have it"
    (tmp_path / "data").symlink_to("opt")
    with pytest.raises(InvalidInput, match="has no program '/opt/run'"):
        asked(image=str(tmp_path), command="/opt/run")


def test_a_volume_that_podman_cannot_be_given_is_refused(tmp_path):
    (tmp_path / 'a"b').mkdir()
    volume = f'{tmp_path}/a"b:/x:ro'
    assert to_spec({"engine": "runc-cold", "volumes": volume}).volumes == volume
    with pytest.raises(InvalidInput, match="podman cannot be given"):
        to_spec({"engine": "podman-cold", "volumes": volume})


def test_memory_cannot_follow_a_user_who_may_have_no_userfaultfd(tmp_path, monkeypatch):
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text('{"process": {"user": {"uid": 1000, "gid": 1000}}}')
    monkeypatch.setattr("session.container.users_have_userfaultfd", lambda: False)
    with pytest.raises(InvalidInput, match="user 1000, and runc-hybrid needs userfaultfd") as caught:
        to_spec({"engine": "runc-hybrid", "image": str(tmp_path)})
    assert "runc-pre-copy" in caught.value.hint
    assert to_spec({"engine": "runc-pre-copy", "image": str(tmp_path)}).image
    monkeypatch.setattr("session.container.users_have_userfaultfd", lambda: True)
    assert to_spec({"engine": "runc-hybrid", "image": str(tmp_path)}).image
