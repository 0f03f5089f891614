"""Engine ``runc-cold``: as ``criu-cold``, for a server that runc runs as an OCI container.

What differs: runc dumps and restores; the process is stopped by a signal before the dump, so that it
stands still in both places until the destination gives it the word; and it has a PID namespace of its
own, so that its PID among the others of a host matters to nobody. The rest is the base's, and so
are the guarantees.
"""

from __future__ import annotations

import contextlib
import signal

from quicferry.errors import MigrationError
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.criu.command import Criu
from quicferry.migration.criu.image_stream import CheckpointManifest
from quicferry.migration.criu.runc import Runc
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.engines.criu.base import Held
from quicferry.migration.engines.criu.cold import CriuColdEngine
from quicferry.migration.order import MoveOrder


class RuncColdEngine(CriuColdEngine):
    """The engine ``runc-cold``: as ``criu-cold``, with runc for CRIU."""

    name = "runc-cold"
    method = "dumped by runc with CRIU"
    dumps_stopped = True

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        if not isinstance(context.container, OciContainer):
            raise MigrationError("runc-cold needs a server that runs as an OCI container")
        self._box = context.container

    def _tool(self) -> Criu:
        """runc, which runs CRIU."""
        return Runc(self._box, keep_tcp=self._context.keep_tcp)

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also let runc forget a container that was here before."""
        await super().prepare_destination(order)
        await self._box.forget()

    async def _restore_dead(self, held: Held, order: MoveOrder) -> None:
        """Restore the container from its own images; the server has a new PID then."""
        await super()._restore_dead(held, order)
        pid = self._box.pid_made()
        self._box.adopt(pid)
        await self._box.signal(pid, signal.SIGCONT)

    def _check_room(self, manifest: CheckpointManifest) -> None:
        """Raise ``MigrationError`` when a server runs here. PIDs do not matter: it has its own namespace."""
        if self._box.service_pid is not None:
            raise MigrationError(f"a server already runs on {self._context.edge}")

    def _pid_of(self, manifest: CheckpointManifest) -> int:
        """The PID that runc noted of what it restored."""
        return self._box.pid_made()

    async def _unmake(self) -> None:
        """Remove the container that was restored here."""
        if self._made is not None:
            with contextlib.suppress(MigrationError):  # the container itself may be gone
                await self._box.remove()
            self._made = None
