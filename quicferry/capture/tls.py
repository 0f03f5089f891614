"""Reads TLS 1.3 over TCP in a capture: reassembles segments, opens records with the key log (RFC 8446).

``TcpTraffic`` takes TCP segments as they were captured and says what each brought: handshake
messages, application data, alerts. A byte counts when the application could have it: a record's at
the segment that completes it, a segment's that came out of order when the hole is filled.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from quicferry.capture.mptcp import DataPiece, Multipath
from quicferry.capture.quic.keys import SUITES, KeyLog, aead_of, expand_label

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
RECORD_HEADER = 5
_HANDSHAKE, _APPLICATION, _ALERT = 22, 23, 21
_FINISHED, _KEY_UPDATE, _CLIENT_HELLO, _SERVER_HELLO = 20, 24, 1, 2

#: TLS handshake message type -> its name in a table
MESSAGES = {
    _CLIENT_HELLO: "CLIENT_HELLO",
    _SERVER_HELLO: "SERVER_HELLO",
    4: "NEW_SESSION_TICKET",
    8: "ENCRYPTED_EXTENSIONS",
    11: "CERTIFICATE",
    15: "CERTIFICATE_VERIFY",
    _FINISHED: "FINISHED",
    _KEY_UPDATE: "KEY_UPDATE",
}
APPLICATION_DATA = "APPLICATION_DATA"


class RecordItem(NamedTuple):
    """A message, data or a flag that a segment brought. ``size_bytes`` is that of its plaintext."""

    name: str
    size_bytes: int = 0
    offset: int = 0  # of application data: how much came before it in this direction
    address: str | None = None  # of MPTCP's signals: what they are about


class Segment(NamedTuple):
    """One captured TCP segment and what it brought."""

    connection: int
    to_server: bool
    sequence: int  # relative to the SYN's
    items: tuple[RecordItem, ...]
    undecrypted: bool  # it completed a record that no secret opens


class TcpHeader(NamedTuple):
    """The fields of a TCP header that are needed (RFC 9293 §3.1)."""

    sequence: int
    flags: int
    payload: bytes


def read_header(segment: bytes) -> TcpHeader | None:
    """Parse a segment; None when it is cut off."""
    if len(segment) < 20:
        return None
    offset = (segment[12] >> 4) * 4
    if offset < 20 or len(segment) < offset:
        return None
    return TcpHeader(int.from_bytes(segment[4:8], "big"), segment[13], segment[offset:])


class StreamReassembly:
    """Reassembles the payloads of one direction in order."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._next = 0
        self._early: dict[int, bytes] = {}

    def begin(self, sequence: int) -> None:
        """The sequence number of the first payload byte."""
        if self._first is None:
            self._first = sequence

    def relative(self, sequence: int) -> int:
        """A sequence number as an offset in the stream, whatever wrapped around."""
        if self._first is None:  # the capture began later than the connection
            self._first = sequence
        difference = (sequence - self._first - self._next) & 0xFFFFFFFF
        if difference >= 1 << 31:
            difference -= 1 << 32
        return self._next + difference

    def add(self, offset: int, data: bytes) -> bytes:
        """Take in a payload; returns what is in order now and was not before."""
        if data:
            known = self._early.get(offset, b"")
            if len(data) > len(known):
                self._early[offset] = data
        released = b""
        for start in sorted(self._early):
            if start > self._next:
                break
            piece = self._early.pop(start)[self._next - start :]
            released += piece
            self._next += len(piece)
        return released


class _RecordKeys:
    """The keys of one direction and one epoch (RFC 8446 §5.3, §7.3)."""

    def __init__(self, suite: int, secret: bytes) -> None:
        self._suite, self._secret = suite, secret
        self._hash, length, _ = SUITES[suite]
        key = expand_label(self._hash, secret, b"key", length)
        self._aead = aead_of(suite, key)
        self._iv = int.from_bytes(expand_label(self._hash, secret, b"iv", 12), "big")
        self._number = 0

    def open(self, record: bytes) -> bytes | None:
        """The inner plaintext with its content type at the end; None when it does not open."""
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        try:
            plain = self._aead.decrypt(nonce, record[RECORD_HEADER:], record[:RECORD_HEADER])
        except InvalidTag:
            return None
        self._number += 1
        return plain.rstrip(b"\0")

    def updated(self) -> _RecordKeys:
        """The keys after a KeyUpdate (RFC 8446 §7.2)."""
        secret = expand_label(self._hash, self._secret, b"traffic upd", len(self._secret))
        return _RecordKeys(self._suite, secret)


class TlsSecrets:
    """What both directions of a connection share: the suite, and the secrets of the client's random."""

    def __init__(self, keylog: KeyLog) -> None:
        self._keylog = keylog
        self.suite: int | None = None
        self.random: bytes | None = None

    def keys(self, who: str, epoch: str) -> _RecordKeys | None:
        """The keys of ``CLIENT`` or ``SERVER`` for ``HANDSHAKE_TRAFFIC_SECRET`` or ``TRAFFIC_SECRET_0``."""
        if self.suite not in SUITES or self.random is None:
            return None
        secret = self._keylog.get(self.random, {}).get(f"{who}_{epoch}")
        return _RecordKeys(self.suite, secret) if secret is not None else None


class TlsStream:
    """One direction of a TLS connection: bytes in order go in, items come out."""

    def __init__(self, who: str, secrets: TlsSecrets) -> None:
        self._who = who
        self._secrets = secrets
        self._buffer = b""
        self._messages = b""  # handshake messages may cross records
        self._keys: _RecordKeys | None = None
        self._epoch = "HANDSHAKE_TRAFFIC_SECRET"
        self._received = 0
        self.undecrypted = 0
        self.is_fresh = True  # nothing has come yet

    @property
    def waiting_bytes(self) -> int:
        """How much has come of records and messages that are not complete."""
        return len(self._buffer) + len(self._messages)

    def feed(self, data: bytes) -> list[RecordItem]:
        """The items of all records that are complete now."""
        self.is_fresh = False
        self._buffer += data
        items: list[RecordItem] = []
        while len(self._buffer) >= RECORD_HEADER:
            size = RECORD_HEADER + int.from_bytes(self._buffer[3:5], "big")
            if len(self._buffer) < size:
                break
            record, self._buffer = self._buffer[:size], self._buffer[size:]
            items += self._record(record)
        return items

    def _record(self, record: bytes) -> list[RecordItem]:
        kind, content = record[0], record[RECORD_HEADER:]
        if kind == _APPLICATION:
            if self._keys is None:
                self._keys = self._secrets.keys(self._who, self._epoch)
            plain = self._keys.open(record) if self._keys is not None else None
            if not plain:
                self.undecrypted += 1
                return []
            kind, content = plain[-1], plain[:-1]
        if kind == _HANDSHAKE:
            return self._handshake(content)
        if kind == _APPLICATION:
            item = RecordItem(APPLICATION_DATA, len(content), self._received)
            self._received += len(content)
            return [item]
        return [RecordItem("ALERT", len(content))] if kind == _ALERT else []

    def _handshake(self, content: bytes) -> list[RecordItem]:
        self._messages += content
        items: list[RecordItem] = []
        while len(self._messages) >= 4:
            size = 4 + int.from_bytes(self._messages[1:4], "big")
            if len(self._messages) < size:
                break
            message, self._messages = self._messages[:size], self._messages[size:]
            items.append(RecordItem(MESSAGES.get(message[0], f"HANDSHAKE_{message[0]}"), size))
            self._learn(message)
        return items

    def _learn(self, message: bytes) -> None:
        if message[0] == _CLIENT_HELLO and len(message) >= 38:
            self._secrets.random = message[6:38]
        elif message[0] == _SERVER_HELLO and len(message) >= 39:
            at = 39 + message[38]  # after the session ID
            self._secrets.suite = int.from_bytes(message[at : at + 2], "big")
        elif message[0] == _FINISHED:
            self._epoch = "TRAFFIC_SECRET_0"
            self._keys = self._secrets.keys(self._who, self._epoch)
        elif message[0] == _KEY_UPDATE and self._keys is not None:
            self._keys = self._keys.updated()


class _TcpConnection:
    """Both directions of one TCP connection."""

    def __init__(self, number: int, keylog: KeyLog) -> None:
        self.number = number
        secrets = TlsSecrets(keylog)
        self.order = {True: StreamReassembly(), False: StreamReassembly()}
        self.data = {True: StreamReassembly(), False: StreamReassembly()}  # of MPTCP: across all subflows
        self.tls = {True: TlsStream("CLIENT", secrets), False: TlsStream("SERVER", secrets)}
        self.client_sequence: int | None = None


class TcpTraffic:
    """All TCP connections to one port in the order of the capture."""

    def __init__(self, keylog: KeyLog, port: int) -> None:
        self._keylog = keylog
        self._suffix = f":{port}"
        self._connections: dict[tuple[str, str], _TcpConnection] = {}
        self._numbered: list[_TcpConnection] = []
        self._multipath = Multipath()
        self.undecrypted = 0

    def feed(self, source: str, destination: str, segment: bytes) -> Segment | None:
        """Take in a segment with its header; None when it is of another port or cut off."""
        to_server = destination.endswith(self._suffix)
        if not to_server and not source.endswith(self._suffix):
            return None
        header = read_header(segment)
        if header is None:
            return None
        ends = (source, destination) if to_server else (destination, source)
        connection = self._connection(ends, header, to_server)
        order = connection.order[to_server]
        items: list[RecordItem] = []
        if header.flags & SYN:
            order.begin((header.sequence + 1) & 0xFFFFFFFF)
            items.append(RecordItem("SYN-ACK" if header.flags & ACK else "SYN"))
        offset = order.relative(header.sequence)
        placed = self._multipath.feed(connection.number, to_server, segment, header.payload)
        if placed is None:
            released = order.add(offset, header.payload)
        else:
            connection = self._numbered[placed.owner]
            items += [RecordItem(signal.name, address=signal.about or None) for signal in placed.signals]
            released = self._in_data_order(connection, to_server, placed.pieces)
        tls = connection.tls[to_server]
        before = tls.undecrypted
        if released:
            items += tls.feed(released)
        for flag, name in ((FIN, "FIN"), (RST, "RST")):
            if header.flags & flag:
                items.append(RecordItem(name))
        if not items:
            items.append(RecordItem("SEGMENT" if header.payload else "ACK"))
        undecrypted = tls.undecrypted > before
        self.undecrypted += undecrypted
        return Segment(connection.number, to_server, offset, tuple(items), undecrypted)

    def _in_data_order(self, connection: _TcpConnection, to_server: bool, pieces: list[DataPiece]) -> bytes:
        """The data of an MPTCP connection that is in order once these pieces of a subflow are added."""
        order = connection.data[to_server]
        begin = self._multipath.begins.get((connection.number, to_server))
        if begin is not None:
            order.begin(begin)
        return b"".join(order.add(order.relative(piece.sequence), piece.data) for piece in pieces)

    def _connection(self, ends: tuple[str, str], header: TcpHeader, to_server: bool) -> _TcpConnection:
        found = self._connections.get(ends)
        begins = to_server and bool(header.flags & SYN)
        # a SYN with another number on the same ports is another connection, not a repeat
        if found is None or (begins and found.client_sequence not in (None, header.sequence)):
            found = self._connections[ends] = _TcpConnection(len(self._numbered), self._keylog)
            self._numbered.append(found)
        if begins:
            found.client_sequence = header.sequence
        return found
