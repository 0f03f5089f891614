import ipaddress
import itertools

import pytest

import topologies
from quicferry.emulation import routing
from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Route, Topology

TWO_EDGES = topologies.get("two_edges").build()
ONE_LAN = topologies.get("one_lan").build()


def chain(routers: int) -> Topology:
    """a - r1 - … - rN - b, each link a network of its own."""
    names = ["a", *(f"r{n}" for n in range(1, routers + 1)), "b"]
    return Topology(
        name="chain",
        summary="",
        nodes=tuple(
            Node(name=n, kind=NodeKind.ROUTER if n.startswith("r") else NodeKind.HOST) for n in names
        ),
        links=tuple(
            Link(a=x, b=y, a_address=f"10.0.{i}.1/24", b_address=f"10.0.{i}.2/24")
            for i, (x, y) in enumerate(itertools.pairwise(names))
        ),
    )


def test_an_end_system_needs_its_default_gateway_only() -> None:
    own = [route for route in routing.routes(TWO_EDGES) if route.node == "client"]
    assert own == [Route("client", "0.0.0.0/0", "10.0.0.1")]


def test_a_router_knows_each_network_that_can_be_reached() -> None:
    access = {route.network: route.gateway for route in routing.routes(TWO_EDGES) if route.node == "access"}
    behind_core = ("10.0.1.0/24", "10.0.2.0/24", "10.0.80.0/24", "10.0.81.0/24")
    assert access == dict.fromkeys(behind_core, "10.0.10.2")


def test_a_network_of_end_systems_alone_has_no_route_from_elsewhere() -> None:
    assert not [route for route in routing.shortest_routes(TWO_EDGES) if route.network == "10.0.90.0/24"]


@pytest.mark.parametrize("topology", [TWO_EDGES, ONE_LAN, chain(5)], ids=lambda t: t.name)
def test_every_gateway_is_a_neighbouring_router(topology: Topology) -> None:
    ends = routing.attachments(topology)
    owner = {end.host_address: end for end in ends}
    for route in routing.shortest_routes(topology):
        gateway = owner[route.gateway]
        assert topology.node(gateway.node).kind is NodeKind.ROUTER
        assert any(end.node == route.node and end.network == gateway.network for end in ends)


def test_the_path_passes_the_routers_in_order() -> None:
    assert routing.path(TWO_EDGES, "client", "edge-2") == ("client", "access", "core", "edge-2")
    assert routing.path(TWO_EDGES, "edge-1", "edge-2") == ("edge-1", "core", "edge-2")
    assert routing.path(ONE_LAN, "client", "edge-2") == ("client", "edge-2")
    assert routing.path(chain(4), "b", "a") == ("b", "r4", "r3", "r2", "r1", "a")


def test_the_shorter_way_wins() -> None:
    """A ring of five routers: from either neighbour of the far end, the near side is taken."""
    nodes = tuple(Node(name=f"r{n}", kind=NodeKind.ROUTER) for n in range(5))
    links = tuple(
        Link(a=f"r{n}", b=f"r{(n + 1) % 5}", a_address=f"10.7.{n}.1/24", b_address=f"10.7.{n}.2/24")
        for n in range(5)
    )
    ring = Topology(name="ring", summary="", nodes=nodes, links=links)
    table = {(route.node, route.network): route.gateway for route in routing.routes(ring)}
    assert table["r0", "10.7.1.0/24"] == "10.7.0.2"  # r1 is in it
    assert table["r0", "10.7.3.0/24"] == "10.7.4.1"  # r4 is in it
    assert table["r0", "10.7.2.0/24"] == "10.7.0.2"  # both ways are as long: the first link


def test_there_is_no_way_between_islands() -> None:
    islands = Topology(
        name="islands",
        summary="",
        nodes=tuple(Node(name=n) for n in "abcd"),
        links=(
            Link(a="a", b="b", a_address="10.0.0.1/24", b_address="10.0.0.2/24"),
            Link(a="c", b="d", a_address="10.0.1.1/24", b_address="10.0.1.2/24"),
        ),
    )
    assert routing.routes(islands) == ()
    with pytest.raises(InvalidInput, match="no way from a to c"):
        routing.path(islands, "a", "c")
    assert set(routing.connected_pairs(islands)) == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")}


def test_end_systems_do_not_forward() -> None:
    line = chain(1)
    as_host = Topology(
        name="line", summary="", nodes=tuple(Node(name=n.name) for n in line.nodes), links=line.links
    )
    with pytest.raises(InvalidInput):
        routing.path(as_host, "a", "b")


def test_all_end_systems_of_the_topologies_reach_each_other() -> None:
    for topology in (TWO_EDGES, ONE_LAN):
        hosts = [n for n in topology.nodes if n.kind in {NodeKind.HOST, NodeKind.EDGE}]
        assert len(list(routing.connected_pairs(topology))) == len(hosts) * (len(hosts) - 1)


def test_interfaces_are_named_as_mininet_names_them_and_are_never_too_long() -> None:
    names = {(end.node, end.link): end.interface for end in routing.attachments(TWO_EDGES)}
    assert names["client", "client--access"] == "client-eth0"
    assert names["core", "core--edge-2"] == "core-eth2"
    lan = {(end.node, end.link): end.interface for end in routing.attachments(ONE_LAN)}
    assert lan["lan", "client--lan"] == "lan-eth1"  # Mininet counts a switch's ports from 1
    many = Topology(
        name="star",
        summary="",
        nodes=(Node(name="abcdefghij"), *(Node(name=f"h{n}") for n in range(12))),
        links=tuple(Link(a="abcdefghij", b=f"h{n}") for n in range(12)),
    )
    every = [end.interface for end in routing.attachments(many)]
    assert len(set(every)) == len(every)
    assert max(len(name) for name in every) <= 15


def test_hardware_addresses_are_local_unicast_and_differ() -> None:
    ends = routing.attachments(topologies.get("two_edges").build(pool=7))
    assert len({end.mac for end in ends}) == len(ends)
    for end in ends:
        first = int(end.mac[:2], 16)
        assert first & 1 == 0
        assert first & 2 == 2


def test_neighbours_cover_each_pair_of_a_lan_both_ways() -> None:
    found = routing.neighbours(ONE_LAN)
    assert len(found) == 5 * 4
    mac = {end.node: end.mac for end in routing.attachments(ONE_LAN) if end.address}
    for neighbour in found:
        owner = next(n for n in mac if mac[n] == neighbour.mac)
        assert neighbour.address in {a.partition("/")[0] for a in ONE_LAN.addresses_of(owner)}


def test_two_lans_joined_late_are_one_segment() -> None:
    """The link that joins the two bridges stands last."""
    topology = Topology(
        name="joined",
        summary="",
        nodes=(
            *(Node(name=n) for n in "ab"),
            *(Node(name=n, kind=NodeKind.SWITCH) for n in ("s1", "s2")),
        ),
        links=(
            Link(a="a", b="s1", a_address="10.0.0.1/24"),
            Link(a="b", b="s2", a_address="10.0.0.2/24"),
            Link(a="s1", b="s2"),
        ),
    )
    assert [[end.node for end in part] for part in routing.segments(topology)] == [["a", "b"]]


def test_ipv6_networks_get_their_own_default_route() -> None:
    topology = Topology(
        name="v6",
        summary="",
        nodes=(Node(name="a"), Node(name="r", kind=NodeKind.ROUTER), Node(name="b")),
        links=(
            Link(a="a", b="r", a_address="fd00:1::2/64", b_address="fd00:1::1/64"),
            Link(a="r", b="b", a_address="fd00:2::1/64", b_address="fd00:2::2/64"),
        ),
    )
    assert routing.routes(topology) == (Route("a", "::/0", "fd00:1::1"), Route("b", "::/0", "fd00:2::1"))


def test_a_link_is_found_by_its_name() -> None:
    assert ipaddress.ip_interface(routing.link_between(TWO_EDGES, "edge-1--edge-2").a_address or "")
    with pytest.raises(InvalidInput) as refusal:
        routing.link_between(TWO_EDGES, "edge-1--moon")
    assert "edge-1--edge-2" in (refusal.value.hint or "")


#: Every family, also dual stack, and hosts that have one router, two, or one that leads nowhere.
MANY = [
    *(topologies.get(name).build() for name in topologies.names()),
    *(topologies.get(name).build(ip="dual") for name in ("two_edges", "ring")),
    chain(1),
    chain(0),
    Topology(
        name="stub",
        summary="",
        nodes=(
            Node(name="a"),
            Node(name="r", kind=NodeKind.ROUTER),
            Node(name="s", kind=NodeKind.ROUTER),
            Node(name="sw", kind=NodeKind.SWITCH),
            Node(name="b"),
        ),
        links=(
            Link(a="a", b="r", a_address="10.1.0.1/24", b_address="10.1.0.2/24"),
            Link(a="s", b="sw", a_address="10.2.0.1/24"),
            Link(a="b", b="sw", a_address="10.2.0.2/24"),
        ),
    ),
]


@pytest.mark.parametrize("topology", MANY, ids=lambda t: f"{t.name}-{len(t.networks())}")
def test_the_only_gateway_is_the_nearest(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    found = routing.routes(topology)
    monkeypatch.setattr(routing, "_only_gateways", lambda _: {})
    assert set(found) == set(routing.routes(topology))
    assert len(found) == len(set(found))
