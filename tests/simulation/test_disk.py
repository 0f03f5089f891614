"""Faults of disks: the code that writes sees what it would see of a real one."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from quicferry.migration import journal as journal_module
from quicferry.migration.journal import Journal
from quicferry.migration.states import Step
from quicferry.quic import fence as fence_module
from quicferry.quic.fence import Fence
from simulation.clock import VirtualLoop
from simulation.disk import Disk, FaultyOs
from simulation.process import Process


def on(disk: Disk, work: Callable[[], None]) -> None:
    """Runs code as a process of that disk's host."""
    loop = VirtualLoop()
    process = Process(loop, "writer", "host")
    files = FaultyOs({"host": disk})
    with mock.patch.object(journal_module, "os", files), mock.patch.object(fence_module, "os", files):
        contextvars.Context.run(process.context, work)
    loop.close()


def test_a_full_disk_raises(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    def work() -> None:
        journal = Journal(tmp_path / "journal")
        journal.note(1, "source", Step.PREPARING)
        disk.full = True
        with pytest.raises(OSError, match="No space left"):
            journal.note(1, "source", Step.READY)
        with pytest.raises(OSError, match="No space left"):
            Fence(tmp_path / "fence").close(1)

    on(disk, work)
    assert len((tmp_path / "journal").read_bytes().splitlines()) == 1


def test_a_short_write_leaves_half_a_line(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.short_writes = 1
    with pytest.raises(OSError, match="bytes could be written"):
        on(disk, lambda: Journal(tmp_path / "journal").note(1, "source", Step.PREPARING))
    content = (tmp_path / "journal").read_bytes()
    assert content and not content.endswith(b"\n")


def test_a_torn_line_is_the_last_one_only(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    def work() -> None:
        journal = Journal(tmp_path / "journal")
        journal.note(1, "source", Step.PREPARING)
        journal.note(1, "source", Step.READY)

    on(disk, work)
    before = (tmp_path / "journal").read_bytes().splitlines()
    assert disk.tear(tmp_path / "journal")
    after = (tmp_path / "journal").read_bytes().splitlines()
    assert after[0] == before[0]
    assert before[1].startswith(after[1]) and len(after[1]) < len(before[1])
    assert not disk.tear(tmp_path / "missing")


def test_a_loss_of_power_keeps_what_was_synced(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    def work() -> None:
        Journal(tmp_path / "journal").note(1, "source", Step.PREPARING)
        descriptor = journal_module.os.open(tmp_path / "kept", os.O_WRONLY | os.O_CREAT, 0o600)
        journal_module.os.write(descriptor, b"synced")
        journal_module.os.fsync(descriptor)
        journal_module.os.write(descriptor, b" and not")
        journal_module.os.close(descriptor)

    on(disk, work)
    disk.lose_power()
    assert (tmp_path / "kept").read_bytes() == b"synced"
    assert (tmp_path / "journal").read_bytes() == b""  # the journal does not sync; it says so
    disk.lose_power(sync_lost=True)
    assert (tmp_path / "kept").read_bytes() == b""
