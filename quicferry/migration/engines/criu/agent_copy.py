"""Engines ``criu-pre-copy``, ``criu-post-copy``, ``criu-hybrid``: the memory does not cross in the downtime.

=============  =======================================  ==========================================
engine         before the freeze                        after the resume
=============  =======================================  ==========================================
pre-copy       all memory, then what changed, in rounds  nothing
post-copy      nothing                                  all memory, as it is touched and besides
hybrid         as pre-copy                              what changed since the last round
=============  =======================================  ==========================================

In the downtime cross the things that are no memory (sockets, files, registers), a list of all pages,
the few pages that cannot be restored lazily, and for pre-copy the pages that changed since the last
round. For that, CRIU dumps the process *without* its memory, which stays in the stopped process and is
read there; at the same time it is compared with what the last round sent. See docs/adr/0008.

At the destination each round is a native incremental image of CRIU, and the last one's parent.

The source's side is in ``agent_copy_source``, the destination's in ``agent_copy_destination``, with rounds in
``agent_copy_rounds``; what a round
is, and when there are enough of them, is in ``rounds``.
"""

from __future__ import annotations

from typing import Any

from quicferry.migration.engines.criu.agent_copy_destination import CopyDestination, CopyDestinationOnBase
from quicferry.migration.engines.criu.agent_copy_rounds import CopyDestinationInRounds
from quicferry.migration.engines.criu.agent_copy_source import CopySource, CopySourceAhead, CopySourceOnBase
from quicferry.migration.order import MoveOrder


class CriuCopyEngine(CopySource, CopyDestination):
    """Both sides of the three engines: a server that was moved here may be moved on."""

    holds_criu = True

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also have CRIU wait for the dump."""
        await super().prepare_source(order)
        await self._hold_dump(memory=False)

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also have CRIU wait for a restore to which memory may come later, where that can be."""
        await super().prepare_destination(order)
        await self._hold_restore(lazy=self._can_restore_lazily)

    async def _forget(self) -> None:
        """Drop what is left of the last move, at both sides."""
        await self._forget_source()
        await self._forget_destination()

    async def give_up_source(self, order: MoveOrder) -> None:
        """Kill the stopped process, then forget its memory."""
        await super().give_up_source(order)
        await self._forget()

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """Continue the stopped process, then forget what was read of its memory."""
        answer = await super().resume_source(order, reason)
        await self._forget()
        return answer


class _Ahead(CopyDestinationInRounds, CopySourceAhead, CriuCopyEngine):
    """Both sides of an engine with rounds before the freeze."""


class CriuPreCopyEngine(_Ahead):
    """Pre-copy: all memory before the freeze; what changed since then in the downtime."""

    name = "criu-pre-copy"
    method = "read by the agent and compared with the last round"


class CriuPostCopyEngine(CriuCopyEngine):
    """Post-copy: all memory after the resume."""

    name = "criu-post-copy"
    lazily = True
    method = "left in the stopped process and served by the agent"


class CriuHybridEngine(_Ahead):
    """Hybrid: all memory before the freeze; what changed since then after the resume."""

    name = "criu-hybrid"
    lazily = True
    method = "read and compared by the agent, the changed pages served from the stopped process"


class _OnBase(CopySourceOnBase, CopyDestinationOnBase, CriuCopyEngine):
    """Both sides of an engine that has a base image for its first round."""


class CriuColdOnBaseEngine(_OnBase):
    """Cold with a base image: all memory that is not in that image crosses in the downtime."""

    name = "criu-cold"
    method = "read by the agent and compared with the base image"


class CriuPostCopyOnBaseEngine(_OnBase):
    """Post-copy with a base image: most of what differs goes ahead, the rest follows after the resume."""

    name = "criu-post-copy"
    lazily = True
    method = "compared with the base image, the rest left in the stopped process and served by the agent"
