"""A window for what a server has to send to all its clients at once: a notice, or the first flight.

Hundreds of clients that are told at once answer at once. Their answers wait in the socket, the server
takes them for lost and retransmits, and the retransmissions have to be read as well: with 500 clients each
was sent everything a dozen times. So only some clients are told at a time, and the next one when one of
them has answered. A client that does not answer within TURN_S leaves its place to the next, later while
answers wait in line.

How many at a time follows from their answers, as in delay-based congestion control (TCP Vegas, LEDBAT):
AT_ONCE at first, which on a long path would leave the server idle most of the time. For two answers that
come without having waited in line one more is told at a time, for two that have waited one less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from apps.server.connections import Peer
from quicferry.units import now_s

AT_ONCE = 32  # at the least
#: an answer that took so much longer than the path takes has waited in line; a probe timeout is 25 ms and
#: more above the round trip (RFC 9002 §6.2.1), and what is in line for longer is sent again
QUEUED_S = 0.012
STEP = 0.5  # places per answer
#: While answers wait in line, a place is kept so many times as long besides: who is told meanwhile would wait
#: in the same line, and be told again. But never longer than that in all.
TURN_QUEUES, TURN_MOST_S = 3.0, 0.1
#: a place is given on after so long without an answer: a thousand clients a second even if none answers
TURN_S = 0.032


class NoticeWindow:
    """Calls ``take`` for each peer, in order, a few ahead of the answers.

    ``take`` returns whether an answer is to be expected. With ``holding`` nothing may leave for a peer
    before its turn, and peers that have sent something meanwhile come first. ``queued_s`` says of a peer
    that has answered how long that has waited in line.
    """

    def __init__(
        self,
        peers: Iterable[Peer],
        take: Callable[[Peer], bool],
        *,
        holding: bool = False,
        queued_s: Callable[[Peer], float] = lambda _: 0.0,
    ) -> None:
        self._take = take
        self._holding = holding
        self._queued_s = queued_s
        self._places: float = AT_ONCE
        self._waiting = {peer.key: peer for peer in peers}
        self._asking: dict[str, Peer] = {}  # of these, those that have sent something: they are next
        self._open: dict[str, float] = {}  # key -> when it had its turn; its answer is waited for
        self._late: set[str] = set()  # those whose place was given on before they answered
        self._line_s = 0.0  # how long answers wait in line
        self._timer: asyncio.TimerHandle | None = None
        self.over = asyncio.Event()  # set when every client has been told; not all need have answered

    def heard(self, peer: Peer) -> bool:
        """Note that a peer has sent something. Returns whether nothing may leave for it before its turn."""
        if self._open.pop(peer.key, None) is not None or peer.key in self._late:
            self._late.discard(peer.key)
            queued_s = self._queued_s(peer)
            self._places = max(AT_ONCE, self._places + (STEP if queued_s < QUEUED_S else -STEP))
            self._line_s += (queued_s - self._line_s) / 8  # smoothed as an RTT is (RFC 9002 §5.3)
        if not self._holding or peer.key not in self._waiting:
            return False
        self._asking[peer.key] = peer
        return True

    def go_on(self) -> None:
        """Call ``take`` for as many peers as the window allows now."""
        if self.over.is_set():
            return
        now = now_s()
        turn_s = min(TURN_MOST_S, TURN_S + TURN_QUEUES * self._line_s)
        while self._open and self._open[oldest := next(iter(self._open))] + turn_s <= now:
            del self._open[oldest]
            self._late.add(oldest)
        while self._waiting:
            line = self._asking or self._waiting
            peer = line[next(iter(line))]
            if len(self._open) >= int(self._places):
                break
            if self._turn(peer):
                self._open[peer.key] = now
        if not self._waiting:
            self._end()
        else:
            self._cancel_timer()
            due = next(iter(self._open.values())) + turn_s
            self._timer = asyncio.get_running_loop().call_at(due, self.go_on)

    def finish(self) -> None:
        """Call ``take`` for all who are left, at once."""
        while self._waiting:
            self._turn(next(iter(self._waiting.values())))
        self._end()

    def drop(self) -> None:
        """Call ``take`` for nobody else."""
        self._waiting.clear()
        self._end()

    def _turn(self, peer: Peer) -> bool:
        del self._waiting[peer.key]
        self._asking.pop(peer.key, None)
        return self._take(peer)

    def _end(self) -> None:
        self._cancel_timer()
        self.over.set()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
