"""Follows QUIC connections through a capture and decrypts their packets.

A packet belongs to a connection by its destination connection ID, whatever addresses it carries:
that is what lets the server's address change. IDs are learnt from the long headers of the handshake
and from NEW_CONNECTION_ID frames. A capture that lacks the handshake is opened by trying the secrets
of the key log.
"""

from __future__ import annotations

from collections.abc import Iterator

from quicferry.capture.quic.connections import LABELS, QuicConnection, suites_for
from quicferry.capture.quic.frames import Frame, parse_frames
from quicferry.capture.quic.headers import Space
from quicferry.capture.quic.keys import (
    INITIAL_SUITE,
    VERSION_1,
    KeyLog,
    PacketProtection,
    initial_secrets,
)
from quicferry.capture.quic.packets import Direction, Packet, ProtectedPacket, split_datagram
from quicferry.errors import CaptureError

_DEFAULT_CID_BYTES = 8
_TRIALS_PER_FLOW = 64  # packets without a known ID of one pair of addresses that are tried with all secrets
_SMALLEST_SHORT_BYTES = 29  # a shorter one has no sample for header protection (RFC 9001 §5.4.2)


class Decryptor:
    """Decrypts the packets of one vantage point, in the order of their stamps.

    Call ``feed`` with each UDP payload. ``other_vantage`` makes a decryptor for another capture of
    the same run that knows all connections already.
    """

    def __init__(self, keylog: KeyLog) -> None:
        self._keylog = keylog
        self._connections: list[QuicConnection] = []
        self._by_cid: dict[bytes, tuple[QuicConnection, Direction]] = {}
        self._by_client: dict[str, QuicConnection] = {}  # for connection IDs of no length
        self._cid_lengths: tuple[int, ...] = ()
        self._trials: dict[tuple[str, str], int] = {}
        self.undecrypted = 0

    @property
    def connections(self) -> int:
        """The number of connections found so far."""
        return len(self._connections)

    def other_vantage(self) -> Decryptor:
        """A decryptor for another capture of the same connections.

        What was sent twice is judged across both: packets that left one host and never reached the
        other are seen there only.
        """
        other = Decryptor(self._keylog)
        for known in self._connections:
            copy = known.for_other_vantage()
            other._connections.append(copy)
            other._by_client[known.client] = copy
        for cid, (known, direction) in self._by_cid.items():
            other._by_cid[cid] = (other._connections[known.index], direction)
        other._cid_lengths = self._cid_lengths
        return other

    def feed(self, t_ns: int, source: str, destination: str, datagram: bytes) -> Iterator[Packet]:
        """The packets of one UDP datagram. A datagram that is not QUIC gives none, and is counted."""
        for packet in split_datagram(t_ns, source, destination, datagram):
            if packet is None:
                self.undecrypted += 1
            elif packet.space is Space.ONE_RTT:
                yield self._short(packet)
            else:
                yield self._long(packet)

    def _long(self, packet: ProtectedPacket) -> Packet:
        connection, direction = self._owner(packet, packet.destination_cid)
        if connection is None and packet.space is Space.INITIAL:
            connection = self._new_connection(packet)
            direction = Direction.TO_SERVER
        if connection is None or direction is None or packet.space is Space.RETRY:
            if packet.space is not Space.RETRY:
                self.undecrypted += 1
            return packet.undecrypted(connection.index if connection else -1, direction)
        self._learn(packet.source_cid, connection, direction.opposite)
        if direction is Direction.TO_CLIENT:
            connection.version = packet.version  # the server chooses (RFC 9368 §2.3)
        if packet.space is Space.INITIAL:
            connection.derive_initial_keys(packet, direction)
        return self._open(packet, connection, direction)

    def _new_connection(self, packet: ProtectedPacket) -> QuicConnection | None:
        """The connection that a client's first Initial begins; None when it is no such packet."""
        secret, _ = initial_secrets(packet.version, packet.destination_cid)
        protection = PacketProtection(INITIAL_SUITE, secret, packet.version)
        if protection.open(packet.data, packet.number_offset) is None:
            return None
        connection = self._add_connection(packet.source, packet.version)
        connection.original_cid = packet.destination_cid
        self._learn(packet.destination_cid, connection, Direction.TO_SERVER)
        return connection

    def _add_connection(self, client: str, version: int) -> QuicConnection:
        connection = QuicConnection(len(self._connections), client, version, self._keylog)
        self._connections.append(connection)
        self._by_client[client] = connection
        return connection

    def _short(self, packet: ProtectedPacket) -> Packet:
        for length in self._cid_lengths:
            connection, direction = self._owner(packet, packet.data[1 : 1 + length])
            if connection is not None and direction is not None:
                return self._open(packet.short(length, connection.version), connection, direction)
        found = self._find_by_trial(packet)
        if found is None:
            self.undecrypted += 1
            return packet.undecrypted()
        connection, direction = found
        return self._open(packet.short(_DEFAULT_CID_BYTES, connection.version), connection, direction)

    def _find_by_trial(self, packet: ProtectedPacket) -> tuple[QuicConnection, Direction] | None:
        """Find the connection of a packet with an unknown ID by trying secrets on it."""
        flow = (packet.source, packet.destination)
        tried = self._trials.get(flow, 0)
        has_fixed_bit = packet.data[0] & 0x40
        if not has_fixed_bit or tried >= _TRIALS_PER_FLOW or len(packet.data) < _SMALLEST_SHORT_BYTES:
            return None
        self._trials[flow] = tried + 1
        found = self._try_known_connections(packet) or self._try_unused_secrets(packet)
        if found is not None:
            self._learn(packet.data[1 : 1 + _DEFAULT_CID_BYTES], *found)
        return found

    def _try_known_connections(self, packet: ProtectedPacket) -> tuple[QuicConnection, Direction] | None:
        for connection in self._connections:
            candidate = packet.short(_DEFAULT_CID_BYTES, connection.version)
            for direction in Direction:
                if connection.open(candidate, direction) is not None:
                    return connection, direction
        return None

    def _try_unused_secrets(self, packet: ProtectedPacket) -> tuple[QuicConnection, Direction] | None:
        """A connection whose handshake this capture does not have."""
        candidate = packet.short(_DEFAULT_CID_BYTES, VERSION_1)
        taken = {connection.client_random for connection in self._connections}
        for random, secrets in self._keylog.items():
            if random in taken:
                continue
            for direction in Direction:
                secret = secrets.get(LABELS[Space.ONE_RTT, direction], b"")
                for suite in suites_for(secret):
                    protection = PacketProtection(suite, secret, VERSION_1)
                    if protection.open(candidate.data, candidate.number_offset) is None:
                        continue
                    client = packet.source if direction is Direction.TO_SERVER else packet.destination
                    connection = self._add_connection(client, VERSION_1)
                    connection.client_random, connection.suite = random, suite
                    connection.derive_keys()
                    return connection, direction
        return None

    def _owner(
        self, packet: ProtectedPacket, destination_cid: bytes
    ) -> tuple[QuicConnection | None, Direction | None]:
        """The connection with that destination ID; without an ID, the one of the client's address."""
        if destination_cid:
            return self._by_cid.get(destination_cid, (None, None))
        connection = self._by_client.get(packet.destination)
        if connection is not None:
            return connection, Direction.TO_CLIENT
        connection = self._by_client.get(packet.source)
        return connection, Direction.TO_SERVER if connection is not None else None

    def _learn(self, cid: bytes, connection: QuicConnection, direction: Direction) -> None:
        """Remember that packets with this destination ID belong to the connection and go that way."""
        if len(cid) not in self._cid_lengths:
            self._cid_lengths = tuple(sorted({*self._cid_lengths, len(cid)}, reverse=True))
        if cid:
            self._by_cid.setdefault(cid, (connection, direction))

    def _open(self, packet: ProtectedPacket, connection: QuicConnection, direction: Direction) -> Packet:
        opened = connection.open(packet, direction)
        if opened is None:
            self.undecrypted += 1
            return packet.undecrypted(connection.index, direction)
        nonce = connection.note_nonce(packet, direction, opened)
        frames: list[Frame] | None = None
        try:
            frames = parse_frames(opened.payload)
        except CaptureError:
            self.undecrypted += 1
        for frame in frames or ():
            if frame.name == "CRYPTO" and packet.space is Space.INITIAL and not connection.knows_secrets:
                connection.read_hello(direction, frame)
            elif frame.name == "NEW_CONNECTION_ID":
                self._learn(frame.data, connection, direction.opposite)
        return packet.decrypted(connection.index, direction, opened, frames, nonce)
