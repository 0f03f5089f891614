"""The configurations of the processes of a run: one JSON file each, given as ``--config FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeVar

import msgspec

from quicferry.errors import InvalidInput
from quicferry.model import Endpoint
from quicferry.quic import Congestion, Probing
from quicferry.strategies import StrategyName, strategies

ALPN = "quicferry/1"
SERVER_NAME = "service.edge.test"
MAX_DATAGRAM_FRAME_BYTES = 65_535  # RFC 9221 section 3: any that fits into a packet
#: application error: "I have moved and you cannot follow me; connect to the address in the reason"
MOVED_ERROR = 0x101
PATIENCES_MOST = 4  # that a client waits in a row while bytes still come: bulk data over a slow path
EXIT_S = 10.0  # a client's time from its last answer to its exit
LEAST_INTERVAL_MS = 5.0  # between two requests of all clients of a run together, when there are many


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A QUIC server, or with ``standby`` one that waits for a hand-off."""

    edge: str
    listen: Endpoint
    control: Endpoint
    events: str  # a file on this host
    fence: str  # a file on this host: says whether the connections were handed over
    certificate: str
    key: str
    pool: list[Endpoint] = []  # candidates that clients are told right after the handshake
    preferred_address: Endpoint | None = None  # what clients are told in the handshake (RFC 9000 §9.6)
    requests: Endpoint | None = None  # where its agent hears that a client asks for a move; None: refused
    strategies: tuple[StrategyName, ...] = msgspec.field(default_factory=lambda: tuple(strategies()))
    extension: bool = True
    congestion: Congestion = Congestion.INITIAL_WINDOW
    tickets: bool = False  # clients may resume their TLS session, and send early data
    standby: bool = False
    expected_connections: int = 1  # with ``standby``: for so many, objects are made ahead
    address_moves: bool = False  # with the server: clients without the extension follow, too
    response_bytes: int = 256
    memory_mib: int = 0  # touched, incompressible memory besides what the server needs
    dirty_mib_s: float = 0.0  # how much of it is rewritten, in MiB per second
    idle_timeout_s: float = 60.0


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A client and its load."""

    server: Endpoint
    authority: str  # the certificate authority's file
    keys: str  # where the secrets go, NSS key log format
    summary: str  # where the ClientSummary goes at the end
    session: str = "client-1"
    clients: int = 1  # of apps.client.multi_client: so many connections, each with a session of its own
    mixed_strategies: bool = (
        False  # of apps.client.multi_client: each of them agrees to one strategy only, in turn
    )
    plain_clients: int = 0  # of apps.client.multi_client: so many of them without the extension
    workload: str = "requests"  # a name in apps.client.workloads
    bit_rate_mbps: float = 4.0  # of a video
    own_load: bool = False  # of apps.client.multi_client: each of them has a load of its own, as one alone
    interval_ms: float = 10.0  # mean time between two requests; 0: as fast as answers come
    request_bytes: int = 64
    download_bytes: int = 0
    upload_bytes: int = 0
    seed: int = 1
    extension: bool = True
    strategies: tuple[StrategyName, ...] = msgspec.field(default_factory=lambda: tuple(strategies()))
    congestion: Congestion = Congestion.INITIAL_WINDOW
    probing: Probing = Probing.RACE
    accept_moves: bool = True  # False: every announcement is answered with "refused"
    idle_timeout_s: float = 60.0
    patience_s: float = 15.0  # how long the client waits at the end while nothing more comes

    @property
    def end_s(self) -> float:
        """The longest from the word to stop to the client's end."""
        return PATIENCES_MOST * self.patience_s + EXIT_S


T = TypeVar("T")


def read_config(program: str, kind: type[T]) -> T:
    """Read the configuration named on the command line of a process of a run.

    Raises ``InvalidInput`` when the file is missing or not of that kind.
    """
    parser = argparse.ArgumentParser(prog=program, description="A process of a run; started by quicferry.")
    parser.add_argument("--config", type=Path, required=True, help="a JSON file written by the run")
    path: Path = parser.parse_args().config
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"{program}: cannot read {path}: {error}") from error
