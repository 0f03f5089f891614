"""Follows QUIC connections through a capture and decrypts their packets.

A packet belongs to a connection by its destination connection ID, whatever addresses it carries:
that is what lets the server's address change. IDs are learnt from the long headers of the handshake
and from NEW_CONNECTION_ID frames; packets without one belong to the connection of their addresses. A
capture that lacks the handshake is opened by trying the secrets of the key log.
"""

from __future__ import annotations

from itertools import product

from quicferry.capture.quic.connections import LABELS, QuicConnection, suites_for
from quicferry.capture.quic.frames import Frame, read_frames
from quicferry.capture.quic.headers import Space, supported_versions
from quicferry.capture.quic.keys import (
    INITIAL_SUITE,
    VERSION_1,
    VERSION_2,
    KeyLog,
    PacketProtection,
    initial_secrets,
)
from quicferry.capture.quic.packets import Direction, Packet, ProtectedPacket, Why, split_datagram
from quicferry.capture.quic.versions import initial_salts, is_google, is_reserved

#: Lengths of connection IDs that stacks use, tried on packets of which nothing is known, the commonest first.
_USUAL_CID_BYTES = (8, 0, 4, 16, 20, 18, 5, 12)
_TRIALS_PER_FLOW = 64  # packets without a known ID of one pair of addresses that are tried with all secrets
_TRIALS_IN_ALL = 50_000  # keys that are tried in one capture
_FLOWS_REMEMBERED = 16_384
_CONNECTIONS_REMEMBERED = 8_192  # when memory is bounded
_SMALLEST_SHORT_BYTES = 21  # a shorter one has no sample for header protection (RFC 9001 §5.4.2)
_NEW_CONNECTION_ID = frozenset({"NEW_CONNECTION_ID", "PATH_NEW_CONNECTION_ID"})
_TOKEN_BYTES = 16

Owner = tuple[QuicConnection, Direction]


class Decryptor:
    """Decrypts the packets of one vantage point, in the order of their stamps.

    Call ``feed`` with each UDP payload. ``other_vantage`` makes a decryptor for another capture of
    the same run that knows all connections already. ``bounded`` keeps the memory constant: what was sent
    twice is noticed within the newest packets of a connection only, and of very many connections the
    oldest are forgotten (``forgotten`` counts them).
    """

    def __init__(self, keylog: KeyLog, *, bounded: bool = False) -> None:
        self._keylog = keylog
        self._bounded = bounded
        self._count = 0
        self._connections: dict[int, QuicConnection] = {}
        self._by_cid: dict[bytes, Owner] = {}
        self._by_addresses: dict[tuple[str, str], list[Owner]] = {}  # for connection IDs of no length
        self._by_client: dict[str, QuicConnection] = {}
        self._cid_lengths: tuple[int, ...] = ()
        self._trials: dict[tuple[str, str], int] = {}
        self._trials_left = _TRIALS_IN_ALL
        self._unused: dict[tuple[bytes, int, str, int], PacketProtection] = {}
        self.undecrypted = 0
        self.forgotten = 0

    @property
    def connections(self) -> int:
        """The number of connections found so far."""
        return self._count

    def connection(self, index: int) -> QuicConnection | None:
        """A connection by its number; None when it was forgotten."""
        return self._connections.get(index)

    def other_vantage(self) -> Decryptor:
        """A decryptor for another capture of the same connections.

        What was sent twice is judged across both: packets that left one host and never reached the
        other are seen there only.
        """
        other = Decryptor(self._keylog, bounded=self._bounded)
        other._count = self._count
        for index, known in self._connections.items():
            other._connections[index] = known.for_other_vantage()
        for client, known in self._by_client.items():
            other._by_client[client] = other._connections[known.index]
        for cid, (known, direction) in self._by_cid.items():
            other._by_cid[cid] = (other._connections[known.index], direction)
        for ends, owners in self._by_addresses.items():
            other._by_addresses[ends] = [(other._connections[each.index], way) for each, way in owners]
        other._cid_lengths = self._cid_lengths
        return other

    def feed(
        self,
        t_ns: int,
        source: str,
        destination: str,
        datagram: bytes,
        missing_bytes: int = 0,
        vantage: int = 0,
    ) -> list[Packet]:
        """The packets of one UDP datagram. A datagram that is not QUIC gives none, and is counted.

        ``missing_bytes``: how much of the datagram the capture has cut off. ``vantage``: which of the points
        of one capture saw it; the same packet at two of them is no repetition.
        """
        if datagram and datagram[0] & 0xC0 == 0x40:
            # a short header of a known connection alone: nearly every datagram
            for length in self._cid_lengths:
                owner = self._by_cid.get(datagram[1 : 1 + length])
                if owner is not None:
                    connection, direction = owner
                    end = 1 + length
                    packet = ProtectedPacket(
                        t_ns,
                        source,
                        destination,
                        datagram,
                        Space.ONE_RTT,
                        connection.version,
                        datagram[1:end],
                        b"",
                        end,
                        b"",
                        missing_bytes,
                    )
                    opened = self._try_open(packet, connection, direction, vantage)
                    if opened is not None:
                        return [opened]
                    break
        found = []
        for each in split_datagram(t_ns, source, destination, datagram, missing_bytes):
            if each is None:
                self.undecrypted += 1
            elif each.space is Space.ONE_RTT:
                found.append(self._short(each, vantage))
            else:
                found.append(self._long(each, vantage))
        return found

    # packets with a long header

    def _long(self, packet: ProtectedPacket, vantage: int) -> Packet:
        if packet.space in (Space.UNKNOWN, Space.VERSION_NEGOTIATION):
            return self._unread(packet)
        owner = self._owner(packet, packet.destination_cid)
        if packet.space is Space.RETRY:
            return self._retry(packet, owner)
        if packet.space is Space.INITIAL and (owner is None or self._begins_anew(packet, owner)):
            begun = self._new_connection(packet)
            owner = (begun, Direction.TO_SERVER) if begun is not None else owner
        if owner is None:
            self.undecrypted += 1
            why = Why.NO_INITIAL if packet.space is Space.INITIAL else Why.NO_HANDSHAKE
            if is_reserved(packet.version):
                why = Why.UNKNOWN_VERSION
            return packet.undecrypted(Why.CUT_OFF if packet.missing_bytes else why)
        connection, direction = owner
        self._learn(packet.source_cid, connection, direction.opposite)
        self._learn_addresses(packet, connection, direction)
        if direction is Direction.TO_CLIENT:
            connection.version = packet.version  # the server chooses (RFC 9368 §2.3)
        if packet.space is Space.INITIAL:
            connection.derive_initial_keys(packet, direction)
        return self._open(packet, connection, direction, vantage)

    def _unread(self, packet: ProtectedPacket) -> Packet:
        """Version negotiation, which is not protected, and packets of versions that are not read."""
        owner = self._owner(packet, packet.destination_cid)
        connection, direction = owner if owner is not None else (None, None)
        index = connection.index if connection is not None else -1
        if packet.space is Space.VERSION_NEGOTIATION:
            versions = supported_versions(packet.data, packet.number_offset)
            if connection is not None and packet.source_cid == connection.original_cid:
                connection.restart(connection.version)
            return packet.undecrypted(Why.OPENED, index, direction, tuple(versions))
        self.undecrypted += 1
        why = Why.GOOGLE if is_google(packet.version) else Why.UNKNOWN_VERSION
        return packet.undecrypted(why, index, direction)

    def _retry(self, packet: ProtectedPacket, owner: Owner | None) -> Packet:
        if owner is None:
            return packet.undecrypted(Why.OPENED)
        connection, direction = owner
        why = connection.take_retry(packet)
        if not why:
            self._learn(packet.source_cid, connection, direction.opposite)
        return packet.undecrypted(why, connection.index, direction)

    def _begins_anew(self, packet: ProtectedPacket, owner: Owner) -> bool:
        """Whether an Initial with no connection ID, or a reused one, begins another connection."""
        connection, direction = owner
        if packet.destination_cid and direction is Direction.TO_SERVER:
            return False
        if not packet.destination_cid:
            return False
        # a client's choice that equals an ID that packets to a client have: only a new connection fits
        return direction is Direction.TO_CLIENT and packet.source == connection.client

    def _new_connection(self, packet: ProtectedPacket) -> QuicConnection | None:
        """The connection that a client's first Initial begins; None when it is no such packet."""
        if not any(_opens_by(salt, packet) for salt in initial_salts(packet.version)):
            return None
        connection = self._add_connection(packet.source, packet.version)
        connection.original_cid = connection.first_cid = packet.destination_cid
        self._learn(packet.destination_cid, connection, Direction.TO_SERVER)
        return connection

    def _add_connection(self, client: str, version: int) -> QuicConnection:
        connection = QuicConnection(self._count, client, version, self._keylog, bounded=self._bounded)
        self._connections[self._count] = connection
        self._count += 1
        self._by_client[client] = connection
        if self._bounded and len(self._connections) > _CONNECTIONS_REMEMBERED:
            self._forget()
        return connection

    def _forget(self) -> None:
        """Forget the older half of all connections."""
        old = set(list(self._connections)[: _CONNECTIONS_REMEMBERED // 2])
        self.forgotten += len(old)
        for index in old:
            del self._connections[index]
        self._by_cid = {cid: owner for cid, owner in self._by_cid.items() if owner[0].index not in old}
        self._by_client = {key: each for key, each in self._by_client.items() if each.index not in old}
        kept = {
            key: [o for o in owners if o[0].index not in old] for key, owners in self._by_addresses.items()
        }
        self._by_addresses = {key: owners for key, owners in kept.items() if owners}

    # packets with a short header

    def _short(self, packet: ProtectedPacket, vantage: int) -> Packet:
        data = packet.data
        first: tuple[ProtectedPacket, QuicConnection, Direction] | None = None
        for length in self._cid_lengths:
            if length:
                owner = self._by_cid.get(data[1 : 1 + length])
                owners: list[Owner] = [] if owner is None else [owner]
            else:
                owners = self._without_id(packet)
            for connection, direction in owners:
                candidate = packet.short(length, connection.version)
                opened = self._try_open(candidate, connection, direction, vantage)
                if opened is not None:
                    return opened
                first = first or (candidate, connection, direction)
        found = self._find_by_trial(packet)
        if found is not None:
            length, connection, direction = found
            return self._open(packet.short(length, connection.version), connection, direction, vantage)
        self.undecrypted += 1
        if first is not None:
            candidate, connection, direction = first
            return candidate.undecrypted(
                connection.why_not(candidate, direction), connection.index, direction
            )
        reset = self._stateless_reset(packet)
        if reset is not None:
            return packet.undecrypted(Why.STATELESS_RESET, reset.index, Direction.TO_CLIENT)
        return packet.undecrypted(Why.CUT_OFF if packet.missing_bytes else Why.NO_HANDSHAKE)

    def _without_id(self, packet: ProtectedPacket) -> list[Owner]:
        """The connections of a packet's addresses, the newest first."""
        known = self._by_addresses.get((packet.source, packet.destination))
        if known:
            return known[::-1]
        client = self._by_client.get(packet.destination)
        if client is not None:
            return [(client, Direction.TO_CLIENT)]
        client = self._by_client.get(packet.source)
        return [(client, Direction.TO_SERVER)] if client is not None else []

    def _stateless_reset(self, packet: ProtectedPacket) -> QuicConnection | None:
        """The connection whose reset token ends a packet with an ID of nobody (RFC 9000 §10.3)."""
        for owner in self._without_id(packet):
            if owner[0].is_stateless_reset(packet):
                return owner[0]
        return None

    def _find_by_trial(self, packet: ProtectedPacket) -> tuple[int, QuicConnection, Direction] | None:
        """Find the connection of a packet with an unknown ID by trying secrets on it."""
        flow = (packet.source, packet.destination)
        tried = self._trials.get(flow, 0)
        if tried >= _TRIALS_PER_FLOW or len(packet.data) < _SMALLEST_SHORT_BYTES or packet.missing_bytes:
            return None
        if len(self._trials) >= _FLOWS_REMEMBERED:
            self._trials.clear()
        self._trials[flow] = tried + 1
        lengths = dict.fromkeys((*self._cid_lengths, *_USUAL_CID_BYTES))
        for length in lengths:
            found = self._try_known_connections(packet, length) or self._try_unused_secrets(packet, length)
            if found is not None:
                self._learn(packet.data[1 : 1 + length], *found)
                if not length:
                    self._learn_addresses(packet, *found)
                self._trials[flow] = 0
                return length, *found
        return None

    def _try_known_connections(self, packet: ProtectedPacket, length: int) -> Owner | None:
        for connection in self._connections.values():
            if self._trials_left <= 0:
                return None
            candidate = packet.short(length, connection.version)
            for direction in Direction:
                self._trials_left -= 1
                if connection.open(candidate, direction) is not None:
                    return connection, direction
        return None

    def _try_unused_secrets(self, packet: ProtectedPacket, length: int) -> Owner | None:
        """A connection whose handshake this capture does not have."""
        taken = {connection.client_random for connection in self._connections.values()}
        for version, direction in product((VERSION_1, VERSION_2), Direction):
            candidate = packet.short(length, version)
            for random, secrets in self._keylog.items():
                secret = secrets.get(LABELS[Space.ONE_RTT, direction], b"")
                if random in taken:
                    continue
                for suite in suites_for(secret):
                    if self._trials_left <= 0:
                        return None
                    self._trials_left -= 1
                    key = (random, version, direction.value, suite)
                    protection = self._unused.get(key)
                    if protection is None:
                        protection = self._unused[key] = PacketProtection(suite, secret, version)
                        protection.join_late()
                    if protection.open(candidate.data, candidate.number_offset) is None:
                        continue
                    client = packet.source if direction is Direction.TO_SERVER else packet.destination
                    connection = self._add_connection(client, version)
                    connection.client_random, connection.suite = random, suite
                    connection.derive_keys(late=True)
                    return connection, direction
        return None

    # what both have in common

    def _owner(self, packet: ProtectedPacket, destination_cid: bytes) -> Owner | None:
        """The connection with that destination ID; without an ID, the one of the client's address."""
        if destination_cid:
            return self._by_cid.get(destination_cid)
        owners = self._without_id(packet)
        return owners[0] if owners else None

    def _learn(self, cid: bytes, connection: QuicConnection, direction: Direction) -> None:
        """Remember that packets with this destination ID belong to the connection and go that way."""
        if len(cid) not in self._cid_lengths:
            self._cid_lengths = tuple(sorted({*self._cid_lengths, len(cid)}, reverse=True))
        if cid:
            self._by_cid.setdefault(cid, (connection, direction))

    def _learn_addresses(
        self, packet: ProtectedPacket, connection: QuicConnection, direction: Direction
    ) -> None:
        """Remember whose the packets between two addresses are that carry no connection ID."""
        if 0 not in self._cid_lengths:
            return
        for ends, way in (
            ((packet.source, packet.destination), direction),
            ((packet.destination, packet.source), direction.opposite),
        ):
            owners = self._by_addresses.setdefault(ends, [])
            if not owners or owners[-1][0] is not connection:
                owners[:] = [owner for owner in owners[-3:] if owner[0] is not connection]
                owners.append((connection, way))
        if len(self._by_addresses) > _FLOWS_REMEMBERED:
            del self._by_addresses[next(iter(self._by_addresses))]

    def _open(
        self, packet: ProtectedPacket, connection: QuicConnection, direction: Direction, vantage: int
    ) -> Packet:
        opened = self._try_open(packet, connection, direction, vantage)
        if opened is None:
            self.undecrypted += 1
            return packet.undecrypted(connection.why_not(packet, direction), connection.index, direction)
        return opened

    def _try_open(
        self, packet: ProtectedPacket, connection: QuicConnection, direction: Direction, vantage: int
    ) -> Packet | None:
        """The packet with its frames, from which IDs and secrets are learnt; None if no key fits."""
        opened = connection.open(packet, direction)
        if opened is None:
            return None
        nonce = connection.note_nonce(packet, direction, opened, vantage)
        frames: list[Frame] = read_frames(opened.payload)
        for frame in frames:
            if frame.name == "STREAM" or frame.name == "ACK":
                continue
            if frame.name == "CRYPTO":
                if packet.space is Space.INITIAL and not connection.knows_secrets:
                    connection.read_hello(direction, frame)
            elif frame.name in _NEW_CONNECTION_ID:
                self._learn(frame.data, connection, direction.opposite)
                self._learn_token(opened.payload, frame.data, connection, direction)
        if packet.space is Space.ONE_RTT and 0 in self._cid_lengths:
            self._learn_addresses(packet, connection, direction)
        return packet.decrypted(connection.index, direction, opened, frames, nonce)

    def _learn_token(
        self, payload: bytes, cid: bytes, connection: QuicConnection, direction: Direction
    ) -> None:
        """The token behind a connection ID that the server gives; it ends a stateless reset."""
        at = payload.find(bytes([len(cid)]) + cid)
        if direction is Direction.TO_CLIENT and at >= 0:
            begin = at + 1 + len(cid)
            connection.reset_tokens[payload[begin : begin + _TOKEN_BYTES]] = None


def _opens_by(salt: bytes, packet: ProtectedPacket) -> bool:
    """Whether a client's first Initial opens by the key that its connection ID gives with that salt."""
    secret, _ = initial_secrets(packet.version, packet.destination_cid, salt)
    protection = PacketProtection(INITIAL_SUITE, secret, packet.version)
    return protection.open(packet.data, packet.number_offset) is not None
