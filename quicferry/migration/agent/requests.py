"""Requests of clients for a move: the server hands them on, and the agent of its host decides.

No orchestrator takes part: the agent that says yes moves its own server, as it does on SIGUSR1. What binds
the two agents (epochs, journals, leases) is the same whoever has asked: docs/adr/0015-who-asks-for-a-move.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.migration.agent.config import AgentConfig

ACCEPTED, BUSY, NOWHERE = "accepted", "busy", "nowhere"


class RequestDesk:
    """Answers the server's ``ClientRequest``. ``begin`` starts the move; ``is_busy``: one goes on already."""

    def __init__(self, config: AgentConfig, is_busy: Callable[[], bool], begin: Callable[[], None]) -> None:
        self._config = config
        self._is_busy = is_busy
        self._begin = begin
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> None:
        """Listen on the loopback address of this host. Raises ``MigrationError``."""
        where = self._config.requests
        try:
            self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: control.ControlServer(self._decide), local_addr=(where.host, where.port)
            )
        except OSError as error:
            raise MigrationError(
                f"the agent of {self._config.edge} cannot listen for requests at {where}: {error.strerror}",
                hint="the port must be free",
            ) from error

    async def _decide(self, order: control.Order) -> dict[str, Any]:
        if not isinstance(order, control.ClientRequest):
            raise MigrationError("an agent takes no orders here")
        move = self._config.on_request
        if order.edge != self._config.edge:
            raise MigrationError(f"the request was made at {order.edge}, not at {self._config.edge}")
        if move is None or move.destination not in self._config.peers:
            return {"reply": NOWHERE}
        if self._is_busy():
            return {"reply": BUSY}
        self._begin()
        return {"reply": ACCEPTED}

    def close(self) -> None:
        """Close the socket."""
        if self._transport is not None:
            self._transport.close()
