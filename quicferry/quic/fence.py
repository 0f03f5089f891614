"""The fence: this host's memory that connections are frozen, which outlives its process.

A host that gives its connections away writes "frozen, epoch N" to disk *before the first byte of them
leaves*. If its process dies and another starts, the record tells that nothing may be sent with those
keys. Only a proven abort of the same epoch takes the fence away. An unreadable record counts as a
fence: to be silent costs a connection, to send twice with one nonce costs its secrecy.

This is the one module of the protocol core that touches a file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from quicferry.errors import UNDECODABLE, FencedError, MigrationError


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is on disk: the last epoch, and whether this host may send again."""

    version: Literal[1] = 1
    epoch: int
    state: Literal["frozen", "given", "open"]


class Fence:
    """The fence of one service on one host, kept in the file ``path``.

    Making the object reads what an earlier process left there; a missing file means that nothing was
    ever frozen here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drafted: Record | None = None  # lies beside it on disk, to be put in its place
        self._damage: str | None = None
        self._record = self._read()

    @property
    def frozen_epoch(self) -> int | None:
        """The epoch of the move for which this host must not send, or None when it may.

        An unreadable record has no epoch: see :attr:`closed`.
        """
        if self._record is not None and self._record.state != "open":
            return self._record.epoch
        return None

    @property
    def closed(self) -> bool:
        """Whether this host must not send."""
        return self._damage is not None or self.frozen_epoch is not None

    def check(self) -> None:
        """Do nothing when this host may send; raises ``FencedError`` when it must not."""
        if self._damage is not None:
            raise FencedError(
                f"the fence in {self._path} cannot be read ({self._damage}): nothing may be sent",
                hint="end the old connections at their clients, then remove the file",
            )
        if self.frozen_epoch is not None:
            raise FencedError(
                f"this host gave its connections away in move {self.frozen_epoch}",
                hint="only a proven abort of that move lets it send again",
            )

    def draft(self, epoch: int, *, taking_over: bool) -> None:
        """Write ahead what ``close`` of that move, or ``take_over``, will put in place of the record.

        Nothing is changed by it; the two are done sooner then, and do as well without it. Raises ``OSError``.
        """
        record = Record(epoch=epoch, state="open" if taking_over else "frozen")
        if self._drafted != record:
            self._write_draft(record)

    def close(self, epoch: int) -> None:
        """Persist "frozen, epoch N"; when this returns, the record is on disk.

        To close it again for the same epoch does nothing. Raises ``MigrationError`` for an epoch that
        is not newer than the last one, and ``OSError`` when the record cannot be written: then
        nothing may leave.
        """
        if self._damage is not None:
            self.check()
        if self.frozen_epoch == epoch:
            return
        self._refuse_stale(epoch)
        self._write(Record(epoch=epoch, state="frozen"))

    def take_over(self, epoch: int) -> None:
        """At a destination, before it restores what move ``epoch`` brought: it may send from now on.

        A host that gave its connections away may get them back in a later move. Raises
        ``MigrationError`` for an epoch that is not newer than the last one: what came with it was
        restored before, and its packet numbers are used.
        """
        if self._damage is not None:
            self.check()
        self._refuse_stale(epoch)
        self._write(Record(epoch=epoch, state="open"))

    def give(self, epoch: int) -> None:
        """The move is committed: no abort of it leads back to this host, only a later move does.

        To give twice does nothing. Raises ``MigrationError`` when the host is not frozen for that move.
        """
        if self._damage is not None:
            self.check()
        if self.frozen_epoch != epoch:
            raise MigrationError(f"this host is not frozen for move {epoch}")
        if self._record is not None and self._record.state != "given":
            self._write(Record(epoch=epoch, state="given"))

    def lift(self, epoch: int) -> None:
        """Take the fence away after a proven abort of move ``epoch``.

        Raises ``MigrationError`` when the host is not frozen for that move.
        """
        if self._damage is not None:
            self.check()
        if self.frozen_epoch != epoch:
            raise MigrationError(f"this host is not frozen for move {epoch}")
        if self._record is not None and self._record.state == "given":
            raise MigrationError(
                f"move {epoch} is committed: no way leads back to this host",
                hint="move the server again to bring it back",
            )
        self._write(Record(epoch=epoch, state="open"))

    def _refuse_stale(self, epoch: int) -> None:
        if self._record is not None and epoch <= self._record.epoch:
            raise MigrationError(f"move {epoch} is stale: move {self._record.epoch} was here already")

    def _read(self) -> Record | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except UNDECODABLE as error:
            self._damage = str(error)
            return None

    def _write(self, record: Record) -> None:
        """Atomic and durable: a new file, fsync, rename, fsync of the directory."""
        if self._drafted != record:
            self._write_draft(record)
        self._drafted = None
        self._draft_path.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._record = record

    @property
    def _draft_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.new")

    def _write_draft(self, record: Record) -> None:
        self._drafted = None
        descriptor = os.open(self._draft_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        self._drafted = record
