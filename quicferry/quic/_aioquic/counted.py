"""``QuicConnection`` that counts the calls by which its state may have changed.

Two looks at a connection that find the same count found the same connection: a copy that was made between
them is still exact. Reading (``get_timer``, ``next_event`` of a connection without events) does not count.
The calls of the packet path are counted where ``HookedConnection`` overrides them, so that they cost no call.
"""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection


class CountedConnection(QuicConnection):
    """A connection with a count of changes; never smaller, and of no meaning in another process."""

    change_count = 0

    def change_connection_id(self) -> None:
        """As upstream."""
        self.change_count += 1
        super().change_connection_id()

    def close(self, error_code: int = 0x0, frame_type: int | None = None, reason_phrase: str = "") -> None:
        """As upstream."""
        self.change_count += 1
        super().close(error_code=error_code, frame_type=frame_type, reason_phrase=reason_phrase)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """As upstream."""
        self.change_count += 1
        super().reset_stream(stream_id, error_code)

    def send_datagram_frame(self, data: bytes) -> None:
        """As upstream."""
        self.change_count += 1
        super().send_datagram_frame(data)

    def send_ping(self, uid: int) -> None:
        """As upstream."""
        self.change_count += 1
        super().send_ping(uid)

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """As upstream."""
        self.change_count += 1
        super().send_stream_data(stream_id, data, end_stream)

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """As upstream."""
        self.change_count += 1
        super().stop_stream(stream_id, error_code)
