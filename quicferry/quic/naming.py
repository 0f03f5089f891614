"""Which addresses a server names to its client (SM_ADDRESS), by which numbers, and when it names them again.

The client's side of this is ``addresses``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from quicferry.quic._aioquic.seam import Seam
from quicferry.quic.errors import LocalError
from quicferry.quic.wire import HERE_ONLY, Address, Frame, SmAddress, decode_frame


class Naming:
    """What the client was told, and what it is to be told.

    ``send`` queues a frame; ``send_once`` does unless it waits in the queue already. ``most_known``: how many
    addresses a client holds at a time. Times are in seconds on the clock of ``now``.
    """

    def __init__(
        self,
        seam: Seam,
        most_known: int,
        send: Callable[[Frame], None],
        send_once: Callable[[Frame], None],
    ) -> None:
        self._seam = seam
        self._most_known = most_known
        self._send = send
        self._send_once = send_once
        self.offered: list[Address] = []  # to be named as soon as the handshake is confirmed
        self._named: dict[int, SmAddress] = {}  # what the client was told, by sequence number
        self._unconfirmed: set[int] = set()  # named, but not acknowledged
        self._next_sequence = 1
        self._pool_named_at: float | None = None  # when the client was told last; None: it is to be told
        self.is_due = False  # with the next packet of the client: a connection that is idle stays so

    @property
    def pool_size(self) -> int:
        """How many addresses of the pool the client was told."""
        return sum(frame.pool for frame in self._named.values())

    @property
    def has_pool(self) -> bool:
        """Whether there is a pool, told or to be told."""
        return bool(self.offered) or self._pool_is_named

    @property
    def is_unheard(self) -> bool:
        """Whether the client may not know all of it yet."""
        return bool(self.offered or self._unconfirmed)

    @property
    def _pool_is_named(self) -> bool:
        return any(frame.pool for frame in self._named.values())

    # ------------------------------------------------------------------ naming

    def name(self, address: Address, *, pool: bool) -> int:
        """The sequence number of an address the client knows, or is told now."""
        #: wire-format 4.1: The number MUST NOT be used again
        for sequence, frame in self._named.items():
            if address in (frame.ipv4, frame.ipv6) and (frame.pool or not pool):
                self._named[sequence] = self._named.pop(sequence)  # the oldest is what was named least lately
                return sequence
        if len(self._named) >= self._most_known:
            self._retire_oldest()
        sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        frame = SmAddress.of(sequence, address, pool=pool)
        self._named[sequence] = frame
        self._unconfirmed.add(sequence)
        self._seam.replenish_cids()
        self._send(frame)
        return sequence

    def name_offered(self, most: int) -> None:
        """Names the pool; ``most`` addresses of it, where the client takes no more."""
        for address in self.offered[:most]:
            self.name(address, pool=True)

    def say_again(self, sequences: Iterable[int]) -> None:
        """Names addresses that the client may have forgotten since it was told."""
        #: wire-format 6.8: It MUST send SM_ADDRESS for each address
        for sequence in sequences:
            self._send_once(self._named[sequence])

    def _retire_oldest(self) -> None:
        for sequence, frame in self._named.items():
            if not frame.pool:
                del self._named[sequence]
                self._unconfirmed.discard(sequence)
                self._send(SmAddress(sequence=sequence, ipv4=frame.ipv4, ipv6=frame.ipv6, retire=True))
                return
        raise LocalError("the client knows as many pool addresses as it will take")

    def frame_for(self, address: Address) -> SmAddress:
        """The frame for an address, by the number that it has; ``HERE_ONLY`` for one that was not named."""
        named = (frame for frame in self._named.values() if address in (frame.ipv4, frame.ipv6))
        return next(named, SmAddress.of(HERE_ONLY, address))

    def confirmed(self, frame: SmAddress) -> bool:
        """The client has acknowledged a frame. Returns whether it knows all now."""
        self._unconfirmed.discard(frame.sequence)
        return not self._unconfirmed

    def is_current(self, frame: SmAddress) -> bool:
        """Whether a frame still says something."""
        return frame.retire or frame.sequence in self._named

    # ------------------------------------------------------------------ the pool, again and again

    def name_pool_again(self) -> None:
        """By use alone: what keeps a connection open is its own traffic, never this."""
        #: wire-format 6.8: A server MUST name its pool again
        #: wire-format 6.8: It SHOULD NOT do so
        self.is_due, self._pool_named_at = False, None
        self.say_again(sequence for sequence, frame in self._named.items() if frame.pool)

    def leaves(self, now: float) -> None:
        """What is queued is sent now: from here on the pool ages."""
        if self._pool_named_at is None and not self.is_due and self._pool_is_named:
            self._pool_named_at = now

    def again_at(self) -> float | None:
        """When the pool is to be named again; None when it is due already, or there is none."""
        if self._pool_named_at is None or self.is_due:
            return None
        return self._pool_named_at + self._seam.idle_timeout_s

    def look(self, now: float) -> bool:
        """Whether it has become due: then the next packet of the client is to be seen."""
        if self._pool_named_at is None or now < self._pool_named_at + self._seam.idle_timeout_s:
            return False
        self.is_due, self._pool_named_at = True, None
        return True

    # ------------------------------------------------------------------ moving to another process

    def dump(self) -> dict[str, Any]:
        """All of it as plain values, but for times: another host's clock is another."""
        return {
            "offered": [list(address) for address in self.offered],
            "named": [frame.encode() for frame in self._named.values()],
            "unconfirmed": sorted(self._unconfirmed),
            "next_sequence": self._next_sequence,
        }

    def load(self, values: dict[str, Any]) -> None:
        """Takes over what ``dump`` gave."""
        self.offered = [(str(host), int(port)) for host, port in values["offered"]]
        frames = [decode_frame(encoded) for encoded in values["named"]]
        self._named = {frame.sequence: frame for frame in frames if isinstance(frame, SmAddress)}
        self.is_due = True
        self._unconfirmed = set(values["unconfirmed"])
        self._next_sequence = values["next_sequence"]
