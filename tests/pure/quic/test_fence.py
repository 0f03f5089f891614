"""The fence survives its process, and in doubt it is closed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from quicferry.errors import FencedError, MigrationError
from quicferry.quic.fence import Fence


def test_a_host_that_froze_nothing_may_send(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "fence")
    fence.check()
    assert not fence.closed
    assert fence.frozen_epoch is None
    assert not (tmp_path / "fence").exists()


def test_a_later_process_learns_for_which_epoch_it_must_not_send(tmp_path: Path) -> None:
    Fence(tmp_path / "fence").close(7)
    later = Fence(tmp_path / "fence")
    assert later.closed
    assert later.frozen_epoch == 7
    with pytest.raises(FencedError, match="move 7"):
        later.check()


def test_the_record_is_on_disk_before_close_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and directory are synchronized, in this order, around an atomic rename."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"fsync {kind}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    Fence(tmp_path / "fence").close(1)
    assert steps == ["fsync file", "rename", "fsync directory"]
    assert stat.S_IMODE((tmp_path / "fence").stat().st_mode) == 0o600


def test_a_proven_abort_opens_it_for_that_epoch_only(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "fence")
    fence.close(3)
    with pytest.raises(MigrationError):
        fence.lift(2)
    assert fence.closed
    fence.lift(3)
    fence.check()
    again = Fence(tmp_path / "fence")
    again.check()
    with pytest.raises(MigrationError, match="not frozen"):
        again.lift(3)


def test_epochs_only_grow(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "fence")
    fence.close(3)
    fence.close(3)  # the order was repeated
    fence.lift(3)
    for stale in (3, 2):
        with pytest.raises(MigrationError, match="stale"):
            fence.close(stale)
    fence.close(4)
    assert Fence(tmp_path / "fence").frozen_epoch == 4


def test_a_host_that_gets_its_connections_back_may_send_and_give_them_away_again(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "fence")
    fence.close(1)
    fence.take_over(2)
    fence.check()
    Fence(tmp_path / "fence").check()
    fence.close(3)
    assert fence.frozen_epoch == 3


def test_nothing_is_taken_over_twice(tmp_path: Path) -> None:
    """The same snapshot restored again would begin at the same packet number."""
    Fence(tmp_path / "fence").take_over(5)
    later = Fence(tmp_path / "fence")
    for stale in (5, 4):
        with pytest.raises(MigrationError, match="stale"):
            later.take_over(stale)
    with pytest.raises(MigrationError, match="not frozen"):
        later.lift(5)


@pytest.mark.parametrize("content", [b"", b"{", b'{"epoch": 3}', b'{"version":2,"epoch":1,"state":"open"}'])
def test_a_record_that_cannot_be_read_counts_as_a_fence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fence").write_bytes(content)
    fence = Fence(tmp_path / "fence")
    assert fence.closed
    for call in (
        fence.check,
        lambda: fence.close(9),
        lambda: fence.lift(1),
        lambda: fence.take_over(9),
    ):
        with pytest.raises(FencedError):
            call()


def test_a_crash_between_draft_and_rename_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = Fence(tmp_path / "fence")
    fence.close(1)

    def crash(*_: object) -> None:
        raise OSError("power is gone")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="power"):
        fence.lift(1)
    assert fence.closed
    assert Fence(tmp_path / "fence").frozen_epoch == 1


def test_after_the_commit_no_way_leads_back(tmp_path):
    path = tmp_path / "fence"
    fence = Fence(path)
    fence.close(3)
    fence.give(3)
    fence.give(3)
    for one in (fence, Fence(path)):  # the process may have been started again
        assert one.closed and one.frozen_epoch == 3
        with pytest.raises(MigrationError, match="committed"):
            one.lift(3)
        with pytest.raises(FencedError):
            one.check()
    fence.take_over(4)  # a later move brings it back
    assert not fence.closed


def test_only_the_move_that_froze_it_can_be_given(tmp_path):
    fence = Fence(tmp_path / "fence")
    with pytest.raises(MigrationError):
        fence.give(1)
    fence.close(2)
    with pytest.raises(MigrationError):
        fence.give(1)
    fence.lift(2)
    assert not fence.closed


def test_a_draft_changes_nothing_until_it_is_put_in_place(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "fence")
    fence.draft(2, taking_over=False)
    assert not fence.closed
    assert not Fence(tmp_path / "fence").closed
    fence.close(2)
    assert Fence(tmp_path / "fence").frozen_epoch == 2


def test_a_draft_of_another_move_is_not_put_in_place(tmp_path: Path) -> None:
    fence = Fence(tmp_path / "fence")
    fence.draft(2, taking_over=True)
    fence.close(3)
    assert Fence(tmp_path / "fence").frozen_epoch == 3
    fence.draft(4, taking_over=False)
    fence.lift(3)
    assert not Fence(tmp_path / "fence").closed
    fence.close(4)
    assert Fence(tmp_path / "fence").frozen_epoch == 4
    with pytest.raises(MigrationError, match="stale"):
        fence.take_over(4)


def test_a_draft_is_on_disk_before_it_is_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(kind)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    fence = Fence(tmp_path / "fence")
    fence.draft(1, taking_over=True)
    assert steps == ["file"]
    fence.take_over(1)
    assert steps == ["file", "directory"]
