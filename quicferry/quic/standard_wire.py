"""The bytes of two standards by which a server says where else it may be.

- ``preferred_address``, a transport parameter of the server (RFC 9000 §18.2): one address of each family,
  with a connection ID and a stateless reset token.
- draft-munizaga-quic-alternative-server-address-02: a transport parameter by which a client says that it
  reads the frame ALTERNATIVE_ADDRESS, and that frame, which has the whole set of addresses each time.

This module only encodes and decodes; what it means is in ``standards.py``.
"""

from __future__ import annotations

import enum
import ipaddress
import itertools
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from aioquic.buffer import Buffer, BufferReadError  # type: ignore[attr-defined]  # re-exported without saying so

from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.frame_types import FrameType

#: (host, port), as ``wire.Address``
_Address: TypeAlias = tuple[str, int]

PREFERRED_ADDRESS_ID = 0x0D
ALTERNATIVE_ADDRESS_ID = 0xFF0969D85C
ENTRIES_MOST = 64  # of one frame; more would not fit into a datagram of 1200 bytes


class EntryType(enum.IntEnum):
    """The address types that every client of the draft knows."""

    CURRENT_PATH = 0x00
    IPV4 = 0x01
    IPV6 = 0x02


@dataclass(frozen=True)
class Entry:
    """One address of the set. Of two, that with the lower ``priority`` is to be tried first."""

    address: _Address
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class AlternativeAddress:
    """All addresses of a server; a frame with a higher ``sequence`` replaces the set.

    ``before`` are better than the client's current path: it validates them at once, and migrates.
    ``after`` are for when the current path fails. In the frame the entry CURRENT_PATH is between them.
    """

    frame_type: ClassVar[FrameType] = FrameType.ALTERNATIVE_ADDRESS

    sequence: int
    before: tuple[Entry, ...] = ()
    after: tuple[Entry, ...] = ()

    def encode(self) -> bytes:
        """The whole frame."""
        buf = Buffer(capacity=64 + 28 * (len(self.before) + len(self.after)))
        buf.push_uint_var(self.frame_type)
        buf.push_uint_var(self.sequence)
        buf.push_uint_var(len(self.before) + 1 + len(self.after))
        for entry in self.before:
            _push_entry(buf, entry)
        buf.push_uint_var(EntryType.CURRENT_PATH)
        for entry in self.after:
            _push_entry(buf, entry)
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> AlternativeAddress:
        """Reads what follows the type. Raises ``PeerError`` and, for a frame that is cut off, upstream's."""
        sequence, count = buf.pull_uint_var(), buf.pull_uint_var()
        if count > ENTRIES_MOST:
            raise _bad_frame(f"with {count} entries")
        sides: list[list[Entry]] = [[]]
        for _ in range(count):
            kind = buf.pull_uint_var()
            if kind == EntryType.CURRENT_PATH:
                sides.append([])
            elif kind in (EntryType.IPV4, EntryType.IPV6):
                sides[-1].append(_pull_entry(buf, kind))
            else:  # its length is not known, so nothing behind it can be read
                raise _bad_frame(f"with an entry of the type {kind:#x}, which was not offered")
        if len(sides) != 2:
            raise _bad_frame(f"with {len(sides) - 1} entries CURRENT_PATH")
        for side in sides:
            priorities = [entry.priority for entry in side]
            if priorities != sorted(priorities):
                raise _bad_frame("whose priorities fall")
        return cls(sequence=sequence, before=tuple(sides[0]), after=tuple(sides[1]))


def _push_entry(buf: Buffer, entry: Entry) -> None:
    host, port = entry.address
    ip = ipaddress.ip_address(host)
    buf.push_uint_var(EntryType.IPV4 if ip.version == 4 else EntryType.IPV6)
    buf.push_uint_var(entry.priority)
    buf.push_bytes(ip.packed)
    buf.push_uint16(port)


def _pull_entry(buf: Buffer, kind: int) -> Entry:
    priority = buf.pull_uint_var()
    packed = buf.pull_bytes(4 if kind == EntryType.IPV4 else 16)
    return Entry((str(ipaddress.ip_address(packed)), buf.pull_uint16()), priority)


def alternative_parameter() -> bytes:
    """The client's parameter: it knows no types but those that all know (an empty list)."""
    buf = Buffer(capacity=16)
    buf.push_uint_var(ALTERNATIVE_ADDRESS_ID)
    buf.push_uint_var(0)
    return buf.data


def check_alternative_parameter(value: bytes) -> None:
    """Raises ``PeerError`` where a client's list of further address types is not strictly increasing."""
    buf = Buffer(data=value)
    types: list[int] = []
    try:
        while not buf.eof():
            types.append(buf.pull_uint_var())
    except BufferReadError as error:
        raise _bad_parameter("it is cut off") from error
    if any(low >= high for low, high in itertools.pairwise(types)):
        raise _bad_parameter("its types do not increase")


def preferred_parameter(addresses: tuple[_Address, ...], connection_id: bytes, reset_token: bytes) -> bytes:
    """The server's parameter: at most one address of each family; one that is missing is all zeros."""
    value = Buffer(capacity=64)
    for version, zeros in ((4, bytes(6)), (6, bytes(18))):
        found = next((a for a in addresses if ipaddress.ip_address(a[0]).version == version), None)
        if found is None:
            value.push_bytes(zeros)
        else:
            value.push_bytes(ipaddress.ip_address(found[0]).packed)
            value.push_uint16(found[1])
    value.push_uint8(len(connection_id))
    value.push_bytes(connection_id)
    value.push_bytes(reset_token)
    buf = Buffer(capacity=80)
    buf.push_uint_var(PREFERRED_ADDRESS_ID)
    buf.push_uint_var(value.tell())
    buf.push_bytes(value.data)
    return buf.data


def _bad_frame(message: str) -> PeerError:
    return PeerError(ErrorCode.FRAME_ENCODING_ERROR, f"ALTERNATIVE_ADDRESS {message}")


def _bad_parameter(message: str) -> PeerError:
    return PeerError(ErrorCode.TRANSPORT_PARAMETER_ERROR, f"alternative_address: {message}")
