"""CRIU as Podman drives it, by way of runc: a container becomes one archive, and one archive a container.

``podman container checkpoint --export`` and ``podman container restore --import``
(podman-container-checkpoint(1), podman-container-restore(1)). The archive has CRIU's images, the container's
settings, what it has written, and its volumes. As runc, Podman is started before the downtime and waits with
CRIU at a ``gate``; where it does not get there in time, it is started in the downtime.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.migration.container.podman_container import LOGS, PodmanContainer
from quicferry.migration.criu.command import explain, log_text
from quicferry.migration.criu.held_runc import HeldRunc
from quicferry.migration.criu.runc import Runc
from quicferry.migration.criu.stats import DumpStats, RestoreStats

#: The archive of a container in its directory of images, and that of a pre-checkpoint.
ARCHIVE, PREVIOUS = "checkpoint.tar", "previous.tar"


class Podman(Runc):
    """Podman, runc and CRIU in one container. ``images`` are directories with archives, inside it."""

    def __init__(
        self, container: PodmanContainer, program: Path | None = None, *, keep_tcp: bool = False
    ) -> None:
        super().__init__(container, program, keep_tcp=keep_tcp)
        self._on_top = False  # of a pre-checkpoint that was made before

    def _export_words(self, archive: Path, *more: str) -> list[str]:
        return [
            *("container", "checkpoint", "--print-stats", "--export", str(archive), "--compress", "none"),
            *(["--tcp-established"] if self._keep_tcp else []),
            *(*more, self._box.name),
        ]

    def _dump_words(self, images: Path) -> list[str]:
        more = ["--with-previous"] if self._on_top else []
        return self._export_words(images / ARCHIVE, "--leave-running", *more)

    async def ready_to_dump(self, images: Path, *, memory: bool = True) -> None:
        """Have Podman ready for ``dump``, on top of a pre-checkpoint if one was made before.

        Raises ``MigrationError`` when it does not get ready, and without ``memory``: Podman dumps that, too.
        """
        if not memory:
            raise MigrationError("podman dumps no container without its memory")
        await self.close()
        self._dumper = HeldRunc(self._box, self.program, "dump", self._dump_words(images))
        await self._dumper.begin()

    async def ready_to_restore(self, images: Path, *, lazy: bool) -> None:
        """Nothing: Podman begins by reading the archive."""

    async def dump(self, pid: int, images: Path, *, timeout_s: float) -> DumpStats:
        """Write the archive of the server, which goes on afterwards as it was before.

        Raises ``MigrationError``; then, too, it goes on.
        """
        held = self._dumper if self._dumper is not None and self._dumper.waits else None
        return _dump_stats(
            statistics_in(await self._ask("checkpoint", self._dump_words(images), timeout_s, held))
        )

    async def pre_dump(self, pid: int, images: Path, previous: str | None, *, timeout_s: float) -> DumpStats:
        """Write the memory of the running server to an archive. The server goes on.

        Raises ``MigrationError``.
        """
        words = self._export_words(images / PREVIOUS, "--pre-checkpoint")
        stats = _dump_stats(statistics_in(await self._ask("checkpoint", words, timeout_s)))
        self._on_top = True
        return stats

    async def restore(self, images: Path, *, timeout_s: float, lazy: bool = False) -> RestoreStats:
        """Make a running container of the archive. Raises ``MigrationError``; then none is left.

        Its process has the PID ``container.pid_made()``.
        """
        await self._box.forget()
        words = [
            *("container", "restore", "--print-stats", "--import", str(images / ARCHIVE)),
            *(["--tcp-established"] if self._keep_tcp else []),
        ]
        if (self._outside(images) / PREVIOUS).exists():
            words += ["--import-previous", str(images / PREVIOUS)]
        try:
            told = statistics_in(await self._ask("restore", words, timeout_s))
        except MigrationError:
            # where it has filled the disk, Podman could not even remove what it has begun
            for name in (ARCHIVE, PREVIOUS):
                (self._outside(images) / name).unlink(missing_ok=True)
            with contextlib.suppress(MigrationError):  # the reason is what is to be told
                await self._box.remove()
            raise
        return RestoreStats(
            forking_time_us=told.get("forking_time", 0),
            restore_time_us=told.get("restore_time", 0),
            pages_restored=told.get("pages_restored", 0),
        )

    async def _ask(self, step: str, words: list[str], timeout_s: float, held: HeldRunc | None = None) -> str:
        """Have Podman do its work; what it printed. Raises ``MigrationError`` with what CRIU said."""
        log = self._box.inside(LOGS) / ("dump.log" if step == "checkpoint" else "restore.log")
        log.unlink(missing_ok=True)
        if held is not None:
            done = await held.go(timeout_s)
        else:
            done = await self._box.run_tool(*words, timeout_s=timeout_s, path=self._path)
        if done.status != 0:
            raise explain(step, done, log_text(log), "podman")
        return done.stdout


def statistics_in(printed: str) -> dict[str, Any]:
    """CRIU's statistics in what ``--print-stats`` has printed; empty where Podman has none."""
    try:
        told = msgspec.json.decode(printed, type=dict[str, Any])
        return dict(told["container_statistics"][0]["criu_statistics"])
    except (*UNDECODABLE, KeyError, IndexError, TypeError, ValueError):
        return {}


def _dump_stats(told: dict[str, Any]) -> DumpStats:
    return DumpStats(
        freezing_time_us=told.get("freezing_time", 0),
        frozen_time_us=told.get("frozen_time", 0),
        memdump_time_us=told.get("memdump_time", 0),
        memwrite_time_us=told.get("memwrite_time", 0),
        pages_scanned=told.get("pages_scanned", 0),
        pages_written=told.get("pages_written", 0),
    )
