"""The QUIC packets of a capture: as they were captured, and as they are once decrypted."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from quicferry.capture.quic.frames import Frame
from quicferry.capture.quic.headers import Space, google_version, long_header
from quicferry.capture.quic.keys import Opened

_LONG = 0x80


class Direction(enum.StrEnum):
    """Which way a packet goes."""

    __hash__ = str.__hash__  # Enum's own is a function in Python, and every packet is looked up by it

    TO_SERVER = "to-server"
    TO_CLIENT = "to-client"

    @property
    def opposite(self) -> Direction:
        """The opposite direction."""
        return Direction.TO_CLIENT if self is Direction.TO_SERVER else Direction.TO_SERVER


class Why(enum.StrEnum):
    """Why a packet could not be opened."""

    OPENED = ""
    NO_SECRETS = "the key log has no secrets of its connection"
    NO_HANDSHAKE = "its connection's handshake is not in the capture, and no secret of the key log opens it"
    NO_EARLY = "the key log has no secret for the early data of its connection"
    NO_HELLO = "the hellos of its connection are not in the capture as a whole"
    WRONG_KEYS = "the keys of its connection do not open it"
    NO_INITIAL = "it is not protected by the key that its connection ID gives"
    CUT_OFF = "the capture has cut it off"
    STATELESS_RESET = "it is a stateless reset, which has nothing to open"
    WRONG_TAG = "it is a Retry whose integrity tag is wrong"
    UNKNOWN_VERSION = "its version is not read"
    GOOGLE = "it is gQUIC, which is not read"
    NOT_QUIC = "it is no QUIC packet"


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
    why: Why = Why.OPENED  # it could not be opened
    version: int = 0  # 0: not known
    source_cid: bytes = b""
    token: bytes = b""  # of Initial and Retry
    supported_versions: tuple[int, ...] = ()  # of version negotiation
    payload: bytes = b""  # decrypted


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
    token: bytes = b""
    missing_bytes: int = 0  # cut off by the capture

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
            b"",
            self.missing_bytes,
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
            Why.OPENED,
            self.version,
            self.source_cid,
            self.token,
            (),
            opened.payload,
        )

    def undecrypted(
        self,
        why: Why,
        connection: int = -1,
        direction: Direction | None = None,
        supported: tuple[int, ...] = (),
    ) -> Packet:
        """The packet without frames; ``why`` is empty when there is nothing in it to be opened."""
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
            False,
            False,
            why,
            self.version,
            self.source_cid,
            self.token,
            supported,
        )


def split_datagram(
    t_ns: int, source: str, destination: str, datagram: bytes, missing_bytes: int = 0
) -> Iterator[ProtectedPacket | None]:
    """The packets of a UDP payload (RFC 9000 §12.2); None for a part that is no QUIC packet, the last one.

    The fixed bit says nothing: it may be greased (RFC 9287).
    """
    at = 0
    end = len(datagram)
    while at < end:
        if not datagram[at] & _LONG:
            if at and not datagram[at:].strip(b"\0"):
                return  # padding behind a packet
            if not at:
                google = google_version(datagram)
                if google is not None:
                    cid = datagram[1:9]
                    yield ProtectedPacket(t_ns, source, destination, datagram, Space.UNKNOWN, google, cid)
                    return
            yield ProtectedPacket(
                t_ns, source, destination, datagram[at:], Space.ONE_RTT, missing_bytes=missing_bytes
            )
            return
        header = long_header(datagram, at, missing_bytes)
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
            header.token,
            max(0, header.end - end),
        )
        at = header.end
