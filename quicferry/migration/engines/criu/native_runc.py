"""Engines ``runc-…`` with ``memory_by`` "criu": CRIU's own machinery moves the memory, by runc's options.

As ``native_copy``, for a server that runc runs as an OCI container. Rounds are ``runc checkpoint --pre-dump``
and need soft-dirty tracking; post-copy is ``runc checkpoint --lazy-pages --page-server``, ``criu lazy-pages``
and ``runc restore --lazy-pages``.
"""

from __future__ import annotations

from quicferry.errors import Unsupported
from quicferry.migration.criu.command import Criu
from quicferry.migration.criu.memory_runc import MemoryRunc
from quicferry.migration.criu.page_server import pipe_limit
from quicferry.migration.engines.criu.native_copy import (
    CriuNativeEngine,
    NativeHybridEngine,
    NativePostCopyEngine,
    NativePreCopyEngine,
)
from quicferry.migration.engines.criu.runc import FilesAheadEngine, OwnFilesEngine, RuncEngine
from quicferry.migration.order import MoveOrder


class RuncMemoryEngine(RuncEngine, CriuNativeEngine):
    """What is the same for all engines in which runc has CRIU move the memory."""

    dumps_memory = False

    def _tool(self) -> Criu:
        """runc, which runs CRIU."""
        self._runc = MemoryRunc(self._box, keep_tcp=self._context.keep_tcp)
        return self._runc

    def _with_memory(self) -> MemoryRunc:
        """The same, with CRIU's machinery for memory."""
        self._ready()
        assert isinstance(self._runc, MemoryRunc)
        return self._runc

    def _restores_lazily(self) -> bool:
        return self.lazily

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also refuse a container that CRIU's page server cannot have dumped. Raises ``Unsupported``."""
        image = self._box.image
        if self.lazily and image is not None and image.seccomp and pipe_limit():
            # CRIU suspends the container's filters, which a process with a filter of its own may not
            raise Unsupported(
                f"{self.name} by CRIU's own machinery: its page server needs larger pipes than this user may "
                "have, and what is done about that does not go with a container that has a seccomp profile",
                hint="leave out --memory-by criu, or set fs.pipe-max-size=4194304 by sysctl (whole machine)",
            )
        await super().prepare_source(order)


class RuncNativePreCopyEngine(OwnFilesEngine, RuncMemoryEngine, NativePreCopyEngine):
    """The engine ``runc-pre-copy`` by CRIU's own machinery."""

    name = "runc-pre-copy"
    method = "runc's pre-dumps with memory tracking"
    dumps_by_rounds = True


class RuncNativePostCopyEngine(FilesAheadEngine, RuncMemoryEngine, NativePostCopyEngine):
    """The engine ``runc-post-copy`` by CRIU's own machinery."""

    name = "runc-post-copy"
    method = "CRIU's page server, driven by runc, and lazy-pages daemon"


class RuncNativeHybridEngine(OwnFilesEngine, RuncMemoryEngine, NativeHybridEngine):
    """The engine ``runc-hybrid`` by CRIU's own machinery."""

    name = "runc-hybrid"
    method = "runc's pre-dumps with memory tracking, then CRIU's page server and lazy-pages daemon"
    dumps_by_rounds = True
