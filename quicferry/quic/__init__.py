"""QUIC whose server may move to another address: the extension, sans-IO, on aioquic.

``docs/wire-format.md`` specifies it. No socket, no clock and no asyncio in here.
"""

from quicferry.quic.config import Congestion, ExtensionConfig, Probing, Timings
from quicferry.quic.connection import MigratableConnection
from quicferry.quic.errors import ErrorCode, LocalError, PeerError
from quicferry.quic.events import (
    LossNoticed,
    MigrationAborted,
    MigrationAnnounced,
    MigrationCommitted,
    MigrationFellBack,
    MigrationReady,
    MoveAnswered,
    MoveRequested,
    PathSwitched,
    PathValidated,
    PeerMigrated,
    ProbeStarted,
)
from quicferry.quic.request_wire import Reply
from quicferry.quic.tables import ClientState, ServerState
from quicferry.quic.wire import Address, Result

__all__ = [
    "Address",
    "ClientState",
    "Congestion",
    "ErrorCode",
    "ExtensionConfig",
    "LocalError",
    "LossNoticed",
    "MigratableConnection",
    "MigrationAborted",
    "MigrationAnnounced",
    "MigrationCommitted",
    "MigrationFellBack",
    "MigrationReady",
    "MoveAnswered",
    "MoveRequested",
    "PathSwitched",
    "PathValidated",
    "PeerError",
    "PeerMigrated",
    "ProbeStarted",
    "Probing",
    "Reply",
    "Result",
    "ServerState",
    "Timings",
]
