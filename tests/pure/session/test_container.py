"""What is asked of a container is checked before anything starts."""

import pytest

from quicferry.errors import InvalidInput
from session.request import to_spec


def asked(**values):
    return to_spec({"engine": "runc-cold", **values})


def test_an_image_is_known_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "image" / "app").mkdir(parents=True)
    (tmp_path / "image" / "app" / "start").write_text("")
    monkeypatch.chdir(tmp_path)
    spec = asked(image="image", command="/app/start {server}")
    assert spec.image == str(tmp_path / "image")
    assert asked(image="image", command="sh -c true").command == "sh -c true", "the machine's, which it lacks"


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
def test_what_cannot_be_is_refused_with_a_hint(tmp_path, values, words):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "x").write_text("")
    with pytest.raises(InvalidInput, match=words) as caught:
        asked(**{"image": str(tmp_path), **values})
    assert caught.value.hint


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
