"""What is told of a connection as a whole: its paths, its migrations, its streams, what was not opened.

A migration is a change of the path that the highest-numbered non-probing packets take (RFC 9000 §9.3), in one
direction first and in the other when the peer follows. Late packets of the old path, which have lower
numbers, are no migration. With several places that saw the connection, that of its first packet decides, and
that is the client's: packets leave there first.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from quicferry.capture.quic.frames import PROBING, Frame
from quicferry.capture.quic.packets import Direction, Packet
from quicferry.capture.quic.ranges import RangeSet
from quicferry.capture.quic.versions import Space, name_of

_MOST_STREAMS = 4096
_MOST_PATHS = 256
_MOST_MIGRATIONS = 1024
_ANNOUNCING = frozenset({"SM_PREPARE", "ALTERNATIVE_SERVER_ADDRESS"})
#: So many packets in a row on another path stand for a switch where nothing can be opened.
_SILENT_SWITCH = 4


class Ends(NamedTuple):
    """The two addresses of a path."""

    client: str
    server: str


class PathStory:
    """One path of a connection. Stamps are nanoseconds since the epoch."""

    def __init__(self, number: int, ends: Ends, t_ns: int) -> None:
        self.number = number
        self.ends = ends
        self.first_ns = t_ns
        self.last_ns = t_ns
        self.packets: dict[Direction, int] = {Direction.TO_SERVER: 0, Direction.TO_CLIENT: 0}
        self.bytes: dict[Direction, int] = {Direction.TO_SERVER: 0, Direction.TO_CLIENT: 0}
        self.challenged_ns: int | None = None
        self.validated_ns: int | None = None
        self.last_data_ns: int | None = None  # stream bytes to the client


class Migration:
    """One change of path. ``number`` counts from 1 through the capture."""

    def __init__(self, number: int, connection: int, old: PathStory, new: PathStory, t_ns: int) -> None:
        self.number = number
        self.connection = connection
        self.old = old
        self.new = new
        self.announced_ns: int | None = None
        self.probed_ns = new.challenged_ns
        self.validated_ns = new.validated_ns
        self.switched_ns = t_ns  # the first non-probing packet on the new path
        self.complete_ns: int | None = None  # the first one in the other direction
        self.last_old_data_ns = old.last_data_ns
        self.first_new_data_ns: int | None = None
        self.reverted = False

    @property
    def who(self) -> str:
        """Whose address is another: ``client``, ``server`` or ``both``."""
        if self.old.ends.client == self.new.ends.client:
            return "server"
        return "client" if self.old.ends.server == self.new.ends.server else "both"

    @property
    def begin_ns(self) -> int:
        """The first sign of it."""
        known = (self.announced_ns, self.last_old_data_ns, self.probed_ns, self.switched_ns)
        return min(each for each in known if each is not None)

    @property
    def end_ns(self) -> int:
        """The last thing that belongs to it."""
        known = (self.switched_ns, self.complete_ns, self.first_new_data_ns, self.validated_ns)
        return max(each for each in known if each is not None)

    @property
    def gap_ms(self) -> float | None:
        """From the last stream bytes to the client on the old path to the first on the new one."""
        if self.last_old_data_ns is None or self.first_new_data_ns is None:
            return None
        return (self.first_new_data_ns - self.last_old_data_ns) / 1e6


class ConnectionStory:
    """One QUIC connection, as far as the capture tells."""

    def __init__(self, index: int, t_ns: int, place: int) -> None:
        self.index = index
        self.home = place
        self.first_ns = t_ns
        self.last_ns = t_ns
        self.version = 0
        self.client = ""
        self.server = ""
        self.packets = 0
        self.opened = 0
        self.unprotected = 0  # Retry and version negotiation
        self.bytes = 0
        self.why: Counter[str] = Counter()
        self.paths: dict[Ends, PathStory] = {}
        self.migrations: list[Migration] = []
        self.new_bytes: dict[Direction, int] = {Direction.TO_SERVER: 0, Direction.TO_CLIENT: 0}
        self.stream_count = 0
        self.key_updates = 0
        self.closed = ""
        self.multipath = False
        self._by_flow: dict[tuple[str, str, Direction], PathStory] = {}
        self._ranges: dict[tuple[Direction, int], RangeSet] = {}
        self._streams: dict[int, None] = {}
        self._current: dict[Direction, PathStory] = {}
        self._highest: dict[Direction, int] = {Direction.TO_SERVER: -1, Direction.TO_CLIENT: -1}
        self._elsewhere: tuple[PathStory | None, int] = (None, 0)
        self._generation = 0
        self._announced_ns: int | None = None

    @property
    def version_name(self) -> str:
        """The version as it is called; ``?`` when no long header told it."""
        return name_of(self.version) if self.version else "?"

    def path(self, packet: Packet, direction: Direction) -> PathStory:
        """The path that a packet takes, known or new."""
        flow = (packet.source, packet.destination, direction)
        found = self._by_flow.get(flow)
        if found is None:
            found = self._new_path(packet, direction)
            if len(self._by_flow) < 4 * _MOST_PATHS:
                self._by_flow[flow] = found
        return found

    def _new_path(self, packet: Packet, direction: Direction) -> PathStory:
        to_server = direction is Direction.TO_SERVER
        ends = (
            Ends(packet.source, packet.destination) if to_server else Ends(packet.destination, packet.source)
        )
        known = self.paths.get(ends)
        if known is None:
            if not self.paths:
                self.client, self.server = ends
            number = len(self.paths)
            known = PathStory(number, ends, packet.t_ns)
            if number < _MOST_PATHS:
                self.paths[ends] = known
        return known

    def take(self, packet: Packet, place: int, count: int) -> tuple[PathStory, Migration | None]:
        """Add a packet of this connection; returns its path, and a migration that it begins.

        ``count``: how many migrations the capture has had so far.
        """
        direction = packet.direction or Direction.TO_SERVER
        path = self.path(packet, direction)
        self.packets += 1
        self.bytes += packet.size_bytes
        self.last_ns = path.last_ns = packet.t_ns
        path.packets[direction] += 1
        path.bytes[direction] += packet.size_bytes
        if packet.version:
            self.version = packet.version
        if packet.frames is None:
            if packet.why:
                self.why[packet.why] += 1
            else:
                self.unprotected += 1
            if packet.space is Space.ONE_RTT and place == self.home:
                return path, self._unopened(path, packet.t_ns, count)
            return path, None
        self.opened += 1
        if packet.generation is not None and packet.generation > self._generation:
            self._generation = packet.generation
            self.key_updates += 1
        if place != self.home:
            return path, None
        probing = True
        gained = False
        for frame in packet.frames:
            if frame.name == "STREAM":
                probing = False
                gained = self._stream(frame, direction) or gained
            else:
                if frame.name not in PROBING:
                    probing = False
                self._note(frame, path, packet.t_ns)
        begun = None
        if packet.space is Space.ONE_RTT and not probing:
            begun = self._follow(path, direction, packet, count)
        if gained and direction is Direction.TO_CLIENT:
            path.last_data_ns = packet.t_ns
            if self.migrations:
                last = self.migrations[-1]
                if last.first_new_data_ns is None and path is last.new:
                    last.first_new_data_ns = packet.t_ns
        return path, begun

    def _stream(self, frame: Frame, direction: Direction) -> bool:
        """Count a STREAM frame; whether it brought bytes that had not been seen."""
        stream = frame.stream_id or 0
        if stream not in self._streams:
            self._streams[stream] = None
            self.stream_count += 1
            if len(self._streams) > _MOST_STREAMS:  # the memory stays constant
                old = next(iter(self._streams))
                del self._streams[old]
                for way in Direction:
                    self._ranges.pop((way, old), None)
        key = (direction, stream)
        ranges = self._ranges.get(key)
        if ranges is None:
            ranges = self._ranges[key] = RangeSet()
        offset = frame.offset or 0
        new = ranges.add(offset, offset + (frame.length or 0))
        self.new_bytes[direction] += new
        return new > 0

    def _note(self, frame: Frame, path: PathStory, t_ns: int) -> None:
        name = frame.name
        if name == "PATH_CHALLENGE":
            if path.challenged_ns is None:
                path.challenged_ns = t_ns
        elif name == "PATH_RESPONSE":
            if path.validated_ns is None:
                path.validated_ns = t_ns
                if self.migrations and self.migrations[-1].new is path:
                    self.migrations[-1].validated_ns = t_ns
        elif name == "PATH_ACK":
            self.multipath = True
        elif name == "CONNECTION_CLOSE":
            self.closed = self.closed or (frame.data.decode("utf-8", "replace") or "without a reason")
        elif name in _ANNOUNCING:
            self._announced_ns = t_ns

    def _follow(self, path: PathStory, direction: Direction, packet: Packet, count: int) -> Migration | None:
        """Follow the highest-numbered non-probing packet to its path."""
        number = packet.packet_number or 0
        if number <= self._highest[direction]:
            return None
        self._highest[direction] = number
        current = self._current.get(direction)
        self._current[direction] = path
        if current is None:
            self._current.setdefault(direction.opposite, path)
            return None
        if current is path or self.multipath:
            return None
        return self._switch(current, path, packet.t_ns, count)

    def _switch(self, current: PathStory, path: PathStory, t_ns: int, count: int) -> Migration | None:
        last = self.migrations[-1] if self.migrations else None
        if last is not None and last.complete_ns is None:
            if last.new is path:
                last.complete_ns = t_ns
                return None
            if last.old is path:
                last.reverted = True
                last.complete_ns = t_ns
                return None
        if len(self.migrations) >= _MOST_MIGRATIONS:
            return None
        migration = Migration(count + 1, self.index, current, path, t_ns)
        migration.announced_ns, self._announced_ns = self._announced_ns, None
        self.migrations.append(migration)
        return migration

    def _unopened(self, path: PathStory, t_ns: int, count: int) -> Migration | None:
        """Where nothing can be opened: a path that some packets in a row take is the current one."""
        if self._highest[Direction.TO_SERVER] >= 0 or self._highest[Direction.TO_CLIENT] >= 0:
            return None
        way = Direction.TO_SERVER  # both directions together: numbers are not known
        current = self._current.setdefault(way, path)
        if current is path:
            self._elsewhere = (None, 0)
            return None
        seen = self._elsewhere[1] + 1 if self._elsewhere[0] is path else 1
        self._elsewhere = (path, seen)
        if seen < _SILENT_SWITCH:
            return None
        self._elsewhere = (None, 0)
        self._current[way] = path
        migration = self._switch(current, path, t_ns, count)
        if migration is not None:
            migration.complete_ns = t_ns
        return migration
