"""CRIU as runc drives it: the same steps as ``command.Criu``, for the server in an OCI container.

runc talks to CRIU itself (``criu swrk``) and finds it on its PATH. What it has no option for is in a
configuration file that an annotation of the bundle names (``criu_config``).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.container import oci_bundle, oci_container
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.container.oci_image import users_have_userfaultfd
from quicferry.migration.criu.command import CLOSE_PAGE_SERVER, LAZY_FEATURE, Criu, explain, log_text
from quicferry.migration.criu.held_runc import HeldRunc
from quicferry.migration.criu.stats import DumpStats, RestoreStats, read_dump_stats, read_restore_stats

#: What runc insists on where pages are to come later; see ``Runc.dump_without_memory``.
WITHOUT_MEMORY = ("--lazy-pages", "--page-server", "127.0.0.1:7009")
#: What runc notes of the stdio it was started with.
DESCRIPTORS = "descriptors.json"
NO_DESCRIPTORS = '["/dev/null","/dev/null","/dev/null"]'


def criu_config(*, keep_tcp: bool) -> str:
    """CRIU's options that runc has no option for (criu(8), configuration files), for dump and restore.

    Without ``network-lock skip`` a rule that drops all packets stays in the edge host's network, as
    the container is left there until the move is decided. ``skip-in-flight`` is explained at
    ``command.SKIP_QUEUED_TCP``.
    """
    return "network-lock skip\nfile-validation filesize\nskip-in-flight\n" + (
        "" if keep_tcp else "tcp-close\n"
    )


def on_top_of(parent: str | None) -> list[str]:
    """Arguments for a dump on top of the images ``parent``, or of none."""
    return ["--parent-path", parent] if parent is not None else []


class Runc(Criu):
    """runc and CRIU in one container. ``images`` are directories inside the container."""

    def __init__(
        self, container: OciContainer, program: Path | None = None, *, keep_tcp: bool = False
    ) -> None:
        super().__init__(container, program, keep_tcp=keep_tcp)
        self._box = container
        self._keep_tcp = keep_tcp
        self._dumper: HeldRunc | None = None
        self._restorer: HeldRunc | None = None
        self._page_server: socket.socket | None = None  # our end of what CRIU takes for one
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

    def words(self, step: str, images: Path, *more: str) -> list[str]:
        """Arguments of a runc command that has CRIU at work."""
        tcp = ["--tcp-established"] if self._keep_tcp else []
        where = ["--image-path", str(images), "--work-path", str(images)]
        groups = oci_container.CRUN_GROUPS if self._box.by_crun else ()
        return [step, *where, *tcp, *groups, *more, self._box.name]

    async def has(self, feature: str) -> bool:
        """As ``Criu.has``; without userfaultfd where the container's user namespace may not have it."""
        image = self._box.image
        if feature == LAZY_FEATURE and image is not None and image.uid and not users_have_userfaultfd():
            return False
        return await super().has(feature)

    # before the downtime

    async def ready_to_dump(self, images: Path, *, memory: bool) -> None:
        """Have runc and CRIU ready for ``dump``, or without ``memory`` for ``dump_without_memory``.

        Raises ``MigrationError`` when they do not get ready.
        """
        await self.close()
        words = self.words("checkpoint", images, "--leave-running")
        if memory:
            self._dumper = HeldRunc(self._box, self.program, "dump", words)
        else:
            ours, theirs = socket.socketpair()
            self._page_server = ours
            with theirs:
                self._configure(f"ps-socket {theirs.fileno()}")
                words = self.words("checkpoint", images, "--leave-running", *WITHOUT_MEMORY)
                self._dumper = HeldRunc(self._box, self.program, "dump", words, [theirs.fileno()])
                await self._dumper.begin()
            return
        await self._dumper.begin()

    async def ready_to_restore(self, images: Path, *, lazy: bool) -> None:
        """Have runc and CRIU ready for ``restore`` with that ``lazy``. Raises ``MigrationError``."""
        await self.close()
        # it is read before CRIU is called; the one that comes says the same of a server with its stdio inside
        (self._outside(images) / DESCRIPTORS).write_text(NO_DESCRIPTORS)
        words = self._restore_words(images, lazy=lazy)
        self._restorer = HeldRunc(self._box, self.program, "restore", words)
        await self._restorer.begin()

    async def close(self) -> None:
        """End what is ready and was not needed."""
        held, self._dumper, self._restorer = (self._dumper, self._restorer), None, None
        for runc in held:
            if runc is not None:
                await runc.close()
        if self._page_server is not None:
            self._page_server.close()
            self._page_server = None

    # in it

    async def dump(self, pid: int, images: Path, *, timeout_s: float) -> DumpStats:
        """Write the images of the server, which goes on afterwards as it was before.

        Raises ``MigrationError``; then, too, it goes on.
        """
        words = self.words("checkpoint", images, "--leave-running")
        await self._run("checkpoint", images, words, timeout_s, self._dumper)
        return read_dump_stats((self._outside(images) / "stats-dump").read_bytes())

    async def dump_without_memory(
        self, pid: int, images: Path, *, timeout_s: float, written: Callable[[], None] | None = None
    ) -> None:
        """As ``Criu.dump_without_memory``; ``written`` is not called. The server goes on as it was before.

        runc has an option for the address of a page server, and none for a socket: CRIU takes that from its
        configuration, then, and does not use the address. It inherits the socket by way of runc.
        """
        if self._dumper is None or self._page_server is None or not self._dumper.waits:
            await self.ready_to_dump(images, memory=False)
        assert self._dumper is not None and self._page_server is not None
        try:
            self._page_server.sendall(CLOSE_PAGE_SERVER)
            await self._run("checkpoint", images, self._dumper.words, timeout_s, self._dumper)
        finally:
            await self.close()
            self._configure()

    async def dump_and_end(self, images: Path, parent: str | None, *, timeout_s: float) -> DumpStats:
        """Write the images of the server and end its container, as ``runc checkpoint`` does by itself.

        ``parent``: images of a pre-dump that these build upon, relative to ``images``. Raises
        ``MigrationError``; then the server goes on.
        """
        words = self.words("checkpoint", images, *on_top_of(parent))
        self._outside(images).mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._run("checkpoint", images, words, timeout_s)
        return read_dump_stats((self._outside(images) / "stats-dump").read_bytes())

    async def pre_dump(self, pid: int, images: Path, previous: str | None, *, timeout_s: float) -> DumpStats:
        """Write the memory of the running server that was written since the images ``previous``.

        That name is relative to ``images``; None: all memory. Raises ``MigrationError``; the server goes
        on in either case.
        """
        self._outside(images).mkdir(mode=0o700, parents=True, exist_ok=True)
        words = self.words("checkpoint", images, "--pre-dump", *on_top_of(previous))
        await self._run("checkpoint", images, words, timeout_s)
        return read_dump_stats((self._outside(images) / "stats-dump").read_bytes())

    def _restore_words(self, images: Path, *, lazy: bool) -> list[str]:
        bundle = ["--bundle", str(oci_bundle.BUNDLE), "--pid-file", str(oci_bundle.PID_FILE)]
        return self.words("restore", images, "--detach", *(["--lazy-pages"] if lazy else []), *bundle)

    async def restore(self, images: Path, *, timeout_s: float, lazy: bool = False) -> RestoreStats:
        """Make a running container of the images. Raises ``MigrationError``; then none is left.

        Its process has the PID ``container.pid_made()``.
        """
        words = self._restore_words(images, lazy=lazy)
        ready = self._restorer
        if ready is None or ready.words != words or not ready.waits:
            await self.close()
            await self._box.forget()
            ready = None
        self.leave_behind(images)
        try:
            await self._run("restore", images, words, timeout_s, ready)
        except MigrationError:
            await self._box.remove()
            raise
        return read_restore_stats((self._outside(images) / "stats-restore").read_bytes())

    async def _run(
        self, step: str, images: Path, words: list[str], timeout_s: float, held: HeldRunc | None = None
    ) -> None:
        """Have runc with CRIU do its work, the one that is ready if there is one.

        Raises ``MigrationError`` with what CRIU says of a failure.
        """
        if held is not None and held.waits and held.words == words:
            done = await held.go(timeout_s)
        else:
            done = await self._box.run_tool(*words, timeout_s=timeout_s, path=self._path)
        if done.status != 0:
            log = "dump.log" if step == "checkpoint" else "restore.log"
            raise explain(step, done, log_text(self._outside(images) / log), "runc")

    def _outside(self, images: Path) -> Path:
        return self._box.path(str(images))
