"""Gives back what only a handshake needs: a connection that is idle holds it as long as it lives.

Half of what such a connection takes of a server's memory are three buffers of 16 KiB for TLS messages, of
which no more come once the handshake is confirmed (a server's NewSessionTicket is written with its end, and
RFC 9001 §6 has no KeyUpdate messages), and the epochs in which each frame type is allowed, a set for each.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.connection import QuicConnection

LEAST_BYTES = 64  # a buffer must have some
_epochs: dict[frozenset[tls.Epoch], frozenset[tls.Epoch]] = {}


def give_back(connection: QuicConnection) -> None:
    """After the handshake: nothing of it is written any more."""
    connection._crypto_buffers = {tls.Epoch.ONE_RTT: Buffer(capacity=LEAST_BYTES)}


def share_epochs(connection: QuicConnection) -> None:
    """At the beginning: equal sets of epochs are one set, for all connections of this process."""
    handlers = connection._QuicConnection__frame_handlers  # type: ignore[attr-defined]  # name mangling
    for frame_type, (handler, epochs) in handlers.items():
        handlers[frame_type] = (handler, _epochs.setdefault(epochs, epochs))
