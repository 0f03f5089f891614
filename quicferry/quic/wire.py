"""The bytes of the extension: one transport parameter and its frames.

``docs/wire-format.md`` is the specification. This module only encodes and decodes; whether a frame may
come at all is decided in ``client.py`` and ``server.py``.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from aioquic.buffer import Buffer, BufferReadError  # type: ignore[attr-defined]  # re-exported without saying so

from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.frame_types import FrameType as FrameType
from quicferry.quic.request_wire import SmReply as SmReply
from quicferry.quic.request_wire import SmRequest as SmRequest
from quicferry.quic.standard_wire import AlternativeAddress
from quicferry.strategies import StrategyName, rules_of, strategies

#: (host, port): an IPv4 or IPv6 address in its canonical text form, and a UDP port.
Address: TypeAlias = tuple[str, int]

TRANSPORT_PARAMETER_ID = 0x29F5C3A17B
VERSION = 1
MAX_ADDRESSES = 7  # each takes a connection ID of its own (RFC 9000 §9.5)
#: connection IDs that a race of so many takes besides: one is in use on the old path, one is held back for
#: an address that nobody has named and that an authentic packet comes from
CIDS_BESIDE_A_RACE = 2
#: flag of the transport parameter: a client may ask its server to move, and is answered
REQUESTS = 0x01
VARINT_MAX = (1 << 62) - 1


def _strategy_of_bit() -> dict[int, StrategyName]:
    """One bit per strategy in the transport parameter; the number of a strategy in SM_PREPARE is its bit."""
    return {rules.wire_bit: name for name, rules in strategies().items() if rules.extended}


class Result(enum.StrEnum):
    """What became of SM_PREPARE. The last five never cross the wire: nobody was asked."""

    OK = "ok"
    REFUSED = "refused"
    ADDRESS_FILTERED = "address-filtered"
    NO_CID = "no-cid"
    BUSY = "busy"
    NOT_NEGOTIATED = "not-negotiated"
    NOT_CONFIRMED = "not-confirmed"
    NO_POOL = "no-pool"
    NO_ADDRESS = "no-address"
    UNTOLD = "untold"


_RESULT_NUMBERS: dict[Result, int] = {
    Result.OK: 0,
    Result.REFUSED: 1,
    Result.ADDRESS_FILTERED: 2,
    Result.NO_CID: 3,
    Result.BUSY: 4,
}
_RESULT_OF_NUMBER = {number: result for result, number in _RESULT_NUMBERS.items()}


class AbortReason(enum.IntEnum):
    """Why the server stays where it is."""

    UNSPECIFIED = 0
    TRANSFER_FAILED = 1
    RESTORE_FAILED = 2
    DEADLINE = 3
    OPERATOR = 4

    @classmethod
    def named(cls, text: str) -> AbortReason:
        """The reason of that name (``transfer-failed``), or UNSPECIFIED for any other text."""
        return cls.__members__.get(text.upper().replace("-", "_"), cls.UNSPECIFIED)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """The value of the transport parameter ``server_migration``."""

    strategies: frozenset[StrategyName]
    max_addresses: int = MAX_ADDRESSES
    version: int = VERSION
    flags: int = 0

    def encode(self) -> bytes:
        """The whole parameter: identifier, length and value (RFC 9000 §18)."""
        value = Buffer(capacity=64)
        value.push_uint_var(self.version)
        value.push_uint_var(sum(rules_of(strategy).wire_bit for strategy in self.strategies))
        value.push_uint_var(self.max_addresses)
        value.push_uint_var(self.flags)
        buf = Buffer(capacity=96)
        buf.push_uint_var(TRANSPORT_PARAMETER_ID)
        buf.push_uint_var(value.tell())
        buf.push_bytes(value.data)
        return buf.data

    @classmethod
    def decode(cls, value: bytes) -> Parameter:
        """Reads the value. Bits of unknown strategies and flags are ignored.

        Raises ``PeerError`` (TRANSPORT_PARAMETER_ERROR) when it is malformed.
        """
        #: wire-format 3.1: Other bits MUST be ignored
        #: wire-format 3.1: The others MUST be sent as 0
        #: wire-format 3.2: MUST NOT be looked at
        buf = Buffer(data=value)
        try:
            version = buf.pull_uint_var()
            if version != VERSION:  # what follows is that version's business
                return cls(strategies=frozenset(), version=version)
            bits = buf.pull_uint_var()
            max_addresses = buf.pull_uint_var()
            flags = buf.pull_uint_var()
        except BufferReadError as error:
            raise _bad_parameter("it is too short") from error
        if not 1 <= max_addresses <= MAX_ADDRESSES:
            raise _bad_parameter(f"max_addresses is {max_addresses}")
        if not buf.eof():
            raise _bad_parameter("it is too long")
        strategies = frozenset(strategy for bit, strategy in _strategy_of_bit().items() if bits & bit)
        return cls(strategies=strategies, max_addresses=max_addresses, version=version, flags=flags)


def find_parameter(transport_parameters: bytes, wanted: int = TRANSPORT_PARAMETER_ID) -> bytes | None:
    """The value of ``server_migration``, or of another one, among encoded transport parameters, or None.

    Raises ``PeerError`` when it is there twice (RFC 9000 §7.4).
    """
    buf = Buffer(data=transport_parameters)
    found: bytes | None = None
    try:
        while not buf.eof():
            identifier = buf.pull_uint_var()
            value = buf.pull_bytes(buf.pull_uint_var())
            if identifier == wanted:
                if found is not None:
                    raise _bad_parameter("it is there twice")
                found = value
    except BufferReadError as error:
        raise _bad_parameter("the list of transport parameters is cut off") from error
    return found


_IPV4 = 0x01
_IPV6 = 0x02
_POOL = 0x04
_RETIRE = 0x08
_HERE = 0x10


@dataclass(frozen=True, kw_only=True)
class SmAddress:
    """One place the server may move to, or (``retire``) one it will not move to any more.

    ``pool`` marks a member of the pool, which a client may probe on its own when the server falls silent.
    ``here`` says that the server is at this address now; it goes before SM_MIGRATED, in the same packet. An
    address that is named for nothing else has the number ``HERE_ONLY``.
    """

    frame_type: ClassVar[FrameType] = FrameType.SM_ADDRESS

    sequence: int
    ipv4: Address | None = None
    ipv6: Address | None = None
    pool: bool = False
    retire: bool = False
    here: bool = False

    @classmethod
    def of(cls, sequence: int, address: Address, *, pool: bool = False, retire: bool = False) -> SmAddress:
        """A frame for one address of either family."""
        if ipaddress.ip_address(address[0]).version == 4:
            return cls(sequence=sequence, ipv4=address, pool=pool, retire=retire)
        return cls(sequence=sequence, ipv6=address, pool=pool, retire=retire)

    def encode(self) -> bytes:
        """The whole frame."""
        buf = _started(self.frame_type)
        buf.push_uint_var(self.sequence)
        flags = _IPV4 * (self.ipv4 is not None) | _IPV6 * (self.ipv6 is not None)
        buf.push_uint8(flags | _POOL * self.pool | _RETIRE * self.retire | _HERE * self.here)
        if self.ipv4 is not None:
            buf.push_bytes(ipaddress.IPv4Address(self.ipv4[0]).packed)
            buf.push_uint16(self.ipv4[1])
        if self.ipv6 is not None:
            buf.push_bytes(ipaddress.IPv6Address(self.ipv6[0]).packed)
            buf.push_uint16(self.ipv6[1])
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmAddress:
        """Reads what follows the type."""
        #: wire-format 4.1: With 0, Here MUST be set
        sequence = buf.pull_uint_var()
        flags = buf.pull_uint8()
        if not flags & (_IPV4 | _IPV6):
            raise _bad_frame("SM_ADDRESS without an address")
        if sequence == HERE_ONLY and flags & (_POOL | _RETIRE | _HERE) != _HERE:
            raise _bad_frame("SM_ADDRESS: the number 0 names nothing")
        ipv4 = ipv6 = None
        if flags & _IPV4:
            ipv4 = (str(ipaddress.IPv4Address(buf.pull_bytes(4))), buf.pull_uint16())
        if flags & _IPV6:
            ipv6 = (str(ipaddress.IPv6Address(buf.pull_bytes(16))), buf.pull_uint16())
        return cls(
            sequence=sequence,
            ipv4=ipv4,
            ipv6=ipv6,
            pool=bool(flags & _POOL),
            retire=bool(flags & _RETIRE),
            here=bool(flags & _HERE),
        )


#: the number of an address that says where the server is, and names nothing
HERE_ONLY = 0

_SERVER_FIRST = 0x01


@dataclass(frozen=True, kw_only=True)
class SmPrepare:
    """The server is about to move. ``sequences`` name SM_ADDRESS frames; none for Synchronized Symmetric."""

    frame_type: ClassVar[FrameType] = FrameType.SM_PREPARE

    epoch: int
    strategy: StrategyName
    sequences: tuple[int, ...] = ()
    downtime_ms: int
    probe_interval_ms: int
    server_first: bool = False

    def encode(self) -> bytes:
        """The whole frame."""
        buf = _started(self.frame_type)
        buf.push_uint_var(self.epoch)
        buf.push_uint_var(rules_of(self.strategy).wire_bit)
        buf.push_uint_var(len(self.sequences))
        for sequence in self.sequences:
            buf.push_uint_var(sequence)
        buf.push_uint_var(self.downtime_ms)
        buf.push_uint_var(self.probe_interval_ms)
        buf.push_uint8(_SERVER_FIRST * self.server_first)
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmPrepare:
        """Reads what follows the type."""
        epoch = buf.pull_uint_var()
        number = buf.pull_uint_var()
        known = _strategy_of_bit()
        if number not in known:
            raise _bad_frame(f"SM_PREPARE with an unknown strategy {number:#x}")
        count = buf.pull_uint_var()
        if count > MAX_ADDRESSES:
            raise _bad_frame(f"SM_PREPARE with {count} addresses")
        return cls(
            epoch=epoch,
            strategy=known[number],
            sequences=tuple(buf.pull_uint_var() for _ in range(count)),
            downtime_ms=buf.pull_uint_var(),
            probe_interval_ms=buf.pull_uint_var(),
            server_first=bool(buf.pull_uint8() & _SERVER_FIRST),
        )


@dataclass(frozen=True, kw_only=True)
class SmReady:
    """The client's answer to SM_PREPARE, on the old path."""

    frame_type: ClassVar[FrameType] = FrameType.SM_READY

    epoch: int
    result: Result

    def encode(self) -> bytes:
        """The whole frame."""
        buf = _started(self.frame_type)
        buf.push_uint_var(self.epoch)
        buf.push_uint_var(_RESULT_NUMBERS[self.result])
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmReady:
        """Reads what follows the type."""
        epoch = buf.pull_uint_var()
        number = buf.pull_uint_var()
        if number not in _RESULT_OF_NUMBER:
            raise _bad_frame(f"SM_READY with an unknown result {number}")
        return cls(epoch=epoch, result=_RESULT_OF_NUMBER[number])


@dataclass(frozen=True, kw_only=True)
class SmMigrated:
    """The server has moved; sent from the new address."""

    frame_type: ClassVar[FrameType] = FrameType.SM_MIGRATED

    epoch: int

    def encode(self) -> bytes:
        """The whole frame."""
        buf = _started(self.frame_type)
        buf.push_uint_var(self.epoch)
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmMigrated:
        """Reads what follows the type."""
        return cls(epoch=buf.pull_uint_var())


@dataclass(frozen=True, kw_only=True)
class SmAbort:
    """The server stays; sent from the old address."""

    frame_type: ClassVar[FrameType] = FrameType.SM_ABORT

    epoch: int
    reason: int = AbortReason.UNSPECIFIED

    def encode(self) -> bytes:
        """The whole frame."""
        buf = _started(self.frame_type)
        buf.push_uint_var(self.epoch)
        buf.push_uint_var(self.reason)
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmAbort:
        """Reads what follows the type."""
        return cls(epoch=buf.pull_uint_var(), reason=buf.pull_uint_var())


Frame: TypeAlias = (
    SmAddress | SmPrepare | SmReady | SmMigrated | SmAbort | SmRequest | SmReply | AlternativeAddress
)

_CLASSES: dict[int, type[Frame]] = {
    FrameType.SM_ADDRESS: SmAddress,
    FrameType.SM_PREPARE: SmPrepare,
    FrameType.SM_READY: SmReady,
    FrameType.SM_MIGRATED: SmMigrated,
    FrameType.SM_ABORT: SmAbort,
    FrameType.SM_REQUEST: SmRequest,
    FrameType.SM_REPLY: SmReply,
    FrameType.ALTERNATIVE_ADDRESS: AlternativeAddress,
}
#: the types that come with the parameter ``server_migration``
EXTENSION_TYPES = frozenset(FrameType) - {FrameType.ALTERNATIVE_ADDRESS}


def pull_frame(frame_type: int, buf: Buffer) -> Frame:
    """Reads the frame whose type was read already; ``buf`` stands behind it afterwards.

    Raises ``PeerError`` (FRAME_ENCODING_ERROR) when it is malformed or cut off.
    """
    try:
        return _CLASSES[frame_type].pull(buf)
    except BufferReadError as error:
        raise _bad_frame("a frame is cut off") from error


@functools.lru_cache(maxsize=256)  # hundreds of clients are told the same, and it is looked at several times
def decode_frame(data: bytes) -> Frame:
    """Reads one whole frame, as ``encode`` wrote it. Raises ``PeerError``."""
    buf = Buffer(data=data)
    try:
        frame_type = buf.pull_uint_var()
    except BufferReadError as error:
        raise _bad_frame("a frame is cut off") from error
    if frame_type not in _CLASSES:
        raise _bad_frame(f"unknown frame type {frame_type:#x}")
    return pull_frame(frame_type, buf)


def _started(frame_type: FrameType) -> Buffer:
    buf = Buffer(capacity=256)
    buf.push_uint_var(frame_type)
    return buf


def _bad_frame(message: str) -> PeerError:
    return PeerError(ErrorCode.FRAME_ENCODING_ERROR, message)


def _bad_parameter(message: str) -> PeerError:
    return PeerError(ErrorCode.TRANSPORT_PARAMETER_ERROR, f"server_migration: {message}")
