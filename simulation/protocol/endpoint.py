"""What drives one sans-IO connection: datagrams in, events, datagrams out, one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aioquic.quic.events import QuicEvent

from quicferry.quic import MigratableConnection
from simulation.clock import VirtualLoop
from simulation.network import Address

#: Clocks are late. aioquic compares one time in two forms (sent + delay <= now and sent <= now - delay);
#: where they round apart, a timer would fire for ever at its very instant.
LATE_S = 1e-6


class Endpoint:
    """One end. ``on_event`` handles an event, ``send`` takes a datagram and its destination.

    ``local`` is the address of the host that datagrams come to, None where that is not told.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        connection: MigratableConnection,
        on_event: Callable[[QuicEvent], None],
        send: Callable[[bytes, Address], None],
        local: str | None = None,
    ) -> None:
        self._loop = loop
        self.connection = connection
        self._on_event = on_event
        self._send = send
        self._local = local
        self._timer: asyncio.TimerHandle | None = None
        self.stopped = False
        self.turns = 0

    def receive(self, data: bytes, source: Address) -> None:
        """A datagram has come; ``proceed`` must follow."""
        self.connection.receive_datagram(data, source, self._loop.time(), self._local)
        self._events()

    def proceed(self) -> None:
        """Handle events, send what wants to leave, set the timer."""
        if self.stopped:
            return
        self.turns += 1
        self._events()
        for data, address in self.connection.datagrams_to_send(self._loop.time()):
            self._send(data, (address[0], address[1]))
        self._events()
        self._set_timer()

    def stop(self) -> None:
        """Be silent from now on."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def start(self) -> None:
        """Go on after ``stop``; ``proceed`` must follow."""
        self.stopped = False

    def _events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            self._on_event(event)

    def _set_timer(self) -> None:
        due = self.connection.get_timer()
        when = None if due is None else max(due, self._loop.time()) + LATE_S
        if self._timer is not None:
            if self._timer.when() == when:
                return
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        self.connection.handle_timer(self._loop.time())
        self.proceed()


def client_view(connection: Any) -> dict[str, Any]:
    """What the oracle asks of a client: private members, in one place."""
    return {
        "address": tuple(connection._network_paths[0].addr[:2]),
        "places": _places(connection),
        "spare_ids": len(connection._peer_cid_available),
        "closed": connection._close_event,
        "rtt_s": connection._loss._rtt_smoothed,
        "least_rtt_s": connection._loss._rtt_min,
    }


def _places(connection: Any) -> set[Address]:
    """Where the client would look for its server."""
    role = connection._role
    here = tuple(connection._network_paths[0].addr[:2])
    named = {frame.ipv4 for frame in role._book.known.values() if frame.ipv4 is not None}
    return {here, *role._visited, *named}


def server_view(connection: Any) -> dict[str, Any]:
    """The same of a server."""
    return {
        "address": tuple(connection._network_paths[0].addr[:2]),
        "mute": connection._role is not None and connection._role.mute,
        "closed": connection._close_event,
    }
