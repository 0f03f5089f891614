"""The addresses that a server has named to its client, and those it has taken back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.wire import Address, SmAddress

#: how long an address counts after it was named, in idle timeouts; one that is used is named again after a
#: third of it, so that a client which still has its connection still has the addresses
LIFETIME_IDLE_TIMEOUTS = 3
_TOMBSTONES = 64  # retired addresses that are remembered, to tell a repeated frame from a new one


class AddressBook:
    """What the server may move to, by sequence number. ``most``: how many addresses it may name at a time.

    ``like``, where it is asked for, is an address of the family that the connection uses.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.known: dict[int, SmAddress] = {}
        self._retired: dict[int, SmAddress] = {}
        self._named_at: dict[int, float] = {}  # when each was named last

    def enter(self, frame: SmAddress, now: float) -> bool:
        """Take in what the server says; True when it names an address that was not known.

        Raises ``PeerError`` for a number that stood for another address before, and for too many.
        """
        #: wire-format 4.1: A client MUST be able to hold 16 addresses
        known = self.known.get(frame.sequence) or self._retired.get(frame.sequence)
        if known is not None and (known.ipv4, known.ipv6, known.pool) != (
            frame.ipv4,
            frame.ipv6,
            frame.pool,
        ):
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_ADDRESS: one number, two addresses")
        if frame.retire:
            self._drop(frame.sequence)
            self._retired[frame.sequence] = frame
            while len(self._retired) > _TOMBSTONES:
                del self._retired[next(iter(self._retired))]
            return False
        if known is not None:
            if frame.sequence in self.known:
                self._named_at[frame.sequence] = now
            return False
        if len(self.known) >= self._most:
            raise PeerError(ErrorCode.SM_LIMIT, "SM_ADDRESS: too many addresses")
        self.known[frame.sequence] = frame
        self._named_at[frame.sequence] = now
        return True

    def expire(self, before: float, keep: Collection[int]) -> list[SmAddress]:
        """Forgets what was named last before that time, but for the numbers in ``keep``; returns it."""
        over = [n for n, named_at in self._named_at.items() if named_at < before and n not in keep]
        frames = [self.known[sequence] for sequence in over]
        for sequence in over:
            self._drop(sequence)
        return frames

    def resolve(self, sequences: Iterable[int], like: Address) -> tuple[Address, ...] | None:
        """The addresses with these numbers, in the connection's family; None if one is unknown yet."""
        frames = [self.known.get(sequence) for sequence in sequences]
        if any(frame is None for frame in frames):
            return None
        return tuple(a for frame in frames if frame and (a := self.of_family(frame, like)) is not None)

    def names(self, address: Address, like: Address) -> bool:
        """Whether the server has named it."""
        return any(self.of_family(frame, like) == address for frame in self.known.values())

    def all(self, like: Address) -> Iterator[Address]:
        """Every address that the server has named and not taken back."""
        for frame in self.known.values():
            if (address := self.of_family(frame, like)) is not None:
                yield address

    def pool(self, like: Address) -> Iterator[Address]:
        """Where the server may be when it is silent."""
        for frame in self.known.values():
            if frame.pool and (address := self.of_family(frame, like)) is not None:
                yield address

    def _drop(self, sequence: int) -> None:
        self.known.pop(sequence, None)
        self._named_at.pop(sequence, None)

    @staticmethod
    def of_family(frame: SmAddress, like: Address) -> Address | None:
        """The address of a frame in the connection's family; None if it has none."""
        return frame.ipv6 if ":" in like[0] else frame.ipv4
