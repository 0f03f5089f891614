"""Tells TCP and MPTCP segment by segment: handshakes, options, retransmissions, TLS that can be opened.

MPTCP is read in both versions (RFC 6824, RFC 8684). Sequence numbers are relative to the SYN's; of a
connection that the capture joins late, to the first segment.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from quicferry.capture.pcap import Datagram
from quicferry.capture.quic.keys import KeyLog
from quicferry.capture.tcp_checksum import is_damaged
from quicferry.capture.tcp_options import MptcpOption, Options, read_options
from quicferry.capture.tls import ACK, FIN, RST, SYN, RecordItem, StreamReassembly, TlsSecrets, TlsStream

_MOST_CONNECTIONS = 8_192
_MOST_WAITING_BYTES = 1 << 22
_PSH, _URG = 0x08, 0x20
_FLAGS = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (_PSH, "PSH"), (ACK, "ACK"), (_URG, "URG"))
_HALF = 1 << 31
_MASK = 0xFFFFFFFF
DAMAGED = "damaged on its way: its checksum is wrong"


class TcpTold(NamedTuple):
    """One TCP segment, told. Numbers are relative."""

    connection: int
    to_server: bool
    flags: tuple[str, ...]
    sequence: int
    acknowledged: int | None
    length: int
    window: int
    options: Options
    note: str  # "", "retransmission", "out of order", "duplicate ACK", "keep-alive", "seen before", DAMAGED
    records: tuple[RecordItem, ...]  # of TLS that the segment completes
    undecrypted: bool


class _Direction:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.first: int | None = None  # sequence number that is 0
        self.next = 0  # relative; behind the last byte that was sent
        self.acknowledged = -1
        self.window = -1
        self.order = StreamReassembly()
        self.waiting_bytes = 0
        self.ahead: set[int] = set()

    def relative(self, number: int, *, is_syn: bool = False) -> int:
        """A sequence number, relative and unwrapped; data begin at 1, with the SYN in the capture or not."""
        if self.first is None:
            self.first = number if is_syn else (number - 1) & _MASK
        difference = (number - self.first - self.next) & _MASK
        return self.next + (difference - (1 << 32) if difference >= _HALF else difference)


class TcpStory:
    """One TCP connection, or one subflow of MPTCP."""

    def __init__(self, index: int, client: str, server: str, t_ns: int, keylog: KeyLog, place: int) -> None:
        self.index = index
        self.client, self.server = client, server
        self.home = place
        self.first_ns = self.last_ns = t_ns
        self.segments = 0
        self.bytes = {True: 0, False: 0}  # of payload, each counted once
        self.retransmissions = 0
        self.handshake = False
        self.syn_sequence: int | None = None
        self.closed = ""
        self.mptcp: int | None = None  # version
        self.master: int | None = None  # the first subflow of the MPTCP connection
        self.keys: dict[bool, bytes] = {}
        self.undecrypted = 0
        self.secrets = TlsSecrets(keylog)
        self.ways = {True: _Direction(), False: _Direction()}
        self.tls: dict[bool, TlsStream | None] = {
            True: TlsStream("CLIENT", self.secrets),
            False: TlsStream("SERVER", self.secrets),
        }

    @property
    def protocol(self) -> str:
        """``TCP``, or MPTCP with its version."""
        return "TCP" if self.mptcp is None else f"MPTCP v{self.mptcp}"


class TcpInspector:
    """All TCP connections of a capture."""

    def __init__(self, keylog: KeyLog) -> None:
        self._keylog = keylog
        self._by_ends: dict[tuple[str, str], TcpStory] = {}
        self._tokens: dict[bytes, int] = {}
        self._count = 0
        self.stories: list[TcpStory] = []

    def feed(self, datagram: Datagram, place: int) -> TcpTold | None:
        """Tell one segment; None when it is cut off within its header."""
        segment = datagram.payload
        size = (segment[12] >> 4) * 4 if len(segment) >= 20 else 0
        if size < 20 or size > len(segment):
            return None
        flags = segment[13]
        story, to_server = self._story(datagram, flags, int.from_bytes(segment[4:8], "big"), place)
        story.last_ns = datagram.t_ns
        story.segments += 1
        options = read_options(segment[20:size])
        payload = segment[size:]
        length = len(payload) + datagram.missing_bytes
        way, back = story.ways[to_server], story.ways[not to_server]
        sequence = way.relative(int.from_bytes(segment[4:8], "big"), is_syn=bool(flags & SYN))
        acknowledged = None
        if flags & ACK:
            acknowledged = back.relative(int.from_bytes(segment[8:12], "big"))
        window = int.from_bytes(segment[14:16], "big")
        note = ""
        records: tuple[RecordItem, ...] = ()
        undecrypted = False
        names = tuple(name for bit, name in _FLAGS if flags & bit)
        is_whole = not (datagram.quoted or datagram.missing_bytes)
        damaged = is_whole and is_damaged(datagram.source, datagram.destination, segment)
        if damaged:
            note = DAMAGED
        elif not datagram.quoted and place == story.home:
            note = self._note(way, flags, sequence, acknowledged, length, window)
            if note == "retransmission":
                story.retransmissions += 1
            records, undecrypted = self._payload(story, to_server, flags, sequence, payload, length)
            if flags & (FIN | RST):
                story.closed = story.closed or ("RST" if flags & RST else "FIN")
        elif not datagram.quoted:
            note = "seen before"
        if not damaged:
            for option in options.mptcp:
                self._mptcp(story, to_server, option, flags)
            story.handshake |= bool(flags & SYN and flags & ACK)
        return TcpTold(
            story.index,
            to_server,
            names,
            sequence,
            acknowledged,
            length,
            window,
            options,
            note,
            records,
            undecrypted,
        )

    def _note(
        self, way: _Direction, flags: int, sequence: int, acknowledged: int | None, length: int, window: int
    ) -> str:
        """What is special about a segment, by the rules that Wireshark's analysis has as well."""
        end = sequence + length + bool(flags & SYN) + bool(flags & FIN)
        note = ""
        if end > sequence:
            if end <= way.next and not (length == 1 and sequence == way.next - 1):
                note = "retransmission"
                if sequence in way.ahead:
                    way.ahead.discard(sequence)
            elif sequence < way.next:
                note = "keep-alive" if length <= 1 else "retransmission"
            elif sequence > way.next and way.next:
                note = "a segment before it is missing"
        elif (
            acknowledged is not None
            and acknowledged == way.acknowledged
            and window == way.window
            and not flags & (SYN | FIN | RST)
        ):
            note = "duplicate ACK"
        way.next = max(way.next, end)
        way.acknowledged = -1 if acknowledged is None else acknowledged
        way.window = window
        return note

    def _payload(
        self, story: TcpStory, to_server: bool, flags: int, sequence: int, payload: bytes, length: int
    ) -> tuple[tuple[RecordItem, ...], bool]:
        """Put a payload into its place and read the TLS records that it completes."""
        way = story.ways[to_server]
        if flags & SYN:
            way.order.begin((sequence + 1) & _MASK)
        released = way.order.add(way.order.relative(sequence & _MASK), payload)
        way.waiting_bytes = max(0, way.waiting_bytes + len(payload) - len(released))
        story.bytes[to_server] += len(released)
        tls = story.tls[to_server]
        if way.waiting_bytes > _MOST_WAITING_BYTES:  # a hole that is never filled
            way.order, way.waiting_bytes = StreamReassembly(), 0
            story.tls[to_server] = tls = None
        if tls is None or not released:
            return (), False
        if tls.is_fresh and released[0] != 22:  # no TLS: nothing of it is kept
            story.tls[to_server] = None
            return (), False
        before = tls.undecrypted
        items = tuple(tls.feed(released))
        if tls.waiting_bytes > _MOST_WAITING_BYTES:
            story.tls[to_server] = None
        undecrypted = tls.undecrypted > before
        story.undecrypted += undecrypted
        return items, undecrypted

    def _mptcp(self, story: TcpStory, to_server: bool, option: MptcpOption, flags: int) -> None:
        if option.name == "MP_CAPABLE":
            if option.version is not None and (flags & SYN or story.mptcp is None):
                story.mptcp = option.version
            if story.master is None:
                story.master = story.index
            for key, owner in ((option.sender_key, to_server), (option.receiver_key, not to_server)):
                if key:
                    story.keys[owner] = key
                    self._tokens[token_of(key, story.mptcp or 0)] = story.index
        elif option.name == "MP_JOIN" and option.token:
            master = self._tokens.get(option.token)
            story.master = master
            if master is not None:
                first = next((each for each in self.stories if each.index == master), None)
                story.mptcp = first.mptcp if first is not None else 1
            elif story.mptcp is None:
                story.mptcp = 1
        elif story.mptcp is None and option.name in ("DSS", "MP_JOIN"):
            story.mptcp = 1 if option.name == "DSS" else story.mptcp

    def _story(self, datagram: Datagram, flags: int, sequence: int, place: int) -> tuple[TcpStory, bool]:
        """The connection of a segment, and whether it goes to the server."""
        ends = (datagram.source, datagram.destination)
        known = self._by_ends.get(ends)
        to_server = True
        if known is None:
            known = self._by_ends.get(ends[::-1])
            to_server = known is None
        begins = bool(flags & SYN) and not flags & ACK
        if known is not None and begins and to_server and known.syn_sequence not in (None, sequence):
            known = None  # the ports are used again
        if known is None:
            # who sends the SYN is the client; without one, who has the higher port
            to_server = not flags & ACK if flags & SYN else _port(ends[0]) >= _port(ends[1])
            client, server = ends if to_server else ends[::-1]
            known = TcpStory(self._count, client, server, datagram.t_ns, self._keylog, place)
            self._count += 1
            self._by_ends[client, server] = known
            self.stories.append(known)
            if len(self.stories) > _MOST_CONNECTIONS:
                old = self.stories.pop(0)
                if self._by_ends.get((old.client, old.server)) is old:
                    del self._by_ends[old.client, old.server]
        else:
            to_server = ends == (known.client, known.server)
        if begins:
            known.syn_sequence = sequence
        return known, to_server


def token_of(key: bytes, version: int) -> bytes:
    """The token of an MPTCP connection: by SHA-1 in version 0, by SHA-256 in version 1."""
    digest = hashlib.sha256(key) if version else hashlib.sha1(key, usedforsecurity=False)
    return digest.digest()[:4]


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])
