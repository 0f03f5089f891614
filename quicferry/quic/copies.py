"""Copies of connections that cross while their server still serves: pre-copy, for connections.

    data = copy_connection(connection, now, epoch=7)     at the source, any number of times
    copy = Copy(data, ...)                               at the destination: it is made, and lies still
    connection = copy.take(...)                          after the freeze, where nothing has changed since
    connection = copy.refresh(snapshot, ...)             after the freeze, where something has

``changes`` tells the two apart: the source compares the count when it copied with the count when it freezes.
A copy holds the same secrets as a snapshot, and is bound by the same rules
(``snapshot``): its packet numbers are those of the lease behind the number at the freeze, and it can send
nothing until it was taken and resumed. Whoever takes it names that number, and another one than the copy has
is refused.
"""

from __future__ import annotations

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from quicferry.errors import MigrationError
from quicferry.quic._aioquic import rest
from quicferry.quic._aioquic.rest import changes, next_number
from quicferry.quic._aioquic.state import Build, ack_fresh_until, why_not_movable
from quicferry.quic._aioquic.state_capture import capture
from quicferry.quic._aioquic.state_restore import blank, reconstruct
from quicferry.quic.connection import MigratableConnection
from quicferry.quic.image import KeysImage
from quicferry.quic.snapshot import bind_share, open_snapshot, release_share, seal_snapshot, why_not_frozen

__all__ = ["Copy", "ack_fresh_until", "changes", "copy_connection", "is_at_rest", "next_number"]


def is_at_rest(connection: QuicConnection) -> bool:
    """Whether a copy of it stays exact until the next call that changes it; a freeze would not refuse it."""
    return rest.is_at_rest(connection) and why_not_frozen(connection) is None


def copy_connection(connection: QuicConnection, now: float, *, epoch: int) -> bytes | None:
    """The connection as it is now, for the move number ``epoch``; it goes on. None when it cannot move now.

    Exact only of one that ``is_at_rest``; of another it is what the destination can prepare.
    """
    if why_not_movable(connection) is not None:
        return None
    try:
        return seal_snapshot(capture(connection, now, frozen=False), epoch)
    except MigrationError:  # the service has not taken an event yet
        return None


class Copy:
    """A connection that was copied ahead: all is made, nothing is sent. Raises ``MigrationError``."""

    def __init__(
        self,
        data: bytes,
        *,
        configuration: QuicConfiguration,
        build: Build,
        now: float,
        epoch: int,
        into: QuicConnection | None = None,
    ) -> None:
        self._configuration, self._epoch = configuration, epoch
        self._connection = blank(configuration=configuration, build=build) if into is None else into
        self._known: KeysImage | None = None
        self._put(data, now)

    def _put(self, data: bytes, now: float) -> None:
        moved = open_snapshot(data, self._epoch)
        release_share(self._connection)
        reconstruct(
            moved,
            configuration=self._configuration,
            connection=self._connection,
            now=now,
            known_keys=self._known,
        )
        if isinstance(self._connection, MigratableConnection):
            self._connection.hold()  # as the freeze holds it at the source; until it resumes it is silent
        bind_share(self._connection, moved.packet_number)
        self._known, self._number, self._made_at = moved.keys, moved.packet_number, now

    @property
    def connection(self) -> QuicConnection:
        """The connection, which is not to be used before it was taken or refreshed."""
        return self._connection

    def update(self, data: bytes, now: float) -> None:
        """Take in a newer copy of the same connection, before the freeze."""
        self._put(data, now)

    def refresh(self, data: bytes, now: float) -> QuicConnection:
        """The connection as its snapshot after the freeze has it; ``restore_snapshot`` with the work done."""
        self._put(data, now)
        return self._connection

    def check(self, number: int) -> None:
        """Raise ``MigrationError`` unless the copy is of a connection with that next packet number."""
        if number != self._number:
            raise MigrationError(
                f"a connection was frozen at the packet number {number}, and its copy is at {self._number}"
            )

    def take(self, now: float, *, age_s: float, number: int, owes_ack: bool = False) -> QuicConnection:
        """The connection as it was copied, ``age_s`` before the freeze. ``number``: the next one there.

        ``owes_ack``: whether ``ack_fresh_until`` was not over at the freeze.
        """
        self.check(number)
        rest.pass_time(self._connection, now - self._made_at - age_s, now, owes_ack=owes_ack)
        return self._connection
