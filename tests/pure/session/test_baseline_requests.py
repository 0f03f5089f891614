"""Addresses, routes and engines of the baselines in which something else than a connection moves."""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec
import pytest

import baselines
import topologies
from baselines.addresses import first_hops, free_address, ways
from baselines.ip_move.deployment import SERVICE_ADDRESS, router_configs
from baselines.ip_move.router import Router, RouterConfig
from baselines.mptcp.path_manager import Change, read_changes
from baselines.mptcp.pod import Plug
from quicferry.errors import InvalidInput, Unsupported
from quicferry.migration.datagrams.moving_address import RouteUpdate
from quicferry.model import Endpoint, Link, Node, Topology
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from session.downtimes import Downtimes
from session.outcomes import SomeFailed, raise_for
from session.request import to_spec

TWO_EDGES = topologies.get("two_edges").build_from_axes({}, {})
ONE_LAN = topologies.get("one_lan").build_from_axes({}, {})


# --- addresses and ways --------------------------------------------------------------------------


@pytest.mark.parametrize("topology", [TWO_EDGES, ONE_LAN], ids=lambda topology: topology.name)
def test_free_addresses_are_in_the_hosts_network_and_nobodys(topology: Topology) -> None:
    taken = {a.partition("/")[0] for node in topology.nodes for a in topology.addresses_of(node.name)}
    for host in ("client", "edge-1", "edge-2"):
        own = topology.addresses_of(host)[0]
        first = free_address(topology, host)
        second = free_address(topology, host, [first.partition("/")[0]])
        assert first != second
        assert first.partition("/")[0] not in taken
        assert first.rpartition(".")[0] == own.rpartition(".")[0]
        assert first.partition("/")[2] == own.partition("/")[2]


def test_a_full_network_has_no_free_address() -> None:
    full = Topology(
        name="full",
        summary="",
        nodes=(Node(name="a"), Node(name="b")),
        links=(Link(a="a", b="b", a_address="10.0.0.1/30", b_address="10.0.0.2/30"),),
    )
    with pytest.raises(InvalidInput, match="no free address"):
        free_address(full, "a")


def test_routers_hand_on_to_the_edge_or_to_the_next_router() -> None:
    assert ways(TWO_EDGES, "core", ["edge-1", "edge-2"]) == {"edge-1": "10.0.1.2", "edge-2": "10.0.2.2"}
    assert ways(TWO_EDGES, "access", ["edge-1", "edge-2"]) == {"edge-1": "10.0.10.2", "edge-2": "10.0.10.2"}
    assert set(first_hops(TWO_EDGES, ["edge-1", "edge-2"])) == {"access", "core"}


def test_in_a_network_without_routers_the_client_is_its_own() -> None:
    hops = first_hops(ONE_LAN, ["edge-1", "edge-2"])
    assert hops == {"client": ONE_LAN.service_addresses}


def test_every_router_is_told_its_ways_and_the_service_is_in_nobodys_network() -> None:
    for config in router_configs(TWO_EDGES, "edge-1", "edge-2"):
        assert (config.address, config.edge) == (SERVICE_ADDRESS, "edge-1")
        assert config.listen.host in [a.partition("/")[0] for a in TWO_EDGES.addresses_of(config.vantage)]
    assert not any(network.startswith("192.0.2.") for network in TWO_EDGES.networks() + ONE_LAN.networks())


def test_plugs_have_names_and_addresses_of_their_own() -> None:
    one, two = Plug("edge-1", 1, "10.0.1.3"), Plug("edge-2", 2, "10.0.2.3")
    seen = [
        one.outer,
        two.outer,
        one.inner,
        two.inner,
        *(plug.mac(side) for plug in (one, two) for side in (0, 1)),
    ]
    assert len(set(seen)) == len(seen)
    assert one.table != two.table


# --- a router's process --------------------------------------------------------------------------


class Netlink:
    """Notes the routes it is asked for."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, str]] = []

    def route(self, do: str, **words: Any) -> None:
        assert do == "replace"
        self.routes.append((words["dst"], words["gateway"]))


@pytest.fixture
def router(capfdbinary: pytest.CaptureFixture[bytes]) -> Router:
    config = RouterConfig(
        vantage="core",
        listen=Endpoint("10.0.10.2", 4437),
        address=SERVICE_ADDRESS,
        edge="edge-1",
        gateways={"edge-1": "10.0.1.2", "edge-2": "10.0.2.2"},
    )
    return Router(config, Netlink())


def update(number: int, edge: str, address: str = SERVICE_ADDRESS) -> bytes:
    return msgspec.json.encode(RouteUpdate(number=number, address=address, edge=edge))


def routes(router: Router) -> list[str]:
    netlink = router._netlink
    assert isinstance(netlink, Netlink)
    return [gateway for _, gateway in netlink.routes]


def test_a_router_follows_the_address_and_answers_repeats_without_obeying_them(router: Router) -> None:
    assert routes(router) == ["10.0.1.2"]
    assert router.obey(update(2, "edge-2")) == update(2, "edge-2")
    assert router.obey(update(2, "edge-2")) == update(2, "edge-2")
    assert routes(router) == ["10.0.1.2", "10.0.2.2"]


def test_an_older_update_that_comes_late_changes_nothing(router: Router) -> None:
    """The source took the address back (3); the destination's announcement (2) had been on its way."""
    router.obey(update(3, "edge-1"))
    assert router.obey(update(2, "edge-2")) is not None
    assert routes(router)[-1] == "10.0.1.2"


@pytest.mark.parametrize("data", [b"", b"{}", b"junk", update(9, "edge-9"), update(9, "edge-2", "192.0.2.2")])
def test_what_is_no_update_for_this_address_is_not_answered(router: Router, data: bytes) -> None:
    assert router.obey(data) is None
    assert routes(router) == ["10.0.1.2"]


# --- the path manager's events --------------------------------------------------------------------


def netlink_message(command: int, **attributes: bytes) -> bytes:
    kinds = {"token": 1, "local": 5, "remote": 7}
    body = b""
    for name, value in attributes.items():
        body += struct.pack("=HH", 4 + len(value), kinds[name]) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHIIBBH", 20 + len(body), 28, 0, 0, 0, command, 1, 0) + body


def test_connections_subflows_and_ends_are_read_from_the_events() -> None:
    here, there = socket.inet_aton("10.0.1.3"), socket.inet_aton("10.0.2.3")
    data = (
        netlink_message(1, token=b"AAAA", local=here)  # created: not there yet
        + netlink_message(2, token=b"AAAA", local=here, remote=there)
        + netlink_message(10, token=b"AAAA", local=there)
        + netlink_message(6, token=b"AAAA", remote=there)  # announced
        + netlink_message(3, token=b"AAAA")
    )
    assert read_changes(data) == [
        Change(b"AAAA", "10.0.1.3"),
        Change(b"AAAA", "10.0.2.3"),
        Change(b"AAAA", None),
    ]
    for cut in range(len(data)):
        read_changes(data[:cut])  # whatever is cut off, it ends
    assert read_changes(bytes(40)) == []


# --- engines and downtimes ------------------------------------------------------------------------


def test_only_an_engine_that_takes_tcp_along_moves_it() -> None:
    baselines.check_engine("ip-move-tcp", "criu-cold")
    baselines.check_engine("ip-move-quic", "handoff")
    with pytest.raises(Unsupported, match="--tcp-established") as caught:
        baselines.check_engine("ip-move-tcp", "handoff")
    assert "criu-cold" in str(caught.value.hint)
    assert caught.value.exit_code == 127


def result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {"outcome": "succeeded", "strategy": "symmetric", "engine": "handoff", "seed": 1}
    return RunResult(**(values | {"container_downtime_ms": 5.0, "run_id": "one"} | changes))


class Session:
    """Runs that are only noted; every one of a strategy stands still for 7 ms."""

    def __init__(self, downtime_ms: float | None = 7.0) -> None:
        self.performed: list[RunSpec] = []
        self._downtime_ms = downtime_ms

    def perform(self, spec: RunSpec) -> RunResult:
        self.performed.append(spec)
        if spec.baseline is not None:
            return result(strategy=spec.baseline, kind="baseline", engine=spec.engine)
        outcome = "succeeded" if self._downtime_ms is not None else "failed"
        return result(
            engine=spec.engine, container_downtime_ms=self._downtime_ms, run_id="model", outcome=outcome
        )


MPTCP = RunSpec(baseline="mptcp", engine="handoff", seed=4)


def test_mptcp_stands_still_as_long_as_the_engine_took_in_this_session() -> None:
    session = Session()
    earlier = [
        result(seed=4, container_downtime_ms=6.0, run_id="same repetition"),
        result(seed=3, container_downtime_ms=8.0),
        result(seed=4, engine="criu-cold", container_downtime_ms=150.0),
        result(seed=4, memory_mib=100, container_downtime_ms=400.0),
        result(seed=4, kind="baseline", container_downtime_ms=90.0),
    ]
    done = Downtimes(earlier).perform(MPTCP, session.perform)
    assert [spec.downtime_ms for spec in session.performed] == [6.0]
    assert "same repetition" in done.warnings[0]


def test_without_a_model_one_is_measured_once() -> None:
    session = Session()
    downtimes = Downtimes([])
    downtimes.perform(MPTCP, session.perform)
    downtimes.perform(MPTCP, session.perform)
    assert [(spec.baseline, spec.downtime_ms) for spec in session.performed] == [
        (None, None),
        ("mptcp", 7.0),
        ("mptcp", 7.0),
    ]
    assert session.performed[0].engine == "handoff"


def test_a_model_that_fails_is_told_as_the_baselines_failure() -> None:
    done = Downtimes([]).perform(MPTCP, Session(downtime_ms=None).perform)
    assert (done.outcome, done.strategy, done.kind) == ("failed", "mptcp", "baseline")
    assert "could not be measured" in str(done.error)


def test_a_downtime_that_is_given_is_taken_and_others_need_none() -> None:
    session = Session()
    downtimes = Downtimes([])
    downtimes.perform(msgspec.structs.replace(MPTCP, downtime_ms=30.0), session.perform)
    downtimes.perform(RunSpec(baseline="ip-move-quic"), session.perform)
    downtimes.perform(RunSpec(), session.perform)
    assert [spec.downtime_ms for spec in session.performed] == [30.0, None, None]


def test_a_baseline_moves_once() -> None:
    assert to_spec({"moves": 3}).moves == 3
    assert to_spec({"baseline": "mptcp"}).moves == 1
    with pytest.raises(InvalidInput, match="one move only"):
        to_spec({"baseline": "mptcp", "moves": 2})


@pytest.mark.parametrize("baseline", ["mptcp", "ip-move-quic", "ip-move-tcp", "client-migration"])
def test_a_baseline_that_moves_once_says_so_and_what_to_leave_out(baseline: str) -> None:
    with pytest.raises(InvalidInput, match="one move only") as caught:
        to_spec({"baseline": baseline, "moves": 2})
    assert "--moves" in str(caught.value.hint)


def test_a_cell_that_no_machine_can_fill_is_no_failure_beside_others() -> None:
    cannot = result(outcome="unsupported", kind="baseline", strategy="ip-move-tcp", error="not so")
    raise_for([result(), cannot])
    with pytest.raises(Unsupported) as caught:
        raise_for([cannot, cannot])
    assert caught.value.exit_code == 127
    for bad in (
        result(outcome="failed", kind="baseline", strategy="ip-move-tcp"),
        result(outcome="unsupported", kind="baseline", strategy="mptcp"),  # another machine could
        result(outcome="unsupported"),
    ):
        with pytest.raises(SomeFailed):
            raise_for([result(), cannot, bad])


def test_a_downtime_is_borrowed_only_from_a_run_that_was_asked_for_alike() -> None:
    session = Session()
    slow = RunSpec(engine="handoff", seed=4, inter_edge_mbps=50.0)
    Downtimes([result(seed=4, container_downtime_ms=6.0, spec=slow)]).perform(MPTCP, session.perform)
    assert [spec.downtime_ms for spec in session.performed] == [None, 7.0]
    assert session.performed[0] == RunSpec(engine="handoff", seed=4)
