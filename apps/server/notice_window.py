"""Whose turn it is when a server has something to say to all its clients at once.

Told all at once, hundreds of clients answer at once. Their answers wait in line, the server takes them
for lost and repeats itself, and what was repeated has to be read as well: with 500 clients each was told
everything a dozen times. So only a few are told at a time, and the next one when one of them has
answered. Whoever does not answer soon holds nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from apps.server.connections import Peer
from quicferry.units import now_s

AT_ONCE = 32
#: after which a turn counts no more: a server that nobody answers still reaches a thousand clients a second
TURN_S = 0.032


class NoticeWindow:
    """Calls ``take`` for each peer, in order, a few ahead of the answers.

    ``take`` returns whether an answer is to be expected. With ``holding`` nothing may leave for a peer
    before its turn, and those who ask meanwhile come first.
    """

    def __init__(self, peers: Iterable[Peer], take: Callable[[Peer], bool], *, holding: bool = False) -> None:
        self._take = take
        self._holding = holding
        self._waiting = {peer.key: peer for peer in peers}
        self._asking: dict[str, Peer] = {}  # of these, who has asked for it
        self._open: dict[str, float] = {}  # key -> until when its answer is waited for
        self._timer: asyncio.TimerHandle | None = None
        self.over = asyncio.Event()  # everybody has had a turn; not all need have answered

    def heard(self, peer: Peer) -> bool:
        """A peer has said something. Returns whether it has to wait for its turn before it is answered."""
        self._open.pop(peer.key, None)
        if not self._holding or peer.key not in self._waiting:
            return False
        self._asking[peer.key] = peer
        return True

    def go_on(self) -> None:
        """Give turns to as many as may have one now."""
        if self.over.is_set():
            return
        now = now_s()
        self._open = {key: until for key, until in self._open.items() if until > now}
        while self._waiting:
            line = self._asking or self._waiting
            peer = line[next(iter(line))]
            if len(self._open) >= AT_ONCE:
                break
            if self._turn(peer):
                self._open[peer.key] = now + TURN_S
        if not self._waiting:
            self._end()
        else:
            self._cancel_timer()
            due = min(self._open.values())
            self._timer = asyncio.get_running_loop().call_at(due, self.go_on)

    def finish(self) -> None:
        """Give everybody who is left a turn at once."""
        while self._waiting:
            self._turn(next(iter(self._waiting.values())))
        self._end()

    def drop(self) -> None:
        """Whoever is left gets none."""
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
