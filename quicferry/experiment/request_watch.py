"""Follows the client's requests by its events, so that a move can begin in a pause or during a request."""

from __future__ import annotations

import math
import threading
import time

from quicferry.errors import MigrationError
from quicferry.events import Event
from quicferry.spec import RunSpec

SENT, ANSWERED = "client.request.sent", "client.response.received"
BEGUN_SHARE = 0.1  # of a pause
PATIENCE_S = 15.0  # beyond two intervals between requests: bulk exchanges take as long as the path is slow


def load_after_s(spec: RunSpec, every_ms: float, rtt_ms: float) -> float:
    """For how long the clients go on after the last move, in seconds.

    After a fault at least until each has asked once more and heard of it: where the server is then is judged
    by what it sends, and the clients of some workloads pause for longer than ``after_s``. ``every_ms`` is
    from one request to the next, at most, ``rtt_ms`` the longest round trip of the run.
    """
    if not spec.faults:
        return spec.after_s
    return max(spec.after_s, (every_ms + 2 * rtt_ms) / 1e3)


class RequestWatch:
    """Which requests are open. ``heard`` is told each event, in whichever thread has read it."""

    def __init__(self) -> None:
        self._open: set[object] = set()
        self._sent = 0
        self._answered_s = -math.inf  # when the last answer was heard of
        self._changed = threading.Condition()

    def heard(self, event: Event) -> None:
        """Take note of an event."""
        if event.name not in (SENT, ANSWERED):
            return
        number = event.detail.get("number")
        with self._changed:
            if event.name == SENT:
                self._open.add(number)
                self._sent += 1
            else:
                self._open.discard(number)
                self._answered_s = time.monotonic()
            self._changed.notify_all()

    def wait_for(self, moment: str, every_ms: float) -> None:
        """Return at the moment that ``RunSpec.move_when`` names; at once for ``any``.

        ``pause``: no request is open, and of the pause ``BEGUN_SHARE`` at most is over: nearly all of it is
        still to come. ``request``: the next request has been sent. Raises ``MigrationError`` when it does not
        come. ``every_ms`` is from one request to the next, at most.
        """
        if moment == "any":
            return
        with self._changed:
            sent = self._sent
            patience_s = PATIENCE_S + 2 * every_ms / 1e3

            def has_come() -> bool:
                if moment == "request":
                    return self._sent > sent
                since_s = time.monotonic() - self._answered_s
                return not self._open and since_s <= BEGUN_SHARE * every_ms / 1e3

            if not self._changed.wait_for(has_come, patience_s):
                raise MigrationError(
                    f"no {moment} came in {patience_s:g} s in which the move could begin",
                    hint="give another --move-when, or other requests: docs/workload.md",
                )
