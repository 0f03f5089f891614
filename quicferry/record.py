"""A run on disk: the layout of its directory, its manifest and its result.

``runs/<id>/`` is written once under the name ``<id>.partial`` and renamed when complete. Everything
but ``derived/`` is raw and never changes; ``derived/`` can be made again from the rest.

Format history:
    1  the first one: what was asked is called ``asked``, a fault is a string.
    2  what was asked is called ``spec``, a fault has point, kind and seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import UNDECODABLE, InvalidInput, StoreError
from quicferry.model import LinkReading, Topology
from quicferry.spec import RunSpec

FORMAT_VERSION = 2

#: What tells the old place of the service from the new one in the client's capture.
PLACE_BY_SERVER = "server"  # the server's address changes
PLACE_BY_TIME = "time"  # it stays the same, or both serve for a while: the moment the server resumed does
PLACE_BY_CLIENT = "client"  # the server stays, the client's address changes
PLACE_BY_CLIENT_HOST = "client-host"  # the same, with the client's hosts in ``Manifest.client_stops``


class RunPaths:
    """Where things are in a run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "manifest.json"
        self.events = root / "events.jsonl"  # one Event per line, sorted by time
        self.captures = root / "captures"  # <host>.pcapng, nanosecond stamps
        self.capture = root / "run.pcapng"  # all of them in one file, with the secrets; mode 0600
        self.secrets = root / "secrets"  # mode 0700
        self.keys = root / "secrets" / "keys.log"  # NSS key log of the run's QUIC and TLS connections
        self.credentials = root / "credentials"  # private keys, in memory while the run lasts
        self.logs = root / "logs"  # stderr of each process
        self.client = root / "client.json"  # the client's own summary and its log of requests
        self.derived = root / "derived"
        self.result = root / "derived" / "result.json"


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, at both ends of the run: pcap stamps are realtime."""

    realtime_minus_monotonic_start_ns: int
    realtime_minus_monotonic_end_ns: int


class MachineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine did besides the run, from the beginning of the load to its end."""

    others_percent: float  # CPU time of processes that do not belong to the run, of all processors
    steal_percent: float  # CPU time that a hypervisor gave to others
    pressure_percent: float | None  # share of time in which some process waited for a CPU; its own included


class Manifest(msgspec.Struct, kw_only=True):
    """Who made this run, of what, and how it ended."""

    format_version: int = FORMAT_VERSION
    id: str
    created: str  # ISO 8601, UTC
    spec: RunSpec
    topology: Topology
    client_address: str = ""
    source_endpoint: str = ""  # "10.0.1.2:4433"
    destination_endpoint: str = ""
    stops: list[str] = []  # the edges at which the server was to be, one after another
    stop_endpoints: list[str] = []  # where clients reach it at each of them
    client_stops: list[str] = []  # the addresses that a mobile client had, one after another
    place_by: str = PLACE_BY_SERVER  # how the client's capture tells the old place from the new
    link_backend: str = ""
    memory_by: str | None = None  # agents or criu moved memory outside the downtime; None: nobody did
    links: list[LinkReading] = []
    machine_load: MachineLoad | None = None
    clock: Clock | None = None
    tool_version: str = ""
    kernel: str = ""
    versions: dict[str, str] = {}  # program or package -> version; "source" -> digest of what played
    machine: dict[str, str] = {}  # cpu, cores, memory
    interfaces: dict[str, str] = {}  # host -> captured interface
    network_run: int = 1  # of how many runs of its network, of --network keep, it was this one
    fault_places: list[str] = []  # where the server may be after the faults: source, destination
    outcome: str = "running"  # succeeded, failed, unsupported, invalid
    error: str | None = None
    hint: str | None = None
    warnings: list[str] = []


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One request of the client's log; stamps are CLOCK_MONOTONIC."""

    number: int
    stream: int
    sent_ns: int
    received_ns: int | None  # None: never answered
    server: str | None  # "10.0.2.2:4433", the address that the end of the answer came from


class TransferRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One download or upload of the client."""

    kind: str  # "download" or "upload"
    size_bytes: int
    done_bytes: int
    verified: bool  # all bytes there and the hash right


class LateRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A moment at which the client wanted to send and could not yet; a stamp is CLOCK_MONOTONIC."""

    due_ns: int
    late_ns: int


class ClientSummary(msgspec.Struct, kw_only=True):
    """What the client says of its load: ``client.json``."""

    requests_sent: int = 0
    responses: int = 0
    requests_lost: int = 0  # sent and never answered, although the client waited at the end
    requests_duplicated: int = 0  # the service says that it executed a request a second time
    requests_repeated: int = 0  # sent again by a client that had lost its connection
    repeats_recognised: int = 0  # of these, what the service had executed before and did not execute again
    bytes_verified: int = 0  # bytes of responses and transfers that were checked and right
    state_ok: bool = False  # the service's counters never went back and never skipped
    state_detail: str = ""
    negotiated: list[str] = []
    requests: list[RequestRecord] = []
    transfers: list[TransferRecord] = []
    connections: int = 1
    reconnected: int = 0  # clients without the extension that were told to, because the server moved
    closed: str | None = None  # why the connection closed early
    stalls: int = 0  # how often a video stood still for want of a segment, and how long in all
    stalled_ms: float = 0.0
    datagrams_sent: int = 0  # of a game
    datagrams_received: int = 0
    late: list[LateRecord] = []  # by 50 ms or more, at most one in 50 ms; empty: it kept to its schedule


class MoveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of several moves of a run, measured as a single one would be."""

    number: int  # from 1
    source: str  # "10.0.1.2:4433"
    destination: str
    container_downtime_ms: float | None
    service_migration_time_ms: float | None
    connection_overhead_ms: float | None
    transferred_bytes: int | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a process held after the first move by which all was done once, and when all were there again."""

    process: str
    fds_before: int
    fds_after: int
    rss_before_kib: int
    rss_after_kib: int


class RunResult(msgspec.Struct, kw_only=True, omit_defaults=False):
    """The result of a run: the JSON object of ``quicferry run --json``. None means not known.

    ``outcome`` is one of ``errors.EXIT_CODES``. ``degraded``: the server moved, and requests were lost or
    executed twice. ``overloaded``: already before the move the path carried less than was offered, or the
    client's machine was too slow to offer it.
    """

    outcome: str
    strategy: str  # or the name of the baseline
    engine: str
    seed: int
    kind: str = "strategy"  # or "baseline"
    spec: RunSpec | None = None  # all that was asked for; None in results of older versions
    topology: str = "two_edges"
    server_first: bool = False
    pool: int = 1
    memory_mib: int = 0
    loss_percent: float = 0.0
    link_backend: str | None = None
    rtt_ms: float | None = None  # measured on the wire, client to destination
    rtt_asked_ms: float | None = None
    service_migration_time_ms: float | None = None  # from the client's capture
    container_downtime_ms: float | None = None
    connection_overhead_ms: float | None = None
    log_service_migration_time_ms: float | None = None  # from the client's own log
    pto_ms: float | None = None  # the client's PTO when it noticed the loss
    transferred_bytes: int | None = None
    requests_sent: int | None = None
    requests_lost: int | None = None
    requests_duplicated: int | None = None
    requests_repeated: int | None = None  # sent again on a new connection
    bytes_verified: int | None = None
    state_ok: bool | None = None
    phases_ms: dict[str, float] = {}  # notice, checkpoint, transfer, restore, first_packet, validated, useful
    moments_ms: dict[str, float] = {}  # the same and more as moments, relative to server.frozen
    dns_ttl_s: int | None = None  # of the service's record; None: the client looked no name up
    # what a reconnecting baseline's service-migration time is made of
    breakdown_ms: dict[str, float] = msgspec.field(default_factory=dict, name="parts_ms")
    largest_gap_ms: float | None = None  # between two useful packets at the client, anywhere in the run
    service_time_ms: float | None = None  # median time from a request to the end of its answer
    request_hit_ms: float | None = None  # service time of the request under way in the downtime, the longest
    first_request_after_ms: float | None = None  # service time of the first request sent after the resume
    disturbed: bool | None = None  # others used the machine, or the emulator was late: see the warnings
    emulator_late_p99_us: float | None = None  # of the worst link
    queue_full_packets: int | None = None  # dropped by full queues of links, as they should be
    cpu_others_percent: float | None = None  # what processes of others took of the machine
    cpu_steal_percent: float | None = None
    cpu_pressure_percent: float | None = None
    goodput_before_mbps: float | None = None  # of bulk traffic: in the last second before the freeze
    goodput_recovered_ms: float | None = None  # from the freeze until 90 % of that rate are reached again
    goodput_mbps: list[tuple[float, float]] = []  # [ms after the freeze, rate in the 100 ms before it]
    bytes_sent_twice: int | None = None  # of bulk traffic after the freeze, as the client's capture saw them
    stalls: int | None = None  # of videos: how often one stood still, and how long all of them together
    stalled_ms: float | None = None
    datagrams_sent: int | None = None  # of games; those that were lost are not sent again
    datagrams_received: int | None = None
    rtt_method: str | None = None  # how rtt_ms was measured
    memory_path: str | None = None  # how the server's memory got across, as the engine recorded it
    inter_edge_bytes: int | None = None  # seen on the wire between the edges: the check of transferred_bytes
    packets_undecrypted: int | None = None  # in the client's capture
    clients: int | None = None  # connections
    reconnected: int | None = None  # of these, told to connect again because they could not follow
    # of many clients: when their paths to the destination were validated, after server.frozen, from the
    # client's capture; median, p95, last
    clients_validated_ms: dict[str, float] = {}
    # of many clients: the service-migration time of each from the capture; median, p95, last, and how many
    # were measured
    clients_service_migration_ms: dict[str, float] = {}
    moves: list[MoveRecord] = []  # of several in one run; then the times above are their medians
    usage: list[Usage] = []  # the same
    connection_ids: int | None = None  # the server's, of all connections, after the last move
    fault: str | None = None  # what was made to go wrong; several are joined by ", "
    served_by: str | None = None  # at the end, by the capture: source, destination, both or none
    run_id: str | None = None
    warnings: list[str] = []
    error: str | None = None
    hint: str | None = None
    run_dir: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether its times are those of a move that took place; also when requests were lost in it."""
        return self.outcome in ("succeeded", "degraded")


def result_of(spec: RunSpec, outcome: str, *, error: str | None = None, hint: str | None = None) -> RunResult:
    """A result that says what was asked and how it ended, with nothing measured."""
    return RunResult(
        outcome=outcome,
        strategy=spec.baseline or str(spec.strategy),
        kind="baseline" if spec.baseline else "strategy",
        engine=spec.engine,
        seed=spec.seed,
        topology=spec.topology,
        server_first=spec.server_first,
        pool=spec.pool,
        memory_mib=spec.memory_mib,
        loss_percent=spec.loss_percent,
        rtt_asked_ms=spec.rtt_ms,
        spec=spec,
        error=error,
        hint=hint,
    )


def conditions_of(manifest: Manifest) -> dict[str, str]:
    """What two runs must have in common to be compared, besides their axes; what is not known is left out."""
    found = {"kernel": manifest.kernel, "quicferry": manifest.tool_version, "links": manifest.link_backend}
    found |= manifest.versions | manifest.machine
    return {name: value for name, value in found.items() if value and value != "plain"}


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The conditions that both know and that differ, each in words; empty when runs can be compared."""
    return [
        f"{name}: {one[name]} and {other[name]}"
        for name in sorted(set(one) & set(other))
        if one[name] != other[name]
    ]


def read_manifest(root: Path) -> Manifest:
    """Read ``manifest.json``. Raises ``StoreError`` when it is missing, broken or of another version."""
    path = RunPaths(root).manifest
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StoreError(f"no run in {root}", hint="`quicferry runs list` shows what there is") from error
    try:
        return msgspec.convert(_current(msgspec.json.decode(raw, type=dict[str, Any]), path), Manifest)
    except (*UNDECODABLE, InvalidInput) as error:  # a topology that cannot be is refused as a request is
        raise StoreError(
            f"{path} cannot be read: {error}", hint="it was damaged or made by another version"
        ) from error


def _current(manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    """A manifest as this version has it, whichever version wrote it. Raises ``StoreError``."""
    version = manifest.get("format_version")
    if version == FORMAT_VERSION:
        return manifest
    if version != 1:
        raise StoreError(
            f"{path} has format version {version}, this program reads 1 to {FORMAT_VERSION}",
            hint="read it with the version that made it (manifest: tool_version)",
        )
    asked = msgspec.convert(manifest.get("asked"), dict[str, Any])
    faults = msgspec.convert(asked.get("faults", []), list[str])
    spec = asked | {"faults": [_fault_of_words(words) for words in faults]}
    return manifest | {"format_version": FORMAT_VERSION, "spec": spec}


def _fault_of_words(words: str) -> dict[str, Any]:
    """A fault as version 1 wrote it: ``<point>:<kind>`` or ``<point>:<kind>=<seconds>``."""
    name, _, seconds = words.partition("=")
    point, _, kind = name.partition(":")
    return {
        "point": point,
        "kind": kind,
        "seconds": msgspec.convert(seconds or None, float | None, strict=False),
        "words": words,
    }


def write_json(path: Path, value: object) -> None:
    """Write a msgspec-encodable value as indented JSON, whole or not at all. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
