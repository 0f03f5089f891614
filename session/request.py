"""A request becomes one checked ``RunSpec``: here, once, for the command line and scenario files alike.

``to_spec`` takes plain values, as options and TOML have them, and returns a spec that makes sense, or
raises ``InvalidInput`` with what to give instead. What comes after it only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

import baselines
import topologies
from apps.client import workloads
from apps.config import LEAST_INTERVAL_MS
from quicferry.errors import UNDECODABLE, InvalidInput, Unsupported
from quicferry.experiment import faults
from quicferry.experiment.itinerary import client_links
from quicferry.migration.engines import registry
from quicferry.model import Topology
from quicferry.spec import Axis, ReadBy, RunSpec, axes
from quicferry.strategies import Carrier, StrategyRules, may_speak_first, rules_of
from session import fit
from session.container import check_container
from topologies.building.access import with_own_access
from topologies.building.quality import OF_THE_ACCESS, with_quality

T = TypeVar("T")
DEFAULT_ENGINE = RunSpec().engine
#: how many packets back a server can tell a late one from a repeated one (aioquic: 128, so some to spare)
REMEMBERED_PACKETS = 100
PROCESSES_MOST = 500  # clients that are a process each, which hold some 30 MiB
GETTING_READY_S = 2.0  # from the word to move until the server is frozen: a standby starts
#: why a baseline cannot honour an axis of the extension, where there is more to say than that
_NOT_WITH_BASELINES = {
    "clients": "clients is for runs with a strategy: this baseline has one client",
    "faults": "faults is for runs with a strategy: a baseline takes no faults",
    "moves": "moves is for runs with a strategy: this baseline makes one move only",
    "pool": "pool is for the strategy pool: a baseline's client is given no candidates",
}
#: what, besides the engine and the server, a downtime depends on that a baseline borrows
OF_A_DOWNTIME = ("compression", "base_image", "memory_by", "inter_edge_mbps")


def to_spec(values: Mapping[str, Any]) -> RunSpec:
    """The run that these values ask for; an axis that is left out has its default.

    ``engine`` left out or None is the default engine, or the first that can move the baseline's server.
    Raises ``InvalidInput`` for an unknown axis, a value out of its bounds, an axis that nobody reads in this
    run, and axes that do not go together.
    """
    spec = _read(values)
    parts = parts_of(spec)
    for name, reason in unread(spec, parts).items():
        if getattr(spec, name) != axes()[name].default:
            raise InvalidInput(reason, hint=f"leave out {axes()[name].option}")
    return _checked(spec, parts)


def to_spec_of_cell(values: Mapping[str, Any]) -> tuple[RunSpec, dict[str, str]]:
    """One cell of a sweep: as ``to_spec``, but what nobody reads in it has its default.

    Returns the run, and the axes whose given value was left out with the reason. Raises ``InvalidInput``.
    """
    spec = _read(values)
    left_out: dict[str, str] = {}
    # what is left out may be what gave another axis its meaning: until nothing more falls
    while reasons := _without_effect(spec):
        left_out |= reasons
        spec = msgspec.structs.replace(spec, **{name: axes()[name].default for name in reasons})
    return _checked(spec, parts_of(spec)), left_out


def _check_moment(spec: RunSpec) -> None:
    """Refuse a moment that does not come with such requests. Raises ``InvalidInput``."""
    workload = workloads.of_client(spec.workload, "")
    hint = "give another --move-when, --workload or a longer --interval-ms: docs/workload.md"
    if workload.open == "no":
        raise InvalidInput(
            f"the workload {workload.name} sends datagrams, so that no request begins or ends", hint=hint
        )
    if spec.move_when != "pause":
        return
    if not spec.interval_ms or workload.open == "all":
        raise InvalidInput(
            "back to back there is no pause between two requests"
            if workload.open == "some"
            else f"with the workload {workload.name} a request is under way at all times: there is no pause",
            hint=hint,
        )
    spacing_ms = workload.spacing_intervals * spec.interval_ms
    rtt_ms = spec.rtt_ms if spec.source_rtt_ms is None else spec.source_rtt_ms
    if not workload.waits and spacing_ms <= rtt_ms:
        raise InvalidInput(
            f"a request every {spacing_ms:g} ms, each under way for a round trip of {rtt_ms:g} ms at least: "
            "there is no pause",
            hint=hint,
        )


def _without_effect(spec: RunSpec) -> dict[str, str]:
    """The axes that have another value than their default, which nobody reads; each with the reason."""
    parts = parts_of(spec)
    unused = unread(spec, parts) | _same_whatever(spec, parts)
    return {name: why for name, why in unused.items() if getattr(spec, name) != axes()[name].default}


#: axes whose words come from a registry -> how a word is looked up; each raises ``InvalidInput``
_REGISTRIES: dict[str, Callable[[str], object]] = {
    "topology": topologies.get,
    "strategy": rules_of,
    "baseline": baselines.get,
    "engine": registry.get,
    "workload": lambda words: [workloads.get(name) for name in words.split("+")],
}


def check_value(name: str, value: Any) -> None:
    """Check one value of one axis by itself: that there is such an axis, its type, its bounds, its words.

    Raises ``InvalidInput``. Whether values go together is checked by ``to_spec`` and ``to_spec_of_cell``.
    """
    spec = _read({name: value})
    if value is not None and name in _REGISTRIES:
        _REGISTRIES[name](getattr(spec, name))


def _same_whatever(spec: RunSpec, parts: Parts) -> dict[str, str]:
    """What a run may be given although its strategy is the same without: a sweep need not run it twice."""
    if parts.baseline is not None or spec.mixed_strategies:
        return {}
    reasons: dict[str, str] = {}
    if not parts.rules.pool:
        reasons["pool"] = f"pool is for strategies with candidates: {spec.strategy} is given none"
        reasons["probing"] = f"probing is for strategies with candidates: {spec.strategy} is given none"
    if parts.rules.server_first:
        reasons["server_first"] = f"with {spec.strategy} the server speaks first in any case"
    return reasons


class Parts(NamedTuple):
    """Who takes part in a run: the rows of the tables that a spec names, looked up once."""

    baseline: baselines.Baseline | None
    topology: Topology
    workloads: tuple[workloads.Workload, ...]
    engine: registry.EngineEntry
    rules: StrategyRules  # of the strategy; without effect beside a baseline


def parts_of(spec: RunSpec) -> Parts:
    """Look up who takes part, and shape the network. Raises ``InvalidInput`` for an unknown name."""
    baseline = None if spec.baseline is None else baselines.get(spec.baseline)
    shaping = [axis for axis in axes().values() if axis.network]
    topology = topologies.get(spec.topology).build_from_axes(
        {axis.name: getattr(spec, axis.name) for axis in shaping},
        {axis.name: axis.default for axis in shaping},
    )
    if spec.clients > PROCESSES_MOST and (baseline is not None or spec.access == "own"):
        raise InvalidInput(
            f"{spec.clients} clients would be as many processes here, and {PROCESSES_MOST} are the most",
            hint="more clients share one process: with a strategy, and --access shared",
        )
    if spec.access == "own" and spec.clients > 1:
        topology = with_own_access(topology, spec.clients)
    topology = with_quality(topology, {name: getattr(spec, name) for name in OF_THE_ACCESS}, spec.flap)
    return Parts(
        baseline,
        topology,
        tuple(workloads.get(name) for name in spec.workload.split("+")),
        registry.get(spec.engine),
        rules_of(spec.strategy),
    )


def _read(values: Mapping[str, Any]) -> RunSpec:
    """Plain values as a spec, each within its own bounds. Raises ``InvalidInput``."""
    known = axes()
    for name in values:
        if name not in known:
            raise InvalidInput(f"there is no axis {name!r}", hint="the axes are " + ", ".join(sorted(known)))
    chosen = {name: value for name, value in values.items() if value is not None}
    for name, value in chosen.items():
        _check_value(known[name], value)
    if "faults" in chosen:
        chosen["faults"] = tuple(map(faults.parse, _convert(chosen["faults"], list[str])))
    if "baseline" in chosen and "engine" not in chosen:
        chosen["engine"] = (baselines.get(str(chosen["baseline"])).engines or (DEFAULT_ENGINE,))[0]
    return _convert(chosen, RunSpec)


def _convert(value: Any, kind: type[T]) -> T:
    """A value as the type that an axis has. Raises ``InvalidInput``."""
    try:
        return msgspec.convert(value, kind)
    except UNDECODABLE as error:
        raise InvalidInput(f"a value does not fit its axis: {error}", hint="see docs/axes.md") from error


def _check_value(axis: Axis, value: Any) -> None:
    """Raise ``InvalidInput`` when a value of the right type is none of those that the axis allows."""
    if axis.choices and value not in axis.choices:
        raise InvalidInput(f"{axis.name} cannot be {value!r}", hint="choose from " + axis.bounds)
    if axis.least is None or axis.most is None or not isinstance(value, int | float):
        return
    if not axis.least <= value <= axis.most:  # also refuses NaN
        number = f"{value:.10g}" if isinstance(value, float) else str(value)[:40]
        raise InvalidInput(f"{axis.name} cannot be {number} {axis.unit}".rstrip(), hint=f"give {axis.bounds}")


def _checked(spec: RunSpec, parts: Parts) -> RunSpec:
    """The spec, if its values make sense beside each other. Raises ``InvalidInput``."""
    if spec.plain_clients > spec.clients:
        raise InvalidInput(
            f"{spec.plain_clients} of {spec.clients} clients cannot be plain", hint="give more --clients"
        )
    kinds = spec.workload.split("+")
    if len(kinds) > spec.clients:
        raise InvalidInput(
            f"{len(kinds)} workloads are shared out among {spec.clients} clients",
            hint="give at least as many --clients as workloads",
        )
    if spec.clients > 1 and (spec.download_mib or spec.upload_mib):
        raise InvalidInput(
            "many clients send requests only", hint="leave out --download-mib and --upload-mib"
        )
    if parts.baseline is None and parts.rules.carrier is Carrier.PREFERRED_ADDRESS and spec.moves > 1:
        raise InvalidInput(
            f"{spec.moves} moves with {spec.strategy}: RFC 9000 §9.6 has one preferred address, said in the "
            "handshake, and a client goes there once",
            hint="choose --strategy alternative-address, or one of the extension, or leave out --moves",
        )
    if parts.baseline is None and parts.rules.carrier is Carrier.PREFERRED_ADDRESS:
        _check_plain_followers(spec)
    if parts.baseline is None and spec.trigger == "client":
        if not (parts.rules.extended or spec.mixed_strategies):
            raise InvalidInput(
                f"with {spec.strategy} a client cannot ask for the move: that takes a frame of the extension",
                hint="choose --trigger server or orchestrator, or another strategy",
            )
        if spec.plain_clients == spec.clients:
            raise InvalidInput(
                "plain clients cannot ask for the move", hint="give more --clients, or another --trigger"
            )
    if spec.move_when != "any" and (spec.clients > 1 or spec.plain_clients):
        raise InvalidInput(
            f"with many clients a move cannot begin by move_when {spec.move_when}: each has its own requests",
            hint="leave out --move-when, or --clients",
        )
    if spec.move_when != "any":
        _check_moment(spec)
    if spec.access == "own" and spec.plain_clients:
        raise InvalidInput(
            "plain clients connect again from the process of many",
            hint="leave out --access or --plain-clients",
        )
    if spec.mobility != "none" and spec.access == "own":
        raise InvalidInput("one host moves, with all clients on it", hint="leave out --access")
    if spec.mobility != "none":
        client_links(parts.topology, spec)
        if spec.faults:
            raise InvalidInput("a fault goes with a client that stays", hint="leave out --mobility")
    faults.check(spec, parts.topology, parts.engine, parts.rules)
    if parts.baseline is None:
        fit.check(spec, parts.engine, parts.topology)
    return check_container(spec)


def _check_plain_followers(spec: RunSpec) -> None:
    """Raise ``InvalidInput`` where a client without the extension cannot follow to a preferred address.

    It asks there once, when it has connected, and the destination answers when the server has come. By then
    the question must not be so old that the server takes it for a repetition.
    """
    if not spec.plain_clients:
        return
    if spec.mobility in ("before", "together"):
        raise InvalidInput(
            f"plain clients cannot follow with {spec.strategy} once their own address has changed: they ask "
            "at the preferred address once, and are answered where they were",
            hint="leave out --mobility or --plain-clients, or choose another --strategy",
        )
    between_s = max(spec.interval_ms, LEAST_INTERVAL_MS) * spec.clients / 1e3
    packets = 2 * (spec.before_s + GETTING_READY_S) / between_s  # requests and acknowledgements
    if packets > REMEMBERED_PACKETS or spec.download_mib or spec.upload_mib:
        enough_ms = packets * spec.interval_ms / REMEMBERED_PACKETS
        raise InvalidInput(
            f"plain clients cannot follow with {spec.strategy} after so much traffic: they ask at the "
            f"preferred address once, and a server remembers the last {REMEMBERED_PACKETS} packets",
            hint=f"give --interval-ms {enough_ms:.0f} or more, and no transfer",
        )


def unread(spec: RunSpec, parts: Parts) -> dict[str, str]:
    """The axes that nobody reads who takes part in this run, each with a sentence that says why."""
    reasons = _unread_by_server(spec, parts.engine)
    if spec.moves == 1:
        reasons["route"] = "route says where several moves lead, and there is one"
    if parts.baseline is not None:
        return reasons | _unread_by_baseline(spec, parts.baseline)
    if not (may_speak_first(spec.strategy) or spec.mixed_strategies):
        reasons["server_first"] = (
            f"with {spec.strategy} the server may not speak first: until its client has come it only probes "
            "(RFC 9000 §9.6.2)"
        )
    for axis in axes().values():
        if axis.read_by is ReadBy.BASELINES:
            reasons[axis.name] = f"{axis.name} is for baselines: no strategy reads it"
    return reasons


def _unread_by_server(spec: RunSpec, entry: registry.EngineEntry) -> dict[str, str]:
    """What neither the engine nor the server reads."""
    reasons: dict[str, str] = {}
    if not entry.packs_images:
        reasons["compression"] = f"compression packs images of memory: the engine {spec.engine} sends none"
    if entry.on_base_image is None:
        reasons["base_image"] = f"the engine {spec.engine} makes no use of a base_image"
    elif spec.image is not None or spec.command is not None:
        reasons["base_image"] = (
            "there is a base_image of the packaged server only, not of an image or a command"
        )
    if not entry.is_long:
        reasons["memory_by"] = f"with the engine {spec.engine} no memory moves before or after the downtime"
    elif entry.by_criu is None:
        reasons["memory_by"] = f"the engine {spec.engine} moves its memory in one way only"
    if not spec.loss_percent:
        reasons["loss_burst_packets"] = "loss_burst_packets says how losses come, and loss_percent is none"
    if entry.as_published:
        for name in ("forwarding", "server_first"):
            reasons[name] = f"the published procedure, which {spec.engine} is, has no such thing"
    if "video" not in spec.workload.split("+"):
        reasons["bit_rate_mbps"] = "bit_rate_mbps is that of a video: the workload has none"
    if spec.clients == 1:
        reasons["access"] = "access says what many clients share, and there is one"
        reasons["load"] = "load says what many clients share, and there is one"
    if not entry.runs_in_oci:
        for name in ("image", "command", "volumes", "disk_mib"):
            reasons[name] = f"{name} is for containers: the engine {spec.engine} moves none"
    if not spec.memory_mib:
        reasons["dirty_mib_s"] = "dirty_mib_s rewrites the memory that memory_mib adds, and that is none"
    return reasons


def _unread_by_baseline(spec: RunSpec, baseline: baselines.Baseline) -> dict[str, str]:
    """What is for strategies, for servers that move, or for other baselines."""
    reasons: dict[str, str] = {}
    for axis in axes().values():
        if axis.name in baseline.honours:
            continue
        if axis.read_by is ReadBy.EXTENSION:
            other = f"{axis.name} is for runs with a strategy: {baseline.name} cannot honour it"
            reasons[axis.name] = _NOT_WITH_BASELINES.get(axis.name, other)
        elif axis.read_by is ReadBy.ENGINES and not baseline.moves:
            reasons[axis.name] = f"{axis.name} is for servers that move: that of {baseline.name} does not"
        elif axis.read_by is ReadBy.BASELINES and axis.name not in baseline.reads:
            reasons[axis.name] = f"{baseline.name} does not read {axis.name}"
        elif axis.name in baseline.refuses:
            reasons[axis.name] = baseline.refuses[axis.name]
        elif spec.downtime_ms is not None and baseline.borrows_downtime and axis.name in OF_A_DOWNTIME:
            reasons[axis.name] = f"{axis.name} shapes the downtime of an engine, and downtime_ms gives one"
    return reasons


def needs(spec: RunSpec, parts: Parts) -> list[str]:
    """The names of the probes that a run needs, those that fewer machines pass first."""
    needed = ["root", *parts.engine.needs_with(spec.memory_by)]
    if spec.link_backend == "netem":
        needed.append("netem")
    others = parts.baseline.needs if parts.baseline is not None else ()
    return list(dict.fromkeys([*needed, "mininet", "tshark", *others]))


def refusal(spec: RunSpec, parts: Parts) -> Unsupported | None:
    """Why no machine can make this run: the engine cannot move the server of its baseline. None if it can."""
    return None if parts.baseline is None else parts.baseline.why_not_with(spec.engine)
