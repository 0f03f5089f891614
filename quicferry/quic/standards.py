"""Two standards by which a server moves without a frame of the extension.

``preferred_address`` (RFC 9000 §9.6) is fixed in the handshake and good for one move. ALTERNATIVE_ADDRESS
(draft-munizaga-quic-alternative-server-address-02) has the whole set of the server's addresses each time, and
is good for any number. Neither says when the server moves, how long that takes, or that it has moved: the
client asks the address until somebody answers, at the pace of Initial packets (RFC 9000 §8.2.1), and the
server that has moved sends nothing but probes from there until its client has come (§9.6.2).

``ClientAddresses`` is what a client has been told in this way, ``ServerAddresses`` what a server has said,
and ``Probation`` is the silence of a server that has moved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from aioquic.quic.connection import NetworkAddress

from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic._aioquic.seam import LEAST_PROBE_BYTES, PROBE_DATAGRAM_BYTES, RESPONSE_BYTES, Seam
from quicferry.quic.config import ExtensionConfig
from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.policy import AddressPolicy
from quicferry.quic.standard_wire import (
    ALTERNATIVE_ADDRESS_ID,
    AlternativeAddress,
    Entry,
    alternative_parameter,
    check_alternative_parameter,
    preferred_parameter,
)
from quicferry.quic.wire import Address, find_parameter
from quicferry.strategies import Strategy, StrategyName

_PREFERRED, _ALTERNATIVE = Strategy.PREFERRED_ADDRESS, Strategy.ALTERNATIVE_ADDRESS
#: the intervals between a server's own challenges grow no further than to this
_SLOWEST_S = 2.0
_CHALLENGES_MOST = 64  # that are remembered: an answer may come late
FIRST_VALIDATION_PTOS = 3  # how long an address is validated that nobody need be at yet (RFC 9000 §8.2.4)


class ClientAddresses:
    """Where its server may be, as the client has been told by one of the standards."""

    def __init__(self, config: ExtensionConfig) -> None:
        self._config = config
        self._policy: AddressPolicy = config.policy
        self._preferred: tuple[Address, ...] = ()
        self._latest: AlternativeAddress | None = None

    @property
    def offers(self) -> bool:
        """Whether the client says that it reads ALTERNATIVE_ADDRESS."""
        return _ALTERNATIVE in self._config.strategies

    def own_parameter(self) -> bytes:
        """The parameter of the draft, if the client goes by it."""
        return alternative_parameter() if self.offers else b""

    def peer_parameters(self, parameters: bytes) -> None:
        """Raises ``PeerError`` where a server has sent what only a client may send."""
        if find_parameter(parameters, ALTERNATIVE_ADDRESS_ID) is not None:
            raise PeerError(ErrorCode.TRANSPORT_PARAMETER_ERROR, "alternative_address from a server")

    def prefer(self, addresses: tuple[Address, ...]) -> bool:
        """Take in the server's ``preferred_address``; False where the configuration has no use for it."""
        if _PREFERRED not in self._config.strategies:
            return False
        self._preferred = addresses
        return True

    def replace(self, frame: AlternativeAddress) -> bool:
        """Take in a frame; False for one that is older than what is known, or a repetition."""
        if self._latest is not None and frame.sequence <= self._latest.sequence:
            return False
        self._latest = frame
        return True

    @property
    def has_named(self) -> bool:
        """Whether the server has named an address by one of the standards."""
        return bool(self._preferred) or self._latest is not None

    def better(self, here: Address) -> tuple[Address, ...]:
        """The addresses that are better than the current path: those the server wants its client at."""
        frame = self._latest
        return () if frame is None else tuple(self._usable((e.address for e in frame.before), here))

    def places(self, here: Address) -> tuple[Address, ...]:
        """All that have been named; the best ones first."""
        frame = self._latest
        named = [] if frame is None else [e.address for e in (*frame.before, *frame.after)]
        return tuple(dict.fromkeys(self._usable(iter([*named, *self._preferred]), here)))

    def _usable(self, addresses: Iterator[Address], here: Address) -> Iterator[Address]:
        for address in addresses:
            if address != here and self._policy.denies(address, here) is None:
                yield address


class ServerAddresses:
    """Where a server has said by one of the standards that it may be."""

    def __init__(self, seam: Seam, config: ExtensionConfig) -> None:
        self._seam = seam
        self._config = config
        self._parameter = b""
        self.preferred = config.preferred_address if _PREFERRED in config.strategies else ()
        self._client_reads_frames = False
        self._sequence = 0  # of the latest frame
        self.here: Address | None = None  # where it is, if it was told

    def own_parameter(self) -> bytes:
        """``preferred_address``, the same one each time. Its connection ID has the sequence number 1."""
        if self.preferred and not self._parameter:
            connection_id, token = self._seam.issue_first_cid()
            self._parameter = preferred_parameter(self.preferred, connection_id, token)
        return self._parameter

    def peer_parameters(self, parameters: bytes) -> None:
        """Whether the client goes by the draft. Raises ``PeerError``."""
        value = find_parameter(parameters, ALTERNATIVE_ADDRESS_ID)
        if value is not None:
            check_alternative_parameter(value)
            self._client_reads_frames = _ALTERNATIVE in self._config.strategies

    @property
    def agreed(self) -> frozenset[StrategyName]:
        """The standards by which this client can follow. For ``preferred_address`` no client need agree."""
        found: set[StrategyName] = {_PREFERRED} if self.preferred else set()
        return frozenset(found | ({_ALTERNATIVE} if self._client_reads_frames else set()))

    def can_be_left_for(self, addresses: list[Address]) -> bool:
        """Whether ``preferred_address`` leads there: it was said in the handshake, and is not used up."""
        return bool(addresses) and all(address in self.preferred for address in addresses)

    def use_up_if(self, used: bool) -> None:
        """The server is where ``preferred_address`` led; there is no other."""
        if used:
            self.preferred = ()

    def next_set(self, addresses: list[Address]) -> AlternativeAddress:
        """The frame that leads a client to ``addresses``, with the present place for the case that it fails.

        Without addresses it takes back what the one before has said.
        """
        self._sequence += 1
        after = () if self.here is None or self.here in addresses else (Entry(self.here),)
        return AlternativeAddress(
            sequence=self._sequence, before=tuple(Entry(address) for address in addresses), after=after
        )

    def is_current(self, frame: AlternativeAddress) -> bool:
        """Whether it is the latest: the set in it replaces all before it."""
        return frame.sequence == self._sequence

    def dump(self) -> dict[str, Any]:
        """What moves with the connection."""
        return {
            "preferred": [list(address) for address in self.preferred],
            "reads_frames": self._client_reads_frames,
            "sequence": self._sequence,
            "here": None if self.here is None else list(self.here),
        }

    def load(self, values: dict[str, Any]) -> None:
        """Takes over what ``dump`` gave."""
        self.preferred = tuple((str(host), int(port)) for host, port in values["preferred"])
        self._client_reads_frames = bool(values["reads_frames"])
        self._sequence = int(values["sequence"])
        here = values["here"]
        self.here = None if here is None else (str(here[0]), int(here[1]))


class Probation:
    """A server at an address that its client has not come to: it may only probe (RFC 9000 §9.6.2).

    It is over when the client has answered a challenge that was sent from here, so that the path is
    validated, and has sent a packet here that is no probe. Each of the client's challenges is answered
    together with one of our own, so that this costs no round trip of its own. A client that has nothing to
    ask finds the server by its challenges, of which the first is sent after ``patience_s``.

    A client whose address has changed meanwhile has sent too little for a challenge of full size. It gets a
    smaller one, and when that is answered a second one: only that shows what the path carries (RFC 9000
    §8.2.1).
    """

    def __init__(self, seam: Seam, now: float, patience_s: float) -> None:
        self._seam = seam
        self._sent: dict[bytes, tuple[NetworkAddress, int]] = {}
        self._validated: set[NetworkAddress] = set()
        self._owed: dict[NetworkAddress, list[bytes]] = {}
        self._interval_s = patience_s
        self.due_at = now + patience_s

    def challenged(self, address: NetworkAddress, data: bytes) -> None:
        """The client asks whether somebody is here."""
        #: RFC 9000 9.6.3: SHOULD initiate path validation to the client's new address
        self._owed.setdefault(address, []).append(data)

    def answered(self, data: bytes, address: NetworkAddress) -> bool:
        """A PATH_RESPONSE; whether it was for a challenge from here."""
        if data not in self._sent:
            return False
        probed, size_bytes = self._sent[data]
        if probed == address:
            self._seam.mark_reached(address)
            if size_bytes == PROBE_DATAGRAM_BYTES:
                self._validated.add(address)
            elif address not in self._validated:
                #: RFC 9000 8.2.1: MUST perform a second path validation
                #: RFC 9000 8.2.3: MUST initiate another path validation with an expanded datagram
                self._owed.setdefault(address, [])
        return True

    def is_over(self, client_came: bool) -> bool:
        """Whether the path is validated; ``client_came``: a packet has come here that is no probe."""
        return client_came and self._seam.network_address in self._validated

    @property
    def has_datagrams(self) -> bool:
        """Whether the client is owed an answer."""
        return bool(self._owed)

    def on_timer(self, now: float) -> None:
        """A challenge of our own, at intervals that double."""
        if now >= self.due_at:
            self._owed.setdefault(self._seam.network_address, [])
            self._interval_s = min(2 * self._interval_s, _SLOWEST_S)
            self.due_at = now + self._interval_s

    def datagrams(self, responses_most: int) -> Datagrams:
        """Probing packets, each with a challenge that was never sent before (RFC 9000 §8.2.1)."""
        #: RFC 9000 9.6.2: MUST probe on the path toward the client
        leaving: Datagrams = []
        owed, self._owed = self._owed, {}
        for address, responses in owed.items():
            #: RFC 9000 8.2.2: MUST NOT expand the datagram containing the PATH_RESPONSE if
            #: RFC 9000 9.6.3: the server MUST protect against potential attacks
            size_bytes = self._seam.take_probe_bytes(address)
            if not size_bytes:
                continue  # the client asks again
            challenge = None if responses and address in self._validated else os.urandom(8)
            if challenge is not None:
                self._sent[challenge] = address, size_bytes
                while len(self._sent) > _CHALLENGES_MOST:
                    del self._sent[next(iter(self._sent))]
            room = (size_bytes - LEAST_PROBE_BYTES) // RESPONSE_BYTES + 1
            newest_first = responses[::-1][: min(responses_most, room)]
            leaving.append(self._seam.probe(address, None, challenge, newest_first, size_bytes=size_bytes))
        return leaving
