"""A client asks its server to move: who may, how often, and what is answered.

``Asking`` is the client's half, ``Asked`` the server's. Both know one request at a time. A request is no
order: the server hands it to whoever decides (``MoveRequested``), and answers what that says.
"""

from __future__ import annotations

from typing import Any

from quicferry.quic.config import Timings
from quicferry.quic.errors import ErrorCode, LocalError, PeerError
from quicferry.quic.request_wire import Reply, SmReply, SmRequest


class Asking:
    """The requests of a client, numbered from 1."""

    def __init__(self) -> None:
        self.agreed = False  # the server reads requests
        self._latest = 0
        self._reply: Reply | None = None

    def ask(self) -> SmRequest:
        """The next request. Raises ``LocalError`` when the server reads none, or has not answered yet."""
        #: wire-format 4.6: MUST NOT send another one before the last was answered
        if not self.agreed:
            raise LocalError("this server cannot be asked to move", hint="it did not agree to requests")
        if self._latest and self._reply is None:
            raise LocalError("the server has not answered the last request yet")
        self._latest += 1
        self._reply = None
        return SmRequest(request=self._latest)

    def take(self, frame: SmReply) -> bool:
        """An answer; whether it is news. Raises ``PeerError`` for one that cannot be."""
        if frame.request > self._latest:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_REPLY to a request that was not made")
        if frame.request < self._latest:
            return False
        if self._reply is not None and self._reply is not frame.reply:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_REPLY: one request, two answers")
        news, self._reply = self._reply is None, frame.reply
        return news


class Asked:
    """The requests that a server has of its client."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self.agreed = False  # the client has been told that requests are read
        self._latest = 0
        self._latest_at: float | None = None
        self._reply: Reply | None = None  # None: whoever decides has not said yet

    def take(self, frame: SmRequest, now: float) -> Reply | None:
        """What to answer at once; None when somebody is to decide. A repetition has no answer either.

        ``is_above_all``, asked before, tells the two apart.
        """
        if not self.agreed:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_REQUEST, which was not negotiated")
        if frame.request <= self._latest:
            return None
        too_soon = self._latest_at is not None and now - self._latest_at < self._timings.epoch_interval_s
        self._latest, self._latest_at = frame.request, now
        self._reply = Reply.BUSY if too_soon else None
        return self._reply

    def is_above_all(self, frame: SmRequest) -> bool:
        """Whether it is a new request, and no repetition."""
        return frame.request > self._latest

    @property
    def is_open(self) -> int | None:
        """The number of the request that nobody has answered yet."""
        return self._latest if self._latest and self._reply is None else None

    def answer(self, request: int, reply: Reply) -> SmReply | None:
        """The answer of whoever decides; None for a request that is answered, or that is an old one."""
        if request != self.is_open:
            return None
        self._reply = reply
        return SmReply(request=request, reply=reply)

    def is_current(self, frame: SmReply) -> bool:
        """Whether an answer is still waited for."""
        return frame.request == self._latest

    def dump(self) -> dict[str, Any]:
        """What moves with the connection."""
        return {
            "agreed": self.agreed,
            "latest": self._latest,
            "reply": None if self._reply is None else str(self._reply),
        }

    def load(self, values: dict[str, Any]) -> None:
        """Takes over what ``dump`` gave."""
        self.agreed = bool(values["agreed"])
        self._latest = int(values["latest"])
        self._reply = None if values["reply"] is None else Reply(values["reply"])
