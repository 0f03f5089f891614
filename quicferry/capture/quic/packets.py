"""The QUIC packets of a capture: as they were captured, and as they are once decrypted."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from quicferry.capture.quic.frames import Frame
from quicferry.capture.quic.headers import Space, long_header
from quicferry.capture.quic.keys import Opened

_FIXED_OR_LONG, _LONG = 0xC0, 0x80


class Direction(enum.StrEnum):
    """Which way a packet goes."""

    TO_SERVER = "to-server"
    TO_CLIENT = "to-client"

    @property
    def opposite(self) -> Direction:
        """The opposite direction."""
        return Direction.TO_CLIENT if self is Direction.TO_SERVER else Direction.TO_SERVER


class Packet(NamedTuple):
    """One QUIC packet of a capture.

    ``frames`` is None when it could not be decrypted. ``repeated`` says that the very same packet
    was seen before (the network doubled it); ``nonce_reused`` that another packet used its key and
    number: the gravest mistake a migration can make.
    """

    t_ns: int
    source: str
    destination: str
    connection: int  # -1: of no known connection
    direction: Direction | None
    space: Space
    packet_number: int | None
    generation: int | None
    size_bytes: int
    destination_cid: bytes
    frames: list[Frame] | None
    repeated: bool = False
    nonce_reused: bool = False


class ProtectedPacket(NamedTuple):
    """One QUIC packet as it was captured, with its protection on.

    A short header tells neither its version nor the length of its destination connection ID: ``short``
    fills them in when the connection is known.
    """

    t_ns: int
    source: str
    destination: str
    data: bytes  # the packet alone, from its first byte to the end of its AEAD tag
    space: Space
    version: int = 0
    destination_cid: bytes = b""
    source_cid: bytes = b""
    number_offset: int = 1  # where the packet number begins in ``data``

    def short(self, cid_bytes: int, version: int) -> ProtectedPacket:
        """This packet with a short header, read with a destination connection ID of that length."""
        end = 1 + cid_bytes
        # a new tuple: ``_replace`` takes three times as long, and most packets of a capture come here
        return ProtectedPacket(
            self.t_ns,
            self.source,
            self.destination,
            self.data,
            self.space,
            version,
            self.data[1:end],
            b"",
            end,
        )

    def decrypted(
        self,
        connection: int,
        direction: Direction,
        opened: Opened,
        frames: list[Frame] | None,
        nonce: tuple[bool, bool],
    ) -> Packet:
        """The packet with its frames; ``nonce`` says whether it is repeated and whether its nonce is."""
        return Packet(
            self.t_ns,
            self.source,
            self.destination,
            connection,
            direction,
            self.space,
            opened.packet_number,
            opened.generation,
            len(self.data),
            self.destination_cid,
            frames,
            *nonce,
        )

    def undecrypted(self, connection: int = -1, direction: Direction | None = None) -> Packet:
        """The packet without frames, as no key opens it."""
        return Packet(
            self.t_ns,
            self.source,
            self.destination,
            connection,
            direction,
            self.space,
            None,
            None,
            len(self.data),
            self.destination_cid,
            None,
        )


def split_datagram(
    t_ns: int, source: str, destination: str, datagram: bytes
) -> Iterator[ProtectedPacket | None]:
    """The packets of a UDP payload (RFC 9000 §12.2); None for a part that is no QUIC packet, the last one."""
    at = 0
    while at < len(datagram):
        if not datagram[at] & _FIXED_OR_LONG:
            if at == 0:  # not QUIC at all; after a packet it is padding
                yield None
            return
        if not datagram[at] & _LONG:
            yield ProtectedPacket(t_ns, source, destination, datagram[at:], Space.ONE_RTT)
            return
        header = long_header(datagram, at)
        if header is None:
            yield None
            return
        yield ProtectedPacket(
            t_ns,
            source,
            destination,
            datagram[at : header.end],
            header.space,
            header.version,
            header.destination_cid,
            header.source_cid,
            header.number_offset - at,
        )
        at = header.end
