"""A request becomes one checked value: each axis by its one definition, and those that do not go together."""

from __future__ import annotations

import math
from typing import Any

import click
import msgspec
import pytest

import baselines
from apps.client import workloads
from cli.run import run as run_command
from quicferry.errors import InvalidInput
from quicferry.paths import CHECKOUT
from quicferry.spec import Axis, Fault, FaultKind, FaultPoint, ReadBy, RunSpec, axes
from session.request import parts_of, to_spec, unread
from session.scenario import Scenario

BOUNDED = [axis for axis in axes().values() if axis.least is not None]
CHOSEN = [axis for axis in axes().values() if axis.choices]
#: axes that say who takes part
NAMES = ("topology", "strategy", "baseline", "engine")
by_name: Any = {"ids": lambda axis: axis.name}


def another_value(axis: Axis) -> Any:
    """A value that the axis allows and that is not its default."""
    if axis.choices:
        return axis.choices[-1]
    if axis.kind is bool:
        return not axis.default
    if axis.kind == "faults":
        return ["transfer:link-cut"]
    named = {
        "workload": "bursts",
        "rate_trace": str(CHECKOUT / "docs" / "examples" / "cell.trace"),
        "flap": "up@1+0.5",
        "image": str(CHECKOUT / "docs"),
        "command": "sh",
        "volumes": "a:/srv/a",
    }
    if axis.name in named:
        return named[axis.name]
    assert axis.least is not None and axis.most is not None
    return axis.least + 1 if axis.default != axis.least + 1 else axis.least + 2


def test_what_is_not_said_has_its_default() -> None:
    assert to_spec({}) == RunSpec()
    assert to_spec(dict.fromkeys(axes())) == RunSpec()


def test_every_axis_of_the_spec_is_described() -> None:
    assert list(axes()) == list(RunSpec.__struct_fields__)
    for axis in axes().values():
        assert axis.text.endswith("."), axis.name
        assert axis.default == getattr(RunSpec(), axis.name)


def test_every_axis_is_an_option_of_run() -> None:
    options = {parameter.name: parameter for parameter in run_command.params}
    for axis in axes().values():
        assert isinstance(options[axis.name], click.Option), axis.name
        assert axis.text.split(".")[0] in str(options[axis.name].help)


@pytest.mark.parametrize("axis", BOUNDED, **by_name)
def test_bounds_are_kept_and_named(axis: Axis) -> None:
    assert axis.least is not None and axis.most is not None
    kind: Any = axis.kind
    for good in (axis.least, axis.most):
        values: dict[str, Any] = {axis.name: kind(good)}
        if axis.read_by is ReadBy.BASELINES:
            values["baseline"] = "mptcp" if axis.name == "downtime_ms" else "tcp-dns"
        if axis.name == "plain_clients":
            values["clients"] = 2000
        if axis.name == "jitter_ms":
            values["rtt_ms"] = 4000.0
        if axis.name == "dirty_mib_s":
            values["memory_mib"] = 1
        if axis.name == "loss_burst_packets":
            values["loss_percent"] = 1.0
        if axis.name == "disk_mib":
            values["engine"] = "runc-cold"
        if axis.name == "bit_rate_mbps":
            values["workload"] = "video"
        assert getattr(to_spec(values), axis.name) == good
    for bad in (axis.least - 1, axis.most * 2, -math.inf, math.inf, math.nan):
        with pytest.raises(InvalidInput, match=axis.name) as refused:
            to_spec({axis.name: bad})
        assert axis.bounds in str(refused.value.hint)


@pytest.mark.parametrize("axis", CHOSEN, **by_name)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(axis: Axis) -> None:
    with pytest.raises(InvalidInput, match=axis.name) as refused:
        to_spec({axis.name: "fairies"})
    assert all(word in str(refused.value.hint) for word in axis.choices)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="fairies"):
        to_spec({name: "fairies"})


def test_an_unknown_axis_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="fairies") as refused:
        to_spec({"fairies": 1})
    assert "rtt_ms" in str(refused.value.hint)


@pytest.mark.parametrize("baseline", [None, *baselines.names()])
@pytest.mark.parametrize("axis", [axis for axis in axes().values() if axis.name not in NAMES], **by_name)
def test_an_axis_is_read_or_refused_with_the_reason(axis: Axis, baseline: str | None) -> None:
    engine = (baselines.get(baseline).engines or (None,))[0] if baseline else "criu-hybrid"
    values = {"baseline": baseline, "engine": engine, axis.name: another_value(axis)}
    if axis.name == "bit_rate_mbps":
        values["workload"] = "video"
    if axis.name == "mobility":
        values["topology"] = "chain"
    if axis.name == "plain_clients":
        values["clients"] = 2 if baseline is None else 1
    others = {name: value for name, value in values.items() if name != axis.name}
    usual = to_spec(others)
    without_effect = unread(usual, parts_of(usual))
    if axis.name in without_effect:
        with pytest.raises(InvalidInput) as refused:
            to_spec(values)
        assert "leave out" in str(refused.value.hint)
    else:
        assert getattr(to_spec(values), axis.name) != axis.default


def test_a_baselines_engine_is_one_that_can_move_it() -> None:
    for name in baselines.names():
        engines = baselines.get(name).engines
        assert to_spec({"baseline": name}).engine in (engines or ("handoff",))
    assert to_spec({"baseline": "ip-move-tcp", "engine": "handoff"}).engine == "handoff"  # as was asked


def test_a_fault_is_read_once() -> None:
    spec = to_spec({"faults": ["transfer:link-cut=2.5"]})
    words = "transfer:link-cut=2.5"
    point, kind = FaultPoint.TRANSFER, FaultKind.LINK_CUT
    assert spec.faults == (Fault(point=point, kind=kind, seconds=2.5, words=words),)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=RunSpec) == spec


def test_a_fault_that_the_topology_cannot_have_is_refused_at_once() -> None:
    for fault in ("transfer:link-lost", "restore:link-cut"):
        with pytest.raises(InvalidInput, match="no link of their own"):
            to_spec({"topology": "one_lan", "faults": [fault]})
    assert to_spec({"topology": "one_lan", "faults": ["commit:orchestrator-killed"]}).faults


def test_a_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="jitter"):
        to_spec({"jitter_ms": 10.0, "rtt_ms": 5.0})
    with pytest.raises(InvalidInput, match="one_lan has no parameter"):
        to_spec({"topology": "one_lan", "pool": 3})
    assert parts_of(to_spec({"pool": 3})).topology.pool == ("edge-3", "edge-4", "edge-2")


# --- scenarios -------------------------------------------------------------------------------------


def test_an_axis_is_crossed_only_with_what_reads_it() -> None:
    sweep = {"dns_ttl_s": [0, 5], "strategy": ["symmetric"], "baseline": ["tcp-dns", "no-migration"]}
    runs = [(spec.baseline or str(spec.strategy), spec.dns_ttl_s) for spec in Scenario(sweep=sweep).runs()]
    assert sorted(runs) == [("no-migration", 1), ("symmetric", 1), ("tcp-dns", 0), ("tcp-dns", 5)]


def test_a_value_that_no_cell_reads_is_refused() -> None:
    with pytest.raises(InvalidInput, match="dns_ttl_s"):
        list(Scenario(run={"dns_ttl_s": 5}, sweep={"strategy": ["symmetric"]}).runs())
    with pytest.raises(InvalidInput, match="server_first"):
        list(Scenario(run={"server_first": True}, sweep={"baseline": ["tcp-dns"]}).runs())
    assert list(Scenario(run={"server_first": None}, sweep={"baseline": ["tcp-dns"]}).runs())


def test_repetitions_are_interleaved_and_have_seeds_of_their_own() -> None:
    scenario = Scenario(repetitions=2, run={"seed": 7}, sweep={"strategy": ["pool", "symmetric"]})
    assert [(str(spec.strategy), spec.seed) for spec in scenario.runs()] == [
        ("pool", 7),
        ("symmetric", 7),
        ("pool", 8),
        ("symmetric", 8),
    ]


def test_a_preferred_address_is_good_for_one_move() -> None:
    """RFC 9000 §9.6: it is said in the handshake, and a client goes there once."""
    assert to_spec({"strategy": "preferred-address"}).moves == 1
    with pytest.raises(InvalidInput, match=r"RFC 9000 §9\.6 has one preferred address") as caught:
        to_spec({"strategy": "preferred-address", "moves": 2})
    assert "alternative-address" in str(caught.value.hint)
    assert to_spec({"strategy": "alternative-address", "moves": 2}).moves == 2


@pytest.mark.parametrize("strategy", ["preferred-address", "alternative-address"])
def test_a_standard_does_not_let_the_server_speak_first(strategy: str) -> None:
    with pytest.raises(InvalidInput, match=r"RFC 9000 §9\.6\.2"):
        to_spec({"strategy": strategy, "server_first": True})
    sweep: dict[str, list[Any]] = {"strategy": ["pool", strategy], "server_first": [False, True]}
    cells = [(spec.strategy, spec.server_first) for spec in Scenario(sweep=sweep).runs()]
    assert cells == [("pool", False), ("pool", True), (strategy, False)]


def test_a_client_cannot_refuse_by_the_draft() -> None:
    with pytest.raises(InvalidInput, match="cannot say that it refuses"):
        to_spec({"strategy": "alternative-address", "faults": ["notice:client-refusing"]})


def test_a_client_without_the_extension_follows_while_its_question_is_fresh() -> None:
    asked = {"strategy": "preferred-address", "plain_clients": 1}
    assert to_spec({**asked, "interval_ms": 100.0}).plain_clients == 1
    with pytest.raises(InvalidInput, match="remembers the last 100 packets") as caught:
        to_spec(asked)
    assert "--interval-ms 60" in str(caught.value.hint)
    with pytest.raises(InvalidInput, match="cannot follow"):
        to_spec({**asked, "interval_ms": 100.0, "download_mib": 1.0})
    for mobility in ("before", "together"):
        with pytest.raises(InvalidInput, match="answered where they were"):
            to_spec({**asked, "interval_ms": 100.0, "topology": "chain", "mobility": mobility})
    stays = {"topology": "chain", "mobility": "alone"}
    assert to_spec({**asked, "interval_ms": 100.0, **stays}).mobility == "alone"


@pytest.mark.parametrize("strategy", ["preferred-address", "alternative-address"])
def test_a_client_asks_for_a_move_by_a_frame_of_the_extension(strategy: str) -> None:
    with pytest.raises(InvalidInput, match="a client cannot ask for the move"):
        to_spec({"strategy": strategy, "trigger": "client"})
    assert to_spec({"strategy": strategy, "trigger": "server"}).trigger == "server"


def test_somebody_must_be_able_to_ask() -> None:
    with pytest.raises(InvalidInput, match="plain clients cannot ask"):
        to_spec({"strategy": "symmetric", "trigger": "client", "plain_clients": 1})


@pytest.mark.parametrize("workload", workloads.OWN, ids=lambda workload: workload.name)
def test_a_moment_is_asked_for_only_where_it_comes(workload: workloads.Workload) -> None:
    """A pause of requests that leave no pause was waited for in vain."""
    slow = {"workload": workload.name, "interval_ms": 1000.0}
    for moment, never in (("pause", ("all", "no")), ("request", ("no",))):
        if workload.open in never:
            with pytest.raises(InvalidInput, match=f"the workload {workload.name}"):
                to_spec({**slow, "move_when": moment})
        else:
            assert to_spec({**slow, "move_when": moment}).move_when == moment


@pytest.mark.parametrize(
    "values",
    [
        {},  # every 10 ms, with a round trip of 18 ms
        {"interval_ms": 100.0, "source_rtt_ms": 122.0},
        {"workload": "telemetry", "interval_ms": 18.0},
        {"workload": "sporadic", "interval_ms": 0.1, "rtt_ms": 60.0},
    ],
    ids=str,
)
def test_requests_closer_than_a_round_trip_leave_no_pause(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"a request every [\d.]+ ms, each under way for a round trip"):
        to_spec({**values, "move_when": "pause"})
    assert to_spec({**values, "move_when": "request"}).move_when == "request"
