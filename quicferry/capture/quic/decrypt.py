"""Following QUIC connections through a capture.

A packet belongs to a connection by its destination connection ID, whatever addresses it carries:
that is what lets the server's address change. IDs are learnt from the long headers of the handshake
and from NEW_CONNECTION_ID frames. A capture that lacks the handshake is opened by trying the secrets
of the key log.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from quicferry.capture.quic.frames import Frame, parse_frames
from quicferry.capture.quic.headers import Space, long_header
from quicferry.capture.quic.keys import (
    INITIAL_SUITE,
    SUITES,
    VERSION_1,
    KeyLog,
    PacketProtection,
    initial_secrets,
)
from quicferry.errors import CaptureError


class Direction(enum.StrEnum):
    """Which way a packet goes."""

    TO_SERVER = "to-server"
    TO_CLIENT = "to-client"


#: (space, direction) -> label in the key log
_LABELS = {
    (Space.HANDSHAKE, Direction.TO_SERVER): "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    (Space.HANDSHAKE, Direction.TO_CLIENT): "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    (Space.ZERO_RTT, Direction.TO_SERVER): "CLIENT_EARLY_TRAFFIC_SECRET",
    (Space.ONE_RTT, Direction.TO_SERVER): "CLIENT_TRAFFIC_SECRET_0",
    (Space.ONE_RTT, Direction.TO_CLIENT): "SERVER_TRAFFIC_SECRET_0",
}
_DEFAULT_CID_BYTES = 8
_TRIALS_PER_FLOW = 64  # packets without a known ID of one pair of addresses that are tried with all secrets


class Packet(NamedTuple):
    """One QUIC packet of a capture.

    ``frames`` is None when it could not be decrypted. ``repeated`` says that the very same packet
    was seen before (the network doubled it); ``nonce_reused`` that another packet used its key and
    number: the gravest mistake a migration can make.
    """

    t_ns: int
    source: str
    destination: str
    connection: int  # -1: of no known connection
    direction: Direction | None
    space: Space
    packet_number: int | None
    generation: int | None
    size_bytes: int
    destination_cid: bytes
    frames: list[Frame] | None
    repeated: bool = False
    nonce_reused: bool = False


class _Stream:
    """The contiguous beginning of a TLS handshake that comes in CRYPTO frames."""

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}

    def add(self, offset: int, data: bytes) -> bytes:
        if len(data) > len(self._parts.get(offset, b"")):
            self._parts[offset] = data
        joined = b""
        for begin in sorted(self._parts):
            if begin > len(joined):
                break
            joined += self._parts[begin][len(joined) - begin :]
        return joined


class _Connection:
    """What is known of one connection."""

    def __init__(self, index: int, client: str, version: int) -> None:
        self.index = index
        self.client = client
        self.version = version
        self.original_cid = b""
        self.client_random: bytes | None = None
        self.suite: int | None = None
        self.hello = {direction: _Stream() for direction in Direction}
        self.protection: dict[tuple[Space, Direction, int], PacketProtection] = {}
        self.seen: dict[tuple[Space, Direction, int, int], bytes] = {}

    def secrets_wanted(self) -> bool:
        return self.client_random is not None and self.suite is not None


class Decryptor:
    """Decrypts the packets of one vantage point, in the order of their stamps.

    Call ``feed`` with each UDP payload. ``other_vantage`` makes a decryptor for another capture of
    the same run that knows all connections already.
    """

    def __init__(self, keylog: KeyLog) -> None:
        self._keylog = keylog
        self._connections: list[_Connection] = []
        self._by_cid: dict[bytes, tuple[_Connection, Direction]] = {}
        self._by_client: dict[str, _Connection] = {}  # for connection IDs of no length
        self._cid_lengths: tuple[int, ...] = ()
        self._trials: dict[tuple[str, str], int] = {}
        self.undecrypted = 0

    @property
    def connections(self) -> int:
        """How many connections were found."""
        return len(self._connections)

    def other_vantage(self) -> Decryptor:
        """A decryptor for another capture of the same connections.

        What was sent twice is judged across both: packets that left one host and never reached the
        other are seen there only.
        """
        other = Decryptor(self._keylog)
        for known in self._connections:
            copy = _Connection(known.index, known.client, known.version)
            copy.original_cid = known.original_cid
            copy.client_random, copy.suite = known.client_random, known.suite
            copy.seen = dict(known.seen)
            other._connections.append(copy)
            other._by_client[known.client] = copy
            other._make_protection(copy)
            for key, protection in copy.protection.items():
                highest = known.protection[key].expected if key in known.protection else 0
                protection.hints = tuple(range(0, highest + (1 << 15), 1 << 15))
        for cid, (known, direction) in self._by_cid.items():
            other._by_cid[cid] = (other._connections[known.index], direction)
        other._cid_lengths = self._cid_lengths
        return other

    def feed(self, t_ns: int, source: str, destination: str, datagram: bytes) -> Iterator[Packet]:
        """The packets of one UDP datagram. What is not QUIC gives one packet of no connection."""
        at = 0
        while at < len(datagram):
            if not datagram[at] & 0xC0:  # no fixed bit: padding after the last packet, or no QUIC at all
                if at == 0:
                    self.undecrypted += 1
                return
            if not datagram[at] & 0x80:
                yield self._short(t_ns, source, destination, datagram[at:])
                return
            header = long_header(datagram, at)
            if header is None:
                self.undecrypted += 1
                return
            version, space, dcid, scid, number_offset, end = header
            packet = datagram[at:end]
            yield self._long(
                t_ns, source, destination, packet, version, space, dcid, scid, number_offset - at
            )
            at = end

    # long headers

    def _long(
        self,
        t_ns: int,
        source: str,
        destination: str,
        packet: bytes,
        version: int,
        space: Space,
        dcid: bytes,
        scid: bytes,
        number_offset: int,
    ) -> Packet:
        connection, direction = self._owner(dcid, source, destination)
        if connection is None and space is Space.INITIAL:
            connection = self._new_connection(source, version, dcid, packet, number_offset)
            direction = Direction.TO_SERVER
        if connection is None or direction is None or space is Space.RETRY:
            if space is not Space.RETRY:
                self.undecrypted += 1
            index = connection.index if connection else -1
            return Packet(
                t_ns, source, destination, index, direction, space, None, None, len(packet), dcid, None
            )
        self._learn(scid, connection, _opposite(direction))
        if direction is Direction.TO_CLIENT:
            connection.version = version  # the server chooses (RFC 9368 §2.3)
        if space is Space.INITIAL:
            self._prepare_initial(connection, version, direction, dcid, packet, number_offset)
        return self._open(
            t_ns, source, destination, packet, connection, direction, space, version, number_offset, dcid
        )

    def _new_connection(
        self, client: str, version: int, dcid: bytes, packet: bytes, number_offset: int
    ) -> _Connection | None:
        protection = PacketProtection(INITIAL_SUITE, initial_secrets(version, dcid)[0], version)
        if protection.open(packet, number_offset) is None:
            return None
        connection = _Connection(len(self._connections), client, version)
        connection.original_cid = dcid
        self._connections.append(connection)
        self._by_client[client] = connection
        self._learn(dcid, connection, Direction.TO_SERVER)
        return connection

    def _prepare_initial(
        self,
        connection: _Connection,
        version: int,
        direction: Direction,
        dcid: bytes,
        packet: bytes,
        number_offset: int,
    ) -> None:
        """Initial keys come from the client's first ID; after a Retry from the one it was given."""
        key = (Space.INITIAL, direction, version)
        known = connection.protection.get(key)
        if known is not None and direction is Direction.TO_CLIENT:
            return
        if known is not None and known.open(packet, number_offset) is not None:
            return
        for candidate in (connection.original_cid, dcid):
            secrets = initial_secrets(version, candidate)
            fresh = PacketProtection(INITIAL_SUITE, secrets[direction is Direction.TO_CLIENT], version)
            if fresh.open(packet, number_offset) is not None:
                connection.original_cid = candidate
                connection.protection[key] = fresh
                return

    # short headers

    def _short(self, t_ns: int, source: str, destination: str, packet: bytes) -> Packet:
        for length in self._cid_lengths:
            dcid = packet[1 : 1 + length]
            connection, direction = self._owner(dcid, source, destination)
            if connection is not None and direction is not None:
                return self._open(
                    t_ns,
                    source,
                    destination,
                    packet,
                    connection,
                    direction,
                    Space.ONE_RTT,
                    connection.version,
                    1 + length,
                    dcid,
                )
        found = self._try_all(source, destination, packet)
        if found is None:
            self.undecrypted += 1
            return Packet(
                t_ns, source, destination, -1, None, Space.ONE_RTT, None, None, len(packet), b"", None
            )
        connection, direction = found
        dcid = packet[1 : 1 + _DEFAULT_CID_BYTES]
        return self._open(
            t_ns,
            source,
            destination,
            packet,
            connection,
            direction,
            Space.ONE_RTT,
            connection.version,
            1 + len(dcid),
            dcid,
        )

    def _try_all(self, source: str, destination: str, packet: bytes) -> tuple[_Connection, Direction] | None:
        """Find the connection of a packet with an unknown ID by trying secrets on it."""
        flow = (source, destination)
        tried = self._trials.get(flow, 0)
        if (
            not packet[0] & 0x40 or tried >= _TRIALS_PER_FLOW or len(packet) < 29
        ):  # no sample (RFC 9001 §5.4.2)
            return None
        self._trials[flow] = tried + 1
        dcid = packet[1 : 1 + _DEFAULT_CID_BYTES]
        for connection in self._connections:
            for direction in Direction:
                protection = connection.protection.get((Space.ONE_RTT, direction, connection.version))
                if protection is not None and protection.open(packet, 1 + len(dcid)) is not None:
                    self._learn(dcid, connection, direction)
                    return connection, direction
        taken = {connection.client_random for connection in self._connections}
        for random, secrets in self._keylog.items():
            if random in taken:
                continue
            for direction in Direction:
                secret = secrets.get(_LABELS[Space.ONE_RTT, direction])
                if secret is None:
                    continue
                for suite, (algorithm, _, _) in SUITES.items():
                    if len(secret) != hashlib.new(algorithm).digest_size:
                        continue
                    if PacketProtection(suite, secret, VERSION_1).open(packet, 1 + len(dcid)) is None:
                        continue
                    client = source if direction is Direction.TO_SERVER else destination
                    connection = _Connection(len(self._connections), client, VERSION_1)
                    connection.client_random, connection.suite = random, suite
                    self._connections.append(connection)
                    self._by_client[client] = connection
                    self._make_protection(connection)
                    self._learn(dcid, connection, direction)
                    return connection, direction
        return None

    # both

    def _owner(
        self, dcid: bytes, source: str, destination: str
    ) -> tuple[_Connection | None, Direction | None]:
        if dcid:
            return self._by_cid.get(dcid, (None, None))
        connection = self._by_client.get(destination)
        if connection is not None:
            return connection, Direction.TO_CLIENT
        connection = self._by_client.get(source)
        return connection, Direction.TO_SERVER if connection is not None else None

    def _learn(self, cid: bytes, connection: _Connection, direction: Direction) -> None:
        """Packets with this destination ID belong to the connection and go that way."""
        if len(cid) not in self._cid_lengths:
            self._cid_lengths = tuple(sorted({*self._cid_lengths, len(cid)}, reverse=True))
        if cid:
            self._by_cid.setdefault(cid, (connection, direction))

    def _make_protection(self, connection: _Connection) -> None:
        if connection.client_random is None or connection.suite is None:
            return
        secrets = self._keylog.get(connection.client_random, {})
        for (space, direction), label in _LABELS.items():
            key = (space, direction, connection.version)
            if label in secrets and key not in connection.protection:
                connection.protection[key] = PacketProtection(
                    connection.suite, secrets[label], connection.version
                )

    def _early_protection(
        self, connection: _Connection, version: int, packet: bytes, number_offset: int
    ) -> None:
        """0-RTT comes before ServerHello: its suite is the ticket's, and the packet itself tells which."""
        key = (Space.ZERO_RTT, Direction.TO_SERVER, version)
        label = _LABELS[Space.ZERO_RTT, Direction.TO_SERVER]
        secret = self._keylog.get(connection.client_random or b"", {}).get(label)
        if secret is None or key in connection.protection:
            return
        for suite, (algorithm, _, _) in SUITES.items():
            if len(secret) == hashlib.new(algorithm).digest_size:
                protection = PacketProtection(suite, secret, version)
                if protection.open(packet, number_offset) is not None:
                    connection.protection[key] = protection
                    return

    def _open(
        self,
        t_ns: int,
        source: str,
        destination: str,
        packet: bytes,
        connection: _Connection,
        direction: Direction,
        space: Space,
        version: int,
        number_offset: int,
        dcid: bytes,
    ) -> Packet:
        if space is Space.ZERO_RTT:
            self._early_protection(connection, version, packet, number_offset)
        protection = connection.protection.get((space, direction, version))
        opened = protection.open(packet, number_offset) if protection is not None else None
        frames: list[Frame] | None = None
        repeated = reused = False
        if opened is None:
            self.undecrypted += 1
            return Packet(
                t_ns,
                source,
                destination,
                connection.index,
                direction,
                space,
                None,
                None,
                len(packet),
                dcid,
                None,
            )
        digest = hashlib.blake2b(packet[number_offset:], digest_size=8).digest()
        key = (space, direction, opened.generation, opened.packet_number)
        before = connection.seen.setdefault(key, digest)
        if before is not digest:
            repeated, reused = before == digest, before != digest
        try:
            frames = parse_frames(opened.payload)
        except CaptureError:
            self.undecrypted += 1
        for frame in frames or ():
            if frame.name == "CRYPTO" and space is Space.INITIAL and not connection.secrets_wanted():
                self._handshake(connection, direction, frame)
            elif frame.name == "NEW_CONNECTION_ID":
                self._learn(frame.data, connection, _opposite(direction))
        return Packet(
            t_ns,
            source,
            destination,
            connection.index,
            direction,
            space,
            opened.packet_number,
            opened.generation,
            len(packet),
            dcid,
            frames,
            repeated,
            reused,
        )

    def _handshake(self, connection: _Connection, direction: Direction, frame: Frame) -> None:
        """Take the client's random and the cipher suite out of the two hellos (RFC 8446 §4.1)."""
        hello = connection.hello[direction].add(frame.offset or 0, frame.data)
        if direction is Direction.TO_SERVER and len(hello) >= 38 and hello[0] == 1:
            connection.client_random = hello[6:38]
        elif direction is Direction.TO_CLIENT and len(hello) >= 39 and hello[0] == 2:
            at = 39 + hello[38]
            suite = int.from_bytes(hello[at : at + 2], "big")
            if suite in SUITES:
                connection.suite = suite
        self._make_protection(connection)


def _opposite(direction: Direction) -> Direction:
    return Direction.TO_CLIENT if direction is Direction.TO_SERVER else Direction.TO_SERVER
