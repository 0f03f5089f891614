"""What a run is asked to be: one checked value, from the command line or a scenario file to the result.

``RunSpec`` is the one place in which an axis is written: its name, type, unit, bounds, default and text.
Options of the command line, keys of scenario files, the JSON of manifests and ``docs/axes.md`` are made
from it. ``session.request`` checks a spec, once; from there on it is only read.
"""

from __future__ import annotations

import enum
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from quicferry.strategies import Strategy, StrategyName


class ReadBy(enum.StrEnum):
    """Who reads an axis. What nobody reads who takes part in a run has no effect in it, and is refused."""

    ALL = "all"  # every run
    EXTENSION = "extension"  # runs with a strategy: our own client and server
    ENGINES = "engines"  # runs in which the server moves
    BASELINES = "baselines"  # of the baselines those that name it, see ``baselines.registry.Baseline``


def _axis(
    text: str,
    unit: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    read_by: ReadBy = ReadBy.ALL,
    network: bool = False,
) -> Meta:
    """The description of one axis; ``network``: it shapes the topology."""
    extra = {"unit": unit, "read_by": read_by, "network": network}
    return Meta(description=text, ge=least, le=most, extra=extra)


#: An axis that shapes the network; a topology may know only some of them.
_network = partial(_axis, network=True)


class FaultPoint(enum.StrEnum):
    """A point of a move at which something can go wrong."""

    PREPARE = "prepare"
    COPY = "copy"
    NOTICE = "notice"
    CHECKPOINT = "checkpoint"
    DUMP = "dump"
    TRANSFER = "transfer"
    RESTORE = "restore"
    COMMIT = "commit"
    PAGES = "pages"


class FaultKind(enum.StrEnum):
    """What goes wrong."""

    DESTINATION_FULL = "destination-full"
    DISK_FULL = "disk-full"
    RESTORE_FAILS = "restore-fails"
    IMAGE_CORRUPTED = "image-corrupted"
    LINK_CUT = "link-cut"
    LINK_LOST = "link-lost"
    SOURCE_AGENT_KILLED = "source-agent-killed"
    DESTINATION_AGENT_KILLED = "destination-agent-killed"
    ORCHESTRATOR_KILLED = "orchestrator-killed"
    CRIU_KILLED = "criu-killed"
    CLIENT_SILENT = "client-silent"
    CLIENT_REFUSING = "client-refusing"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of a run; ``experiment.faults`` has the table of those that there are."""

    point: FaultPoint
    kind: FaultKind
    seconds: float | None  # how long it lasts; None: for good
    words: str  # as it was asked for: ``<point>:<kind>`` or ``<point>:<kind>=<seconds>``

    @property
    def name(self) -> str:
        """As on the command line, without its duration."""
        return f"{self.point}:{self.kind}"


_MS, _MIB, _MBPS, _S = "ms", "MiB", "Mbit/s", "s"
_EXTENSION, _BASELINES, _ENGINES = ReadBy.EXTENSION, ReadBy.BASELINES, ReadBy.ENGINES
RttMs = Annotated[
    float,
    _network("Round-trip time between client and source edge; none: as rtt_ms.", _MS, least=0, most=4000),
]
RateMbps = Annotated[
    float,
    _network("Rate of the client's access link, each way; none: no limit.", _MBPS, least=0.001, most=100_000),
]
LossBurst = Annotated[
    float,
    _axis(
        "Mean length of a burst of losses, loss_percent in all (Gilbert-Elliott); none: no bursts.",
        "packets", least=1, most=1_000_000,
    ),
]  # fmt: skip
RateTrace = Annotated[
    str, _axis("A Mahimahi trace by which the rate of the client's access link changes; none: it does not.")
]
Flap = Annotated[
    str,
    _axis(
        "When links are cut: WHERE@START+LENGTH in seconds of the load, several joined by commas. WHERE is "
        "`up`, `down` or `access` for the client's link, `A>B` or `A--B` for any other; none: never."
    ),
]
DowntimeMs = Annotated[
    float,
    _axis(
        "How long a server that no engine moves stands still; none: as long as the engine takes.",
        _MS, least=0, most=600_000, read_by=_BASELINES,
    ),
]  # fmt: skip
ImageDirectory = Annotated[
    str,
    _axis(
        "The container's image: unpacked bundle, OCI layout or root directory; none: the system's files.",
    ),
]
ContainerCommand = Annotated[
    str,
    _axis("What the container runs; {server} stands for the packaged server, else --config FILE is added."),
]
ContainerVolumes = Annotated[
    str, _axis("Volumes, with commas: NAME:/path moves along, /directory:/path:ro is read on every host.")
]
BaselineName = Annotated[str, _axis("An alternative to the extension that is run instead of a strategy.")]


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a run is asked to be: the axes of an experiment, one value each."""

    topology: Annotated[
        str,
        _axis("The emulated network: NAME or NAME,PARAMETER=VALUE, see `quicferry topo list`; or FILE.toml."),
    ] = "two_edges"
    ip: Annotated[
        Literal["4", "6", "dual"],
        _network("IP version of the whole network; dual has both, and clients prefer IPv6."),
    ] = "4"
    strategy: Annotated[
        StrategyName, _axis("How client and server find each other again.", read_by=_EXTENSION)
    ] = Strategy.PROACTIVE_EXPLICIT
    baseline: BaselineName | None = None
    engine: Annotated[str, _axis("How the server's process moves.")] = "handoff"
    server_first: Annotated[
        bool, _axis("The variant in which the restored server sends at once.", read_by=_EXTENSION)
    ] = False
    pool: Annotated[
        int,
        _network(
            "How many addresses the client is given as candidates, the true one among them (strategy pool).",
            "addresses", least=1, most=7, read_by=_EXTENSION,
        ),
    ] = 1  # fmt: skip
    probing: Annotated[
        Literal["race", "one-by-one"],
        _axis(
            "How the client looks for the server among its candidates (strategy pool): all at once, or as "
            "published one after another, each waited for twice as long.",
            read_by=_EXTENSION,
        ),
    ] = "race"
    rtt_ms: Annotated[
        float,
        _network("Round-trip time between client and destination edge.", _MS, least=0, most=4000),
    ] = 18.0
    source_rtt_ms: RttMs | None = None
    jitter_ms: Annotated[
        float,
        _network(
            "Standard deviation of each one-way delay between core and edges.",
            _MS, least=0, most=1000,
        ),
    ] = 0.0  # fmt: skip
    loss_percent: Annotated[
        float,
        _network("Packets lost on the client's access link, each way.", "%", least=0, most=100),
    ] = 0.0
    rate_mbps: RateMbps | None = None
    loss_burst_packets: LossBurst | None = None
    reorder_percent: Annotated[
        float,
        _axis(
            "Packets that overtake those before them, where the client's way is delayed.",
            "%",
            least=0,
            most=100,
        ),
    ] = 0.0
    duplicate_percent: Annotated[
        float, _axis("Packets on the client's access link that come twice.", "%", least=0, most=100)
    ] = 0.0
    corrupt_percent: Annotated[
        float,
        _axis("Packets on the client's access link of which one bit is flipped.", "%", least=0, most=100),
    ] = 0.0
    rate_trace: RateTrace | None = None
    flap: Flap | None = None
    inter_edge_mbps: Annotated[
        float,
        _network(
            "Rate of the link between the edges, which the server's state crosses.",
            _MBPS, least=0.001, most=100_000,
        ),
    ] = 1000.0  # fmt: skip
    memory_mib: Annotated[
        int,
        _axis(
            "Touched, incompressible memory that the server holds besides its own.", _MIB, least=0, most=4096
        ),
    ] = 0
    dirty_mib_s: Annotated[
        float,
        _axis("How much of that memory the server rewrites per second.", "MiB/s", least=0, most=4096),
    ] = 0.0
    disk_mib: Annotated[
        int,
        _axis(
            "Files that the container has written to its layer; they move with it.", _MIB, least=0, most=4096
        ),
    ] = 0
    image: ImageDirectory | None = None
    command: ContainerCommand | None = None
    volumes: ContainerVolumes | None = None
    compression: Annotated[
        Literal["auto", "none", "zstd", "zstd-1", "zstd-3"],
        _axis("How memory images of the CRIU engines are packed on their way.", read_by=_ENGINES),
    ] = "auto"
    base_image: Annotated[
        bool,
        _axis(
            "Both edges have the memory of an idle server of this version, and only what differs crosses.",
            read_by=_ENGINES,
        ),
    ] = True
    memory_by: Annotated[
        Literal["auto", "agents", "criu"],
        _axis(
            "Who moves memory before and after the downtime: the agents, or CRIU's own machinery.",
            read_by=_ENGINES,
        ),
    ] = "auto"
    workload: Annotated[
        str,
        _axis("What clients do, see docs/workload.md; several joined by + are shared out among the clients."),
    ] = "requests"
    interval_ms: Annotated[
        float,
        _axis("Mean time between two requests; 0 is as fast as answers come.", _MS, least=0, most=60_000),
    ] = 10.0
    load: Annotated[
        Literal["shared", "own"],
        _axis("Whether many clients share the load of one, or each has one of its own.", read_by=_EXTENSION),
    ] = "shared"
    bit_rate_mbps: Annotated[
        float, _axis("Bit rate of a video (workload video).", _MBPS, least=0.05, most=1000)
    ] = 4.0
    request_bytes: Annotated[int, _axis("Size of a request.", "bytes", least=0, most=1 << 20)] = 64
    response_bytes: Annotated[int, _axis("Size of a response.", "bytes", least=0, most=1 << 20)] = 256
    download_mib: Annotated[
        float, _axis("Size of a download that runs beside the requests; 0 is none.", _MIB, least=0, most=4096)
    ] = 0.0
    upload_mib: Annotated[
        float, _axis("Size of an upload that runs beside the requests; 0 is none.", _MIB, least=0, most=4096)
    ] = 0.0
    before_s: Annotated[float, _axis("Load before the move.", _S, least=0.1, most=600)] = 1.0
    move_when: Annotated[
        Literal["any", "pause", "request"],
        _axis(
            "When the move begins: at any moment, in a pause in which no request is open, or as soon as the "
            "next request is under way."
        ),
    ] = "any"
    after_s: Annotated[float, _axis("Load after the move.", _S, least=0.1, most=600)] = 1.0
    forwarding: Annotated[
        bool,
        _axis(
            "Whether the source hands datagrams that come too late on to the destination.",
            read_by=_EXTENSION,
        ),
    ] = True
    dns_ttl_s: Annotated[
        int,
        _axis("Time to live of the service's DNS record.", _S, least=0, most=60, read_by=_BASELINES),
    ] = 1
    dns_cache: Annotated[
        Literal["warm", "cold"],
        _axis("Whether others on the client's host look the service's name up as well.", read_by=_BASELINES),
    ] = "warm"
    tcp_user_timeout_ms: Annotated[
        float,
        _axis(
            "How long TCP data may stay unacknowledged (RFC 5482); 0 is the system's default.",
            _MS, least=0, most=600_000, read_by=_BASELINES,
        ),
    ] = 1000.0  # fmt: skip
    request_timeout_ms: Annotated[
        float,
        _axis(
            "How long a client without the extension waits for an answer.",
            _MS, least=10, most=600_000, read_by=_BASELINES,
        ),
    ] = 1000.0  # fmt: skip
    tls_resumption: Annotated[
        bool, _axis("New connections of a baseline resume a TLS session if they can.", read_by=_BASELINES)
    ] = False
    mptcp_make_before_break: Annotated[
        bool, _axis("MPTCP's new address stands before the old one goes.", read_by=_BASELINES)
    ] = False
    downtime_ms: DowntimeMs | None = None
    link_backend: Annotated[
        Literal["auto", "netem", "cable"],
        _axis("What shapes the links: the kernel's netem, or our own cable in user space."),
    ] = "auto"
    calibrate: Annotated[bool, _axis("Measure every link before the run and store what it really does.")] = (
        False
    )
    congestion: Annotated[
        Literal["initial-window", "careful-resume"],
        _axis(
            "How congestion control begins on the path to the destination: with the initial window, or with "
            "care from what was known before the move (draft-ietf-tsvwg-careful-resume).",
            read_by=_EXTENSION,
        ),
    ] = "initial-window"
    clients: Annotated[
        int,
        _axis(
            "How many clients there are, each with a connection of its own.",
            "clients", least=1, most=2000, read_by=_EXTENSION,
        ),
    ] = 1  # fmt: skip
    access: Annotated[
        Literal["shared", "own"],
        _axis(
            "Whether many clients are on one host behind one access link, or each on one of its own.",
            read_by=_EXTENSION,
        ),
    ] = "shared"
    mixed_strategies: Annotated[
        bool,
        _axis("Each client agrees to one strategy only, all of them in turn.", read_by=_EXTENSION),
    ] = False
    plain_clients: Annotated[
        int,
        _axis(
            "How many of the clients do not know the extension and cannot follow the server.",
            "clients", least=0, most=2000, read_by=_EXTENSION,
        ),
    ] = 0  # fmt: skip
    moves: Annotated[
        int,
        _axis(
            "How often the server moves, to and fro; times are then medians over all moves.",
            "moves", least=1, most=1000, read_by=_EXTENSION,
        ),
    ] = 1  # fmt: skip
    route: Annotated[
        Literal["to-and-fro", "round", "along"],
        _axis(
            "Where several moves lead: back and forth between two edges, round all edges of the topology "
            "(A, B, C, A), or along them and back (A, B, C, B, A).",
            read_by=_EXTENSION,
        ),
    ] = "to-and-fro"
    trigger: Annotated[
        Literal["auto", "orchestrator", "server", "client"],
        _axis(
            "Who decides on a move: the orchestrator, the server's host alone, or that host because a "
            "client asks; auto: the orchestrator where clients are told beforehand, else the host.",
            read_by=_EXTENSION,
        ),
    ] = "auto"
    mobility: Annotated[
        Literal["none", "alone", "before", "together"],
        _axis(
            "Whether the client changes its access router and address with each move: alone (the server "
            "stays), one second before the server follows, or together with it.",
            read_by=_EXTENSION,
        ),
    ] = "none"
    faults: Annotated[
        tuple[Fault, ...],
        _axis("What is made to go wrong, see `quicferry faults`.", read_by=_EXTENSION),
    ] = ()
    seed: Annotated[
        int, _axis("Seed of everything that is drawn: losses, jitter, contents.", least=0, most=2**53)
    ] = 1


class Axis(NamedTuple):
    """One axis, as ``RunSpec`` has it, for whoever makes options, tables or messages of it."""

    name: str
    kind: type | str  # bool, int, float or str; "faults"
    choices: tuple[str, ...]  # empty: not a choice of fixed words
    least: float | None
    most: float | None
    unit: str
    default: Any
    text: str
    read_by: ReadBy
    network: bool
    optional: bool  # None is a value of it

    @property
    def option(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def bounds(self) -> str:
        """What is allowed, in words: "0 to 4000 ms"."""
        if self.least is None:
            return ", ".join(self.choices)
        return f"{self.least:.10g} to {self.most:.10g} {self.unit}".rstrip()


@cache
def axes() -> dict[str, Axis]:
    """Every axis by its name, in the order of ``RunSpec``."""
    described = msgspec.inspect.type_info(RunSpec)
    assert isinstance(described, msgspec.inspect.StructType)
    return {field.name: _axis_of(field) for field in described.fields}


def _axis_of(field: msgspec.inspect.Field) -> Axis:
    described: Any = field.type
    optional = isinstance(described, msgspec.inspect.UnionType)
    if optional:
        described = described.types[0]
    inner, extra = described.type, described.extra
    kinds: dict[type, type | str] = {
        msgspec.inspect.BoolType: bool,
        msgspec.inspect.IntType: int,
        msgspec.inspect.FloatType: float,
        msgspec.inspect.VarTupleType: "faults",
    }
    choices = tuple(map(str, inner.values)) if isinstance(inner, msgspec.inspect.LiteralType) else ()
    choices = tuple(sorted(choices, key=lambda word: word != field.default))  # what is usual stands first
    return Axis(
        name=field.name,
        kind=kinds.get(type(inner), str),
        choices=choices,
        least=getattr(inner, "ge", None),
        most=getattr(inner, "le", None),
        unit=extra["unit"],
        default=field.default,
        text=described.extra_json_schema["description"],
        read_by=extra["read_by"],
        network=extra["network"],
        optional=optional,
    )
