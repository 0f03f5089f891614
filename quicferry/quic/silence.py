"""When a client notices that nothing comes any more from where its server was."""

from __future__ import annotations

from quicferry.quic._aioquic.seam import Seam


class Quiet:
    """When a client with nothing in flight asks whether its server is still there (PING).

    Its server may have moved, or a NAT may have given it another address: neither costs it a packet that it
    waits for, and so neither would be noticed as silence.
    """

    def __init__(self, seam: Seam, quiet_s: float) -> None:
        self._seam = seam
        self._quiet_s = quiet_s
        self._looked_at = 0.0

    def due_at(self) -> float | None:
        """When that is to be looked at; None while an answer is awaited anyway."""
        if self._seam.awaits_acknowledgement or not self._seam.handshake_confirmed:
            return None
        return max(self._seam.last_received_at, self._looked_at) + self._quiet_s

    def look(self, now: float) -> None:
        """Ask, if it is time and anything may come."""
        #: wire-format 6.2: SHOULD send a PING after 3 s
        due_at = self.due_at()
        if due_at is not None and now >= due_at:
            self._looked_at = now
            if self._seam.may_be_sent_something:
                self._seam.send_ping()


class Silence:
    """The silence of the active path.

    It counts one PTO after the oldest packet left that wants an answer and has none, if nothing at all has
    come for half a PTO. The PTO timer itself is armed anew by each packet that is sent (RFC 9002 §6.2.1), so
    a client that sends often would never notice. Half a PTO of quiet tells a server that is gone from a
    packet that was lost; until then the oldest packet is of no interest, and is not looked for.
    """

    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._last_receipt = 0.0  # from the active path
        self._last_elsewhere = 0.0  # from another
        self._since: float | None = None  # when the oldest packet left that has no answer
        self.noticed = False

    def broken(self, now: float) -> None:
        """Something has come on the active path, or there is a new one."""
        self._last_receipt = now
        self._since = None
        self.noticed = False

    def challenged(self, now: float) -> None:
        """A challenge leaves on the active path, in no books of loss recovery, and wants an answer."""
        if self._since is None:
            self._since = now

    def elsewhere(self, now: float) -> None:
        """Something has come on another path: it says nothing of this one."""
        self._last_elsewhere = now

    def due_at(self) -> float | None:
        """When it counts, or when that is to be looked at; None while there is nothing to notice."""
        if self._since is None and not self.noticed and not self._seam.awaits_acknowledgement:
            return None
        heard_at = self._seam.last_received_at
        if heard_at > self._last_receipt and heard_at != self._last_elsewhere:
            self.broken(heard_at)
        if self.noticed:
            return None
        if self._since is None and not self._seam.awaits_acknowledgement:
            return None
        pto_s = self._seam.pto_s
        quiet_at = self._last_receipt + pto_s / 2
        return quiet_at if self._since is None else max(quiet_at, self._since + pto_s)

    def look(self, now: float) -> float | None:
        """Whether it counts now: then how long it has lasted, in seconds. It is told once."""
        due_at = self.due_at()
        if due_at is not None and now >= due_at and self._since is None:
            self._since = self._seam.oldest_unacknowledged_at()
            due_at = self.due_at()
        if due_at is None or now < due_at or self._since is None:
            return None
        self.noticed = True
        return now - self._since
