"""The notice of a move: what a server tells its clients beforehand, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec

from apps.server.connections import ConnectionTable, Peer
from apps.server.notice_window import NoticeWindow
from quicferry.migration import control
from quicferry.quic.wire import Result
from quicferry.strategies import Carrier, StrategyName, rules_of, strategies
from quicferry.units import now_s

NOTICE_LEAST_S = 0.2
NOTICE_PTOS = 6  # two repetitions of a lost notice or answer, as recovery sends them
#: answers of clients that will not be where the server is
STAYS = frozenset(
    {
        *(Result.NOT_NEGOTIATED, Result.REFUSED, Result.ADDRESS_FILTERED, Result.NO_CID),
        *(Result.NO_ADDRESS, Result.UNTOLD),
    }
)


class Notice:
    """Tells the clients of a table, one move at a time, and keeps their answers.

    ``told`` is called with epoch and strategy for each notice that is on its way.
    """

    def __init__(self, table: ConnectionTable, told: Callable[[int, StrategyName], object]) -> None:
        self._table = table
        self._told = told
        self._answers: dict[str, Result] = {}  # connection key -> SM_READY's result
        self._answered = asyncio.Event()  # set when nobody is waited for any more
        self._awaited: dict[str, float] = {}  # connection key -> until when it is waited for
        self._shaken = asyncio.Event()  # set when a handshake has come to its end
        self.new_address = ""  # where the clients are to be told to go

    # --- what connections tell -----------------------------------------------------------------

    def handshake_is_over(self) -> None:
        """A handshake has come to its end."""
        self._shaken.set()

    def answered(self, peer: Peer, result: Result) -> None:
        """A client has answered."""
        self._answers[peer.key] = result
        self.no_longer_awaited(peer)

    def no_longer_awaited(self, peer: Peer) -> None:
        """Whatever the client may say yet, nobody waits for it."""
        if self._awaited.pop(peer.key, None) is not None and not self._awaited:
            self._answered.set()

    def staying(self) -> dict[str, Peer]:
        """Whose client has said that it will not go along, or does not know how to; by their keys."""
        peers = self._table.peers
        return {key: peers[key] for key, answer in self._answers.items() if answer in STAYS and key in peers}

    # --- telling them --------------------------------------------------------------------------

    async def begin(self, order: control.Prepare) -> NoticeWindow:
        """Forget the last move, wait for handshakes, and return the window in which clients are told."""
        self._answers.clear()
        self._awaited.clear()
        self._answered.clear()
        self.new_address = str(order.service or "")
        begun = now_s()
        await self._await_handshakes(order.deadline_s)
        # both waits together take no longer than was given
        left_s = max(NOTICE_LEAST_S, order.deadline_s - (now_s() - begun))
        order = msgspec.structs.replace(order, deadline_s=min(order.deadline_s, left_s))
        # whoever takes longest to answer is told first: then the last answer comes as early as it can
        peers = sorted(self._table.peers.values(), key=lambda each: -each.connection.pto_s)
        return NoticeWindow(
            peers,
            lambda peer: self._tell(order, len(peers), peer),
            queued_s=lambda peer: peer.connection.queued_s,
        )

    async def counts(self) -> dict[str, int]:
        """Wait for the answers, and return how many of each kind there are: the detail of Prepare."""
        silent = await self._await_answers()
        results = list(self._answers.values())
        ready, unable = results.count(Result.OK), results.count(Result.NOT_NEGOTIATED)
        return {
            "ready": ready,
            "refused": len(results) - ready - unable,
            "unable": unable,
            "silent": silent,
        }

    async def _await_handshakes(self, most_s: float) -> None:
        """Wait for connections that are in the middle of their handshake: they cannot move before it is over.

        A client far away takes itself for connected, and asks, half a round trip before the server is.
        Whoever never answers is waited for no longer than a client that is to be told of a move.
        """
        peers = self._table.peers
        until = {
            key: now_s() + min(most_s, max(NOTICE_LEAST_S, NOTICE_PTOS * peer.connection.pto_s))
            for key, peer in peers.items()
            if peer.shaking
        }
        while True:
            now = now_s()
            left = [
                end - now
                for key, end in until.items()
                if end > now and (peer := peers.get(key)) is not None and peer.shaking
            ]
            if not left:
                return
            self._shaken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left)):
                    await self._shaken.wait()

    def _tell(self, order: control.Prepare, clients: int, peer: Peer) -> bool:
        """Tell a client of the move, if the strategy that it follows has notice; whether it will answer."""
        if peer.key not in self._table.peers:
            return False
        target = order.destination or order.service
        strategy = peer.strategy = _strategy_of(peer, order.strategy)
        rules = rules_of(strategy)
        addresses = [(target.host, target.port)] if rules.carries_address and target is not None else []
        if rules.notice:
            # a deadline of its own: whoever is far away is waited for longer, but never for too long
            patience_s = max(NOTICE_LEAST_S, NOTICE_PTOS * peer.connection.pto_s)
            self._awaited[peer.key] = now_s() + min(order.deadline_s, patience_s)
        peer.connection.prepare_migration(
            order.epoch,
            strategy,
            addresses,
            order.downtime_ms,
            order.server_first,
            now_s(),
            clients=clients,
        )
        if rules.notice:
            self._told(order.epoch, strategy)
        self._table.proceed(peer)
        return peer.key in self._awaited

    async def _await_answers(self) -> int:
        """Wait for each client until its own deadline; returns how many were silent."""
        #: wire-format 7.1: SHOULD NOT wait longer than a deadline for any one client
        silent = 0
        while self._awaited:
            now = now_s()
            late = [key for key, until in self._awaited.items() if until <= now]
            silent += len(late)
            for key in late:
                del self._awaited[key]
            if self._awaited:
                # those who are unable have answered while the others were not told yet
                self._answered.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(self._awaited.values()) - now):
                        await self._answered.wait()
        return silent


def _strategy_of(peer: Peer, wanted: StrategyName) -> StrategyName:
    """The strategy of the order, or if this client has not agreed to it, the first that it has agreed to.

    To a preferred address nobody agrees: it is for those of whom nothing better is known.
    """
    agreed = peer.connection.negotiated
    if wanted in agreed:
        return wanted
    usual = [each for each in strategies() if each in agreed]
    return min(usual, key=lambda each: rules_of(each).carrier is Carrier.PREFERRED_ADDRESS, default=wanted)
