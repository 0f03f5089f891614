"""How one agent calls another: over the link between the edges, and when that fails by a detour.

State crosses the link between the edges. Questions (who serves? commit? abort?) are small, and a
move must not hang on them because one link was cut: after ``HEDGE_S`` without an answer they are
asked by the detour as well, which leads through the core network. Whoever answers first is heard.
One kind of state may take the detour, too: memory without which a server that serves already is lost.
All of these calls are idempotent, so that one which arrives twice does no harm.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from quicferry.migration.rpc.channel import Duplex, DuplexCall, RpcClient, TooLate, Unary, Unreachable
from quicferry.migration.rpc.credentials import Identity
from quicferry.model import Endpoint

Q = TypeVar("Q")
A = TypeVar("A")

HEDGE_S = 0.1  # far above a call between two edges, far below what a client would notice


class PeerClient(RpcClient):
    """A channel to another agent, with a detour for unary calls; streams take the direct way."""

    def __init__(
        self,
        identity: Identity,
        peer: str,
        endpoint: Endpoint,
        detour: Endpoint | None = None,
        detour_rtt_s: float = 0.0,
    ) -> None:
        super().__init__(identity, peer, endpoint)
        self.detour = RpcClient(identity, peer, detour, detour_rtt_s) if detour is not None else None

    @property
    def endpoints(self) -> list[Endpoint]:
        """The address on the link between the edges, and that of the detour."""
        return [self.endpoint] if self.detour is None else [self.endpoint, self.detour.endpoint]

    def connect(self) -> None:
        """Begin to connect both ways: the detour is needed when time matters most."""
        super().connect()
        if self.detour is not None:
            self.detour.connect()

    async def call(self, method: Unary[Q, A], request: Q, *, timeout_s: float, wait: bool = False) -> A:
        """As ``RpcClient.call``, by both ways when the direct one does not answer in time."""
        direct = asyncio.ensure_future(super().call(method, request, timeout_s=timeout_s, wait=wait))
        if self.detour is None:
            return await direct
        calls = [direct]
        try:
            await asyncio.wait([direct], timeout=HEDGE_S)
            if direct.done() and not _is_silence(direct):
                return direct.result()
            left_s = max(timeout_s - HEDGE_S, timeout_s / 2)
            other = self.detour.call(method, request, timeout_s=left_s, wait=wait)
            calls.append(asyncio.ensure_future(other))
            waiting = set(calls)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for call in done:
                    if not _is_silence(call):
                        return call.result()
            return direct.result()  # both are silent: the first one's trouble is told
        finally:
            for call in calls:
                call.cancel()
                # its error has been judged or does not matter any more
                call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def open_detour(self, method: Duplex[Any, Any], *, timeout_s: float) -> DuplexCall[Any, Any]:
        """As ``open``, by the detour if there is one."""
        return (self.detour or self).open(method, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close both channels."""
        await super().close()
        if self.detour is not None:
            await self.detour.close()


def _is_silence(call: asyncio.Future[A]) -> bool:
    """Whether a finished call has told nothing about the other party."""
    return call.cancelled() or isinstance(call.exception(), (Unreachable, TooLate))
