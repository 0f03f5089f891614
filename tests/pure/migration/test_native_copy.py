"""Which implementation an order means, what a run of it needs, and the filter for CRIU's page server."""

import struct

import pytest

from quicferry.errors import InvalidInput
from quicferry.events import Event
from quicferry.experiment.run import memory_moved_by
from quicferry.migration.criu import pipe_filter
from quicferry.migration.engines.registry import engines, get, implementation_of, long_engines
from quicferry.migration.order import PlannedMove
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from session.request import to_spec
from tests.specs import needs_with


def implementation(engine, by):
    planned = PlannedMove(
        strategy=Strategy.POOL,
        engine=engine,
        destination="edge-2",
        service=Endpoint("10.0.2.2", 4433),
        memory_by=by,
    )
    return implementation_of(planned.order("edge-1", 1))


def test_an_order_says_who_moves_the_memory():
    assert implementation("criu-hybrid", "criu") == "criu-hybrid/criu"
    assert implementation("criu-hybrid", "agents") == "criu-hybrid"
    assert implementation("criu-hybrid", "auto") == "criu-hybrid"
    assert {get(engine).memory_by("auto") for engine in set(engines()) - long_engines()} == {None}
    assert {get(engine).memory_by("auto") for engine in long_engines()} == {"agents"}


def test_a_run_needs_what_criu_needs():
    def more(engine):
        by = {who: needs_with(engine=engine, memory_by=who) for who in ("agents", "criu")}
        return set(by["criu"]) - set(by["agents"])

    assert more("criu-pre-copy") == {"criu-tracking"}
    assert more("criu-post-copy") == {"criu-page-server"}
    assert more("criu-hybrid") == {"criu-tracking", "criu-page-server"}
    assert more("runc-pre-copy") == {"oci-pre-dump"}
    assert more("runc-post-copy") == {"criu-page-server"}
    assert more("runc-hybrid") == {"oci-pre-dump", "criu-page-server"}


@pytest.mark.parametrize("engine", sorted(set(engines()) - long_engines()))
def test_where_all_memory_goes_at_once_there_is_nothing_to_choose(engine):
    assert to_spec({"engine": engine}).memory_by == "auto"
    with pytest.raises(InvalidInput, match="no memory moves"):
        to_spec({"engine": engine, "memory_by": "criu"})
    with pytest.raises(InvalidInput, match="memory_by"):
        to_spec({"engine": "criu-hybrid", "memory_by": "fairies"})


def test_the_manifest_says_what_the_engine_said():
    def event(name, **detail):
        return Event(t_ns=1, vantage="edge-1", name=name, detail=detail)

    assert memory_moved_by([event("migration.restore.complete", memory_by="agents")]) is None
    assert memory_moved_by([event("migration.checkpoint.complete")]) is None
    assert memory_moved_by([event("migration.checkpoint.complete", memory_by="criu")]) == "criu"


def verdict(code, number, architecture, arguments):
    """What the kernel would answer: an interpreter for the four instructions that are used."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    steps = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        step, yes, no, operand = steps[at]
        at += 1
        if step == pipe_filter.LOAD:
            (value,) = struct.unpack_from("=I", data, operand)
        elif step == pipe_filter.RETURN:
            return operand
        else:
            holds = value == operand if step == pipe_filter.EQUAL else value > operand
            at += yes if holds else no


@pytest.mark.parametrize("machine", pipe_filter.MACHINES)
def test_only_a_pipe_that_is_far_too_large_is_pretended(machine):
    fcntl, architecture = pipe_filter.MACHINES[machine]
    code = pipe_filter.instructions(1 << 20, machine)

    def spec(size, number=fcntl, command=pipe_filter.F_SETPIPE_SZ, of=architecture):
        return verdict(code, number, of, [3, command, size, 0, 0, 0])

    assert spec(819 * 4096) == pipe_filter.PRETEND, "what CRIU 4 asks for"
    assert spec(4 << 20) == pipe_filter.PRETEND
    assert spec(2 << 20) == pipe_filter.ALLOW, "refused by the kernel, and CRIU lives with it"
    assert spec(1 << 20) == pipe_filter.ALLOW
    assert spec(4 << 20, number=fcntl + 1) == pipe_filter.ALLOW
    assert spec(4 << 20, command=pipe_filter.F_SETPIPE_SZ + 1) == pipe_filter.ALLOW
    assert spec(4 << 20, of=0) == pipe_filter.ALLOW
