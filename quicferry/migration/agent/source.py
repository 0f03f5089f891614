"""The source's side of moves: begins them, one at a time, and finishes what an earlier agent left."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TypeVar

from quicferry.errors import MigrationError
from quicferry.migration.agent.context import Host
from quicferry.migration.agent.source_move import SourceMove
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.messages import (
    Committed,
    Outcome,
    Received,
    Resumed,
)
from quicferry.migration.states import ENDS, SOURCE, MoveMachine

ASK_S = 1.0  # one question to a destination that may be cut off
ASK_AGAIN_S = 0.1
FENCE_MARGIN_S = 0.05  # after the fence, for the destination's last steps

M = TypeVar("M", Received, Resumed, Committed)


class SourceSide:
    """The source's part of the agent: moves the server away, one move at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.machine = MoveMachine(SOURCE, f"source {host.edge}")
        self.order: MoveOrder | None = None
        self._task: asyncio.Task[Outcome] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def move(self, order: MoveOrder) -> Outcome:
        """Move the server; returns how it ended, also when it did not move.

        The same epoch again: waits for the same move. Raises ``MigrationError`` for an order that
        cannot be begun: another move is in progress, or the epoch is not new.
        """
        if self.order is not None and self.order.epoch == order.epoch and self._task is not None:
            # the caller may go away; the move goes on
            return await asyncio.shield(self._task)
        if order.source != self._host.edge:
            raise MigrationError(f"{self._host.edge} is asked to move a server away from {order.source}")
        if order.epoch <= self._host.journal.epoch and self._host.journal.knows(order.epoch, "source"):
            raise MigrationError(
                f"epoch {order.epoch} is over; the latest is {self._host.journal.epoch}",
                hint="number the moves of a service upwards from 1",
            )
        if not self.machine.is_over:
            raise MigrationError(f"a move is in progress: step {self.machine.step}")
        move = SourceMove(self._host, self.machine, order)
        self.order = order
        self._task = asyncio.get_running_loop().create_task(move.run())
        return await asyncio.shield(self._task)

    async def recover(self) -> Outcome | None:
        """Finish the move in which this agent was killed; None when there was none.

        What has become of the server is asked of those who know: before End the server can only be
        here, after it the destination is asked for as long as it takes. Clocks decide nothing: the
        destination takes a closed port for the word that nobody here will serve unasked.
        """
        journal = self._host.journal
        entry = journal.latest
        if entry is None or entry.part != "source":
            return None
        self.machine.step = entry.step
        if self.machine.is_over or entry.order is None:
            return None
        self.order = entry.order
        move = SourceMove(self._host, self.machine, entry.order)
        self._task = asyncio.get_running_loop().create_task(move.go_on())
        return await asyncio.shield(self._task)

    def check_over(self) -> None:
        """Raise ``MigrationError`` while a move away from here is not over.

        Its end takes away what is left of the server here, and one that came back meanwhile would go with it.
        """
        entry = self._host.journal.latest
        recovering = entry is not None and entry.part == "source" and entry.step not in ENDS
        if recovering or not self.machine.is_over:
            raise MigrationError(
                f"{self._host.edge} has not finished the move away from it yet: step {self.machine.step}",
                hint="order the move again when it has",
            )

    async def close(self) -> None:
        """Cancel a move in progress; called when the agent ends."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
