"""Goes through a capture once and tells it packet by packet; keeps the story of each connection.

Memory is constant: connections, flows and streams that were not seen for the longest time are forgotten
when there are very many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from quicferry.capture.files.source import Gap
from quicferry.capture.pcap import UDP, Datagram
from quicferry.capture.quic.decrypt import Decryptor
from quicferry.capture.quic.keys import KeyLog
from quicferry.capture.quic.packets import Packet, Why
from quicferry.capture.quic.versions import Space
from quicferry.inspection.sources import Sighting, Source
from quicferry.inspection.stories import ConnectionStory, Migration
from quicferry.inspection.tcp_stories import TcpInspector, TcpStory, TcpTold

QUIC, TCP_NAME = "quic", "tcp"
_FLOWS_REMEMBERED = 16_384
_STORIES_REMEMBERED = 8_192
#: What says nothing of whether a datagram is QUIC at all.
_MAYBE_NOT_QUIC = frozenset({Why.NO_HANDSHAKE, Why.CUT_OFF})
NOT_QUIC = "datagrams that are no QUIC, or QUIC of which the capture has neither handshake nor secrets"
_FIXED_BIT = 0x40
QUOTED_PLACE = 63  # the bit of what ICMP errors quote: to be quoted is no repetition


class Told(NamedTuple):
    """One captured packet, told."""

    datagram: Datagram
    vantage: str
    protocol: str  # quic or tcp
    connection: int  # -1: of no known one
    path: int  # -1: of none
    packets: list[Packet]  # of QUIC
    segment: TcpTold | None
    migration: Migration | None  # that begins here
    place: int = 0


class Inspector:
    """Tells the packets of one capture, in its order."""

    def __init__(self, keylog: KeyLog) -> None:
        self._decryptor = Decryptor(keylog, bounded=True)
        self._tcp = TcpInspector(keylog)
        self.stories: dict[int, ConnectionStory] = {}
        self.migrations = 0
        self.first_ns: int | None = None
        self.last_ns = 0
        self.told = 0
        self.other_datagrams = 0
        self._first_other = 0
        self._flows: dict[tuple[str, str], Why | None] = {}
        self._ends: set[str] = set()  # the addresses of QUIC's flows
        self._unknown: dict[
            Why, list[int]
        ] = {}  # why -> first number, count; of packets without a connection

    @property
    def tcp_stories(self) -> list[TcpStory]:
        """The TCP connections."""
        return self._tcp.stories

    def tell(self, sighting: Sighting) -> Told | None:
        """Tell one datagram or segment; None for UDP that is not QUIC, as far as can be known."""
        datagram, vantage, place = sighting
        t_ns = datagram.t_ns
        if self.first_ns is None or t_ns < self.first_ns:
            self.first_ns = t_ns
        if t_ns > self.last_ns:
            self.last_ns = t_ns
        if datagram.protocol != UDP:
            segment = self._tcp.feed(datagram, place)
            if segment is None:
                return None
            self.told += 1
            return Told(datagram, vantage, TCP_NAME, segment.connection, -1, [], segment, None, place)
        packets = self._decryptor.feed(
            t_ns,
            datagram.source,
            datagram.destination,
            datagram.payload,
            datagram.missing_bytes,
            QUOTED_PLACE if datagram.quoted else min(place, QUOTED_PLACE - 1),
        )
        if not packets or (packets[0].frames is None and not self._is_quic(packets, datagram)):
            self.other_datagrams += 1
            self._first_other = self._first_other or datagram.number
            return None
        self.told += 1
        connection, path, begun = -1, -1, None
        for packet in packets:
            if packet.connection < 0:
                self._count_unknown(packet, datagram.number)
            elif not datagram.quoted:
                story = self._story(packet.connection, t_ns, place)
                taken, migration = story.take(packet, place, self.migrations)
                connection, path = packet.connection, taken.number
                if migration is not None:
                    self.migrations += 1
                    begun = migration
            else:
                connection = packet.connection
        return Told(datagram, vantage, QUIC, connection, path, packets, None, begun, place)

    def _is_quic(self, packets: list[Packet], datagram: Datagram) -> bool:
        """Whether a datagram of which nothing was opened is QUIC all the same."""
        ends = (datagram.source, datagram.destination)
        flow = ends if ends[0] < ends[1] else ends[::-1]
        first = packets[0]
        if first.connection < 0 and first.space is Space.ONE_RTT and first.why in _MAYBE_NOT_QUIC:
            if flow not in self._flows:
                # another address of somebody who speaks QUIC: a path whose connection IDs are not known
                return bool(datagram.payload[0] & _FIXED_BIT) and not self._ends.isdisjoint(flow)
            known = self._flows[flow]
            if known is not None:
                packets[0] = first._replace(why=known)
            return True
        if len(self._flows) >= _FLOWS_REMEMBERED:
            self._flows.clear()
            self._ends.clear()
        self._ends.update(flow)
        self._flows[flow] = first.why if first.why in (Why.GOOGLE, Why.UNKNOWN_VERSION) else None
        return True

    def _story(self, index: int, t_ns: int, place: int) -> ConnectionStory:
        story = self.stories.get(index)
        if story is None:
            if len(self.stories) >= _STORIES_REMEMBERED:
                del self.stories[next(iter(self.stories))]
            story = self.stories[index] = ConnectionStory(index, t_ns, place)
        return story

    def _count_unknown(self, packet: Packet, number: int) -> None:
        if packet.why:
            self._unknown.setdefault(packet.why, [number, 0])[1] += 1

    def gaps(self) -> list[Gap]:
        """Which packets could not be opened so far, and why; connections have their own counts besides."""
        found = [Gap(f"QUIC packets: {why}", first, count) for why, (first, count) in self._unknown.items()]
        if self.other_datagrams:
            found.append(Gap(NOT_QUIC, self._first_other, self.other_datagrams))
        if self._decryptor.forgotten:
            found.append(
                Gap(
                    "there are so many connections that the oldest were forgotten",
                    0,
                    self._decryptor.forgotten,
                )
            )
        return found

    def group_of(self, index: int) -> str:
        """What names a connection for both endpoints: the client's first destination connection ID."""
        known = self._decryptor.connection(index)
        return known.first_cid.hex() if known is not None else ""

    def secrets_of(self, index: int) -> tuple[bytes | None, int | None]:
        """Client random and cipher suite of a connection, as far as its hellos told them."""
        known = self._decryptor.connection(index)
        return (known.client_random, known.suite) if known is not None else (None, None)


def tell_all(source: Source) -> Iterator[tuple[Inspector, Told]]:
    """Everything that can be told of a source, packet by packet."""
    inspector = Inspector(source.keylog)
    for sighting in source.sightings():
        told = inspector.tell(sighting)
        if told is not None:
            yield inspector, told
