"""The journal: what is not exactly what was written does not count, and what cannot be written is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from quicferry.migration import journal as journal_module
from quicferry.migration.journal import Journal, JournalEntry, sealed, unsealed
from quicferry.migration.states import Step

STEPS = (Step.PREPARING, Step.READY, Step.CHECKPOINT, Step.TRANSFER)


def written(path: Path) -> Journal:
    journal = Journal(path)
    for step in STEPS:
        journal.note(1, "source", step)
    return journal


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    before = written(tmp_path / "j")
    after = Journal(tmp_path / "j")
    assert after.latest == before.latest
    assert (after.epoch, after.is_damaged, after.step_in(1, "source")) == (1, False, Step.TRANSFER)
    assert after.step_in(1, "destination") is Step.IDLE


def test_every_cut_and_every_changed_bit_of_the_last_line_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for length in range(last + 1, len(content) - 1):
        path.write_bytes(content[:length])
        journal = Journal(path)
        assert (journal.step_in(1, "source"), journal.is_damaged) == (Step.CHECKPOINT, True), length
    for place in range(last, len(content) - 1):
        for bit in range(8):
            changed = content[place] ^ (1 << bit)
            path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
            if changed in b"\n\r\x0b\x0c\x1c\x1d\x1e\x85":
                continue  # becomes two lines, neither of which counts
            assert Journal(path).step_in(1, "source") is Step.CHECKPOINT, (place, bit)
            assert Journal(path).is_damaged


def test_a_line_after_a_half_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    os.truncate(path, path.stat().st_size - 20)
    journal = Journal(path)
    assert journal.is_damaged
    journal.note(1, "source", Step.ABORT)
    again = Journal(path)
    assert (again.step_in(1, "source"), again.is_damaged) == (Step.ABORT, False)


def test_a_write_that_was_cut_short_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ShortWrites:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, descriptor: int, data: bytes) -> int:
            return os.write(descriptor, data[: len(data) // 2])

    path = tmp_path / "j"
    journal = written(path)
    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "os", ShortWrites())
        with pytest.raises(OSError, match="bytes could be written"):
            journal.note(1, "source", Step.RESTORE)
    assert Journal(path).step_in(1, "source") is Step.TRANSFER
    journal.note(1, "source", Step.ABORT)
    assert Journal(path).step_in(1, "source") is Step.ABORT


def test_a_line_cannot_pass_for_another() -> None:
    entry = JournalEntry(t_ns=1, epoch=1, part="source", step=Step.MOVED)
    line = sealed(entry)
    assert unsealed(line.rstrip()) == entry
    for other in (b"", b"{}", line.rstrip()[:-1], line.replace(b"moved", b"moves").rstrip(), b" " + line):
        assert unsealed(other) is None
