"""CRIU as runc drives it: the same steps as ``command.Criu``, for the server in an OCI container.

runc talks to CRIU itself (``criu swrk``) and finds it on its PATH. What it has no option for is in a
configuration file that an annotation of the bundle names (``criu_config``).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.container import oci_bundle
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.criu.command import CLOSE_PAGE_SERVER, Criu, explain, log_text
from quicferry.migration.criu.stats import DumpStats, RestoreStats, read_dump_stats, read_restore_stats

#: What runc insists on where pages are to come later; see ``Runc.dump_without_memory``.
UNUSED_ADDRESS = "127.0.0.1:7009"


def criu_config(*, keep_tcp: bool) -> str:
    """CRIU's options that runc has no option for (criu(8), configuration files), for dump and restore.

    Without ``network-lock skip`` a rule that drops all packets stays in the edge host's network, as
    the container is left there until the move is decided. ``skip-in-flight`` is explained at
    ``command.SKIP_QUEUED_TCP``.
    """
    return "network-lock skip\nfile-validation filesize\nskip-in-flight\n" + (
        "" if keep_tcp else "tcp-close\n"
    )


class Runc(Criu):
    """runc and CRIU in one container. ``images`` are directories inside the container."""

    def __init__(
        self, container: OciContainer, program: Path | None = None, *, keep_tcp: bool = False
    ) -> None:
        super().__init__(container, program, keep_tcp=keep_tcp)
        self._box = container
        self._keep_tcp = keep_tcp
        self._path = os.pathsep.join((str(self.program.parent), os.environ.get("PATH", "/usr/bin:/bin")))

    async def warm_up(self, images: Path) -> None:
        """As ``Criu.warm_up``; also write the configuration that CRIU will read."""
        await super().warm_up(images)
        self._configure()

    def _configure(self, *more: str) -> None:
        """Write the configuration that CRIU will read, with further options."""
        lines = "".join(f"{line}\n" for line in more)
        config = criu_config(keep_tcp=self._keep_tcp) + lines
        self._box.inside(oci_bundle.CRIU_CONFIG).write_text(config)

    def _words(self, step: str, images: Path, *more: str) -> list[str]:
        """Arguments of a runc command that has CRIU at work."""
        tcp = ["--tcp-established"] if self._keep_tcp else []
        where = ["--image-path", str(images), "--work-path", str(images)]
        return [step, *where, *tcp, *more, self._box.name]

    async def dump(self, pid: int, images: Path, *, timeout_s: float) -> DumpStats:
        """Write the images of the server, which goes on afterwards as it was before.

        Raises ``MigrationError``; then, too, it goes on.
        """
        words = self._words("checkpoint", images, "--leave-running")
        await self._run("checkpoint", images, words, timeout_s)
        return read_dump_stats((self._outside(images) / "stats-dump").read_bytes())

    async def dump_without_memory(self, pid: int, images: Path, *, timeout_s: float) -> None:
        """As ``Criu.dump_without_memory``. The server goes on afterwards as it was before.

        runc has an option for the address of a page server, and none for a socket: CRIU takes that from its
        configuration, then, and does not use the address. It inherits the socket by way of runc.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(CLOSE_PAGE_SERVER)
            self._configure(f"ps-socket {theirs.fileno()}")
            try:
                lazily = ["--lazy-pages", "--page-server", UNUSED_ADDRESS]
                words = self._words("checkpoint", images, "--leave-running", *lazily)
                await self._run("checkpoint", images, words, timeout_s, [theirs.fileno()])
            finally:
                self._configure()

    async def restore(self, images: Path, *, timeout_s: float, lazy: bool = False) -> RestoreStats:
        """Make a running container of the images. Raises ``MigrationError``; then none is left.

        Its process has the PID ``container.pid_made()``.
        """
        await self._box.forget()
        self.leave_behind(images)
        bundle = ["--bundle", str(oci_bundle.BUNDLE), "--pid-file", str(oci_bundle.PID_FILE)]
        words = self._words("restore", images, "--detach", *(["--lazy-pages"] if lazy else []), *bundle)
        try:
            await self._run("restore", images, words, timeout_s)
        except MigrationError:
            await self._box.remove()
            raise
        return read_restore_stats((self._outside(images) / "stats-restore").read_bytes())

    async def _run(
        self, step: str, images: Path, words: list[str], timeout_s: float, descriptors: Sequence[int] = ()
    ) -> None:
        """Run runc with CRIU. Raises ``MigrationError`` with what CRIU says of a failure."""
        done = await self._box.run_runc(*words, timeout_s=timeout_s, path=self._path, descriptors=descriptors)
        if done.status != 0:
            log = "dump.log" if step == "checkpoint" else "restore.log"
            raise explain(step, done, log_text(self._outside(images) / log), "runc")

    def _outside(self, images: Path) -> Path:
        return self._box.path(str(images))
