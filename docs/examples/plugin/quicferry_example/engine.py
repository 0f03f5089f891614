"""``handoff-paused``: a hand-off with a downtime of one's choice, to see what a strategy makes of it.

The real hand-off takes a few milliseconds. Here the destination waits before it takes over, as a slower
technique would, and nothing else changes. ``QUICFERRY_EXAMPLE_PAUSE_MS`` says for how long.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from quicferry.migration.engines.handoff import HandoffEngine
from quicferry.migration.engines.registry import EngineEntry
from quicferry.migration.order import MoveOrder

DEFAULT_PAUSE_MS = 100.0


class PausedHandoffEngine(HandoffEngine):
    """Hand-off with a pause before the destination takes over."""

    name = "handoff-paused"

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        pause_ms = float(os.environ.get("QUICFERRY_EXAMPLE_PAUSE_MS", DEFAULT_PAUSE_MS))
        await asyncio.sleep(pause_ms / 1e3)
        return await super().restore(order, chunks)


ENTRY = EngineEntry(
    name=PausedHandoffEngine.name,
    title="A hand-off that waits before the destination takes over, as a slower technique would.",
    implementation="quicferry_example.engine:PausedHandoffEngine",
)
