"""What a node agent is told when it is started, as a JSON file."""

from __future__ import annotations

import msgspec

from quicferry.migration.agent.failpoints import Failpoints
from quicferry.migration.container.volumes import ContainerFiles
from quicferry.migration.datagrams.moving_address import MovingAddressConfig
from quicferry.migration.datagrams.waiting_room import CAPACITY
from quicferry.migration.order import PlannedMove
from quicferry.migration.rpc.credentials import TlsFiles
from quicferry.model import Endpoint

#: Inside the container: the same for every server, so that servers of one version are started alike.
CONFIG_INSIDE = "/run/server.json"


class ServerCommand(msgspec.Struct, frozen=True, kw_only=True):
    """How a process is started in the container. ``env`` None: the agent's own environment."""

    argv: list[str]
    env: dict[str, str] | None = None
    config: str | None = None  # a file that is copied to CONFIG_INSIDE of the container before


class LocalMove(PlannedMove, frozen=True, kw_only=True):
    """What SIGUSR1 sets off, for strategies that need no orchestrator. The epoch is the next one."""


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All a node agent is told, as a JSON file."""

    edge: str  # this host's name, also the name in its certificate
    listen: Endpoint  # for RPC, reachable by orchestrator and other agents
    peers: dict[str, Endpoint]  # edge name -> its agent's RPC endpoint, on the inter-edge link
    detours: dict[str, Endpoint] = {}  # the same agents by way of the core network
    orchestrators: list[str] = []  # who may order moves and start and stop the server, by certificate
    detour_rtt_ms: float = (
        0.0  # round trip of the detours, the longest way to this agent; 0: not worth a word
    )
    tls: TlsFiles
    service: ServerCommand  # the server
    standby: ServerCommand | None = None  # the warm server, for engines that need one
    base_image: ServerCommand | None = None  # an idle server of the same version, never reached by anybody
    server_ready: str = "/run/server.jsonl"  # inside the container: what it writes when it is ready
    control: Endpoint = Endpoint("127.0.0.1", 4434)  # the server's, see control.py
    service_address: Endpoint | None = None  # where clients reach a server on this host
    client_interfaces: list[str] = []  # where datagrams for the service arrive; none: no tap, no room
    waiting_room: Endpoint = Endpoint("0.0.0.0", 4436)  # 0.0.0.0: at the address for RPC
    waiting_room_capacity: int = CAPACITY
    #: clients are told in the handshake that the server may come here (RFC 9000 §9.6), and one without the
    #: extension asks here only then: what comes before the first move is kept for it, too
    early_visitors: bool = False
    forward_from: list[str] = []  # addresses that other edges forward from; empty: the peers' addresses
    linger_s: float = 10.0  # late datagrams are handed on this long after the commit
    start_ahead: bool = (
        False  # the server is started with the agent; the order to start it waits until it answers
    )
    start_timeout_s: float = 20.0  # until a started server answers
    collect: list[str] = []  # files inside the container that CollectFiles sends; may be glob patterns
    events: str | None = None  # this agent's own event file; None: JSON lines on stdout
    journal: str | None = None
    container_record: str | None = None  # with it, container and server outlive an agent that is killed
    oci_readable: list[str] | None = None  # the server is an OCI container that may read these directories
    oci_by_podman: bool = False  # Podman makes that container
    oci_files: ContainerFiles | None = None  # what else it is given, and may write
    on_signal: LocalMove | None = None
    on_request: LocalMove | None = None  # what a client sets off that asks its server to move; None: refused
    requests: Endpoint = Endpoint("127.0.0.1", 4437)  # where the server hands such requests on
    later: list[LocalMove] = []  # after that first move has led the server away: the next one, and so on
    failpoints: Failpoints = Failpoints()  # for fault injection
    moving_address: MovingAddressConfig | None = None  # one that moves with the server
    keep_tcp: bool = False  # established TCP connections move with the server; only where the address does
