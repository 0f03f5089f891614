"""The destination of an engine whose server gets memory after its restore, whoever brings that memory.

From the restore until the last page is in place a task of this agent is at work (``_finishing``). A server
that lacks memory must never go on as if it had it: when the memory cannot come, the server is ended, and
when the task is cancelled, the server must have been ended before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from quicferry.errors import Unsupported
from quicferry.migration.criu.command import LAZY_FEATURE
from quicferry.migration.criu.image_stream import CheckpointManifest
from quicferry.migration.engines.criu.base import CriuEngine
from quicferry.migration.order import MoveOrder


class LazyDestination(CriuEngine):
    """Brings memory in the background after the restore, and ends a server that cannot get it."""

    lazily = False  # memory that is missing comes after the restore; False: not by design

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._can_restore_lazily = False
        self._finishing: asyncio.Task[None] | None = None

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also find out whether memory can come after the restore. Post-copy and hybrid must have that."""
        await super().prepare_destination(order)
        self._can_restore_lazily = await self._ready().has(LAZY_FEATURE)
        if self.lazily and not self._can_restore_lazily:
            raise Unsupported(
                f"{self.name} needs userfaultfd, and CRIU says that this kernel lacks it",
                hint="`quicferry doctor` says more; criu-cold and criu-pre-copy do without",
            )

    def _finish_in_background(self, finishing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the task that brings the memory; whoever moves the server on waits for it."""
        self._finishing = self._container.settling = asyncio.create_task(finishing)
        return self._finishing

    async def _end_incomplete(self) -> None:
        """Kill a server of whose memory a part is lost: it must not run on without it."""
        if self._made is not None:
            await self._kill_made()

    async def _brought_up(self, order: MoveOrder, manifest: CheckpointManifest) -> None:
        """Remove the images when the last page is in place."""
        if self._finishing is None:
            await super()._brought_up(order, manifest)
            return
        # the images hold pages that are still to be put in place
        self._finishing.add_done_callback(lambda _: self._clear_images())

    async def _unmake(self) -> None:
        """Kill the restored process, then drop what brought its memory."""
        # the server first: without the task that serves its faults, the kernel would show it zeros
        await super()._unmake()
        await self._forget_destination()

    async def _forget_destination(self) -> None:
        """Drop what is left of the last move to here; a server that lacks memory is dead by then."""
        if self._finishing is not None:
            self._finishing.cancel()
            await asyncio.wait([self._finishing])
            self._finishing = None
