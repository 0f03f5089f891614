"""CRIU as runc drives it: the same steps as ``command.Criu``, for the server in an OCI container.

runc talks to CRIU itself (``criu swrk``) and finds it on its PATH. What it has no option for is in a
configuration file that an annotation of the bundle names (``criu_config``).
"""

from __future__ import annotations

import os
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.container import oci_bundle
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.criu.command import Criu, explain, log_text
from quicferry.migration.criu.stats import DumpStats, RestoreStats, read_dump_stats, read_restore_stats


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
        self._box.inside(oci_bundle.CRIU_CONFIG).write_text(criu_config(keep_tcp=self._keep_tcp))

    def _words(self, step: str, images: Path, *more: str) -> list[str]:
        """Arguments of a runc command that has CRIU at work."""
        tcp = ["--tcp-established"] if self._keep_tcp else []
        where = ["--image-path", str(images), "--work-path", str(oci_bundle.WORK)]
        return [step, *where, *tcp, *more, self._box.name]

    async def dump(self, pid: int, images: Path, *, timeout_s: float) -> DumpStats:
        """Write the images of the server, which goes on afterwards as it was before.

        Raises ``MigrationError``; then, too, it goes on.
        """
        words = self._words("checkpoint", images, "--leave-running")
        done = await self._box.run_runc(*words, timeout_s=timeout_s, path=self._path)
        if done.status != 0:
            raise explain(
                "checkpoint", done, log_text(self._box.inside(oci_bundle.WORK) / "dump.log"), "runc"
            )
        return read_dump_stats((self._box.inside(oci_bundle.WORK) / "stats-dump").read_bytes())

    async def dump_without_memory(self, pid: int, images: Path, *, timeout_s: float) -> None:
        """Refuse with ``MigrationError``: runc cannot dump without serving the memory itself."""
        raise MigrationError("runc dumps a server with all its memory or not at all")

    async def restore(self, images: Path, *, timeout_s: float, lazy: bool = False) -> RestoreStats:
        """Make a running container of the images. Raises ``MigrationError``; then none is left.

        Its process has the PID ``container.pid_made()``.
        """
        if lazy:
            raise MigrationError("runc restores a server with all its memory or not at all")
        await self._box.forget()
        self.leave_behind(images)
        bundle = ["--bundle", str(oci_bundle.BUNDLE), "--pid-file", str(oci_bundle.PID_FILE)]
        words = self._words("restore", images, "--detach", *bundle)
        done = await self._box.run_runc(*words, timeout_s=timeout_s, path=self._path)
        if done.status != 0:
            await self._box.remove()
            raise explain(
                "restore", done, log_text(self._box.inside(oci_bundle.WORK) / "restore.log"), "runc"
            )
        return read_restore_stats((self._box.inside(oci_bundle.WORK) / "stats-restore").read_bytes())
