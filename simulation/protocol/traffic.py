"""What the applications of the protocol's world do while the server moves: the load of a story."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from simulation import payload
from simulation.protocol.applications import BACKLOG_BYTES
from simulation.protocol.story import Traffic

if TYPE_CHECKING:
    from simulation.protocol.world import ProtocolWorld

PIECES = 150  # requests or pieces of a story, so that long stories cost no more than short ones
MANY = 100  # datagrams at a time: fewer bursts of them say as much
Until = Callable[[], float | None]


class Load:
    """The load of one play, at both ends."""

    def __init__(self, world: ProtocolWorld) -> None:
        self._world = world
        self._reset: Callable[[], None] | None = None  # what was given up, and is reset next

    def begin(self, until_s: Until) -> None:
        """Start what the story wants; it goes on until the time that ``until_s`` gives, once it does."""
        world = self._world
        story = world.story
        expected_s = sum(move.after_s + move.downtime_s + move.served_s for move in story.moves) + 1.0
        every_s = max(story.interval_s, expected_s / PIECES)
        if story.traffic is Traffic.DATAGRAMS and story.size_bytes >= MANY:
            every_s *= 4
        connection = world.client.connection
        if story.traffic is Traffic.DOWNLOAD:
            world.load.ask(connection, 100, story.size_bytes)
        elif story.traffic is Traffic.UPLOAD:
            world.load.ask(connection, story.size_bytes, 100)
        elif story.traffic is not Traffic.IDLE:
            self._piece(every_s, until_s)
        world.client.proceed()

    def _piece(self, every_s: float, until_s: Until) -> None:
        world = self._world
        end_s = until_s()
        over = end_s is not None and world.loop.time() >= end_s
        if world.story.traffic in (Traffic.ECHO, Traffic.RESETS):
            if not over or self._reset is not None:
                self._request()
        else:
            over &= self._served_piece(over)
        if not over:
            world.loop.call_later(every_s, self._piece, every_s, until_s)

    def _request(self) -> None:
        world = self._world
        reset, self._reset = self._reset, None
        if reset is not None:
            reset()
        elif world.story.traffic is Traffic.RESETS and len(world.load.exchanges) % 3 == 2:
            self._reset = world.load.give_up(world.client.connection, world.story.size_bytes)
        else:
            world.load.ask(world.client.connection, 50, world.story.size_bytes)
        world.client.proceed()

    def _served_piece(self, last: bool) -> bool:
        """The server sends of its own accord; a service whose process is stopped does nothing."""
        world = self._world
        server = world.server
        if server is None or server.stopped:
            return False
        if world.story.traffic is Traffic.DATAGRAMS:
            for _ in range(world.story.size_bytes):
                server.connection.send_datagram_frame(b"tick")
                server.proceed()
        elif last or server.connection.unsent_bytes(world.service.feed_stream or 0) < BACKLOG_BYTES:
            self.feed(world.story.size_bytes, last)
        server.proceed()
        return True

    def feed(self, size_bytes: int, last: bool) -> None:
        """A piece of the service's feed; the service's state knows how far it is."""
        world = self._world
        server, service = world.server, world.service
        assert server is not None
        if service.feed_stream is None:
            service.feed_stream = server.connection.get_next_available_stream_id(is_unidirectional=True)
        exchange = world.load.expect(service.feed_stream, 0)
        data = payload.pattern(service.feed_stream, service.feed_sent, size_bytes)
        server.connection.send_stream_data(service.feed_stream, data, last)
        service.feed_sent += size_bytes
        exchange.size_bytes = service.feed_sent
        if last:
            service.feed_stream, service.feed_sent = None, 0
