"""TLS session tickets as plain data, so that a server can hand over whose sessions may be resumed."""

from __future__ import annotations

import datetime

import msgspec
from aioquic.tls import CipherSuite, SessionTicket


class PlainTicket(msgspec.Struct, frozen=True, kw_only=True):
    """The server's half of a ticket. aioquic's own class has no None for a missing server name, so msgspec
    would not decode one.
    """

    age_add: int
    cipher_suite: int
    not_valid_after: datetime.datetime
    not_valid_before: datetime.datetime
    resumption_secret: bytes
    server_name: str | None
    ticket: bytes
    max_early_data_size: int | None
    other_extensions: list[tuple[int, bytes]]


def to_plain(ticket: SessionTicket) -> PlainTicket:
    """A ticket as it is handed over."""
    return PlainTicket(
        age_add=ticket.age_add,
        cipher_suite=int(ticket.cipher_suite),
        not_valid_after=ticket.not_valid_after,
        not_valid_before=ticket.not_valid_before,
        resumption_secret=ticket.resumption_secret,
        server_name=ticket.server_name,
        ticket=ticket.ticket,
        max_early_data_size=ticket.max_early_data_size,
        other_extensions=ticket.other_extensions,
    )


def from_plain(ticket: PlainTicket) -> SessionTicket:
    """The ticket that was handed over. Raises ``ValueError`` for an unknown cipher suite."""
    values = msgspec.structs.asdict(ticket)
    return SessionTicket(**values | {"cipher_suite": CipherSuite(ticket.cipher_suite)})
