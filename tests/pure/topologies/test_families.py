"""Chains, rings, clouds and maps, in each IP version, and how they are asked for."""

from __future__ import annotations

import pytest

import topologies
from quicferry.emulation import routing
from quicferry.errors import InvalidInput
from quicferry.experiment.itinerary import client_links, onward, stops
from quicferry.model import NodeKind, Topology
from quicferry.spec import RunSpec
from session.request import to_spec
from topologies.building.access import with_own_access
from topologies.building.roundtrips import check_ways

ALL = topologies.names()


@pytest.mark.parametrize("ip", ["4", "6", "dual"])
@pytest.mark.parametrize("name", ALL)
def test_everybody_can_reach_whom_he_must_in_every_ip_version(name: str, ip: str) -> None:
    topology = topologies.get(name).build(ip=ip)
    for view in routing.by_version(topology):
        check_ways(view)
    versions = {":" in address for node in topology.nodes for address in topology.addresses_of(node.name)}
    assert versions == {"4": {False}, "6": {True}, "dual": {False, True}}[ip]
    if ip == "dual":
        assert set(topology.other_service_addresses) == set(topology.service_addresses)
        assert all(":" in address for address in topology.service_addresses.values())  # clients prefer IPv6


@pytest.mark.parametrize("name", ALL)
def test_both_versions_of_an_interface_have_one_hardware_address_and_no_two_nodes_share_one(
    name: str,
) -> None:
    four, six = (routing.attachments(topologies.get(name).build(ip=ip)) for ip in ("4", "6"))
    assert [end.mac for end in four] == [end.mac for end in six]
    hosts = [end for end in four if end.address is not None]
    assert len({end.mac for end in hosts}) == len(hosts)


def test_ip_6_is_readable_beside_ip_4() -> None:
    topology = topologies.get("two_edges").build(ip="6")
    assert topology.service_addresses == {"edge-1": "fd00:a:0:1::2", "edge-2": "fd00:a:0:2::2"}


@pytest.mark.parametrize(
    ("words", "edges"),
    [("chain,edges=5", 5), ("ring,edges=6", 6), ("cloud_edge,edges=2", 3), ("map,edges=4", 4)],
)
def test_a_parameter_is_chosen_with_the_name(words: str, edges: int) -> None:
    assert len(topologies.get(words).build().edges) == edges


@pytest.mark.parametrize(
    "words",
    [
        *("chain,edges=1", "chain,edges=17", "ring,edges=2", "chain,edges", "chain,moons=2", "chain,ip=5"),
        *("map,name=sndlib/atlantis", "map,name=../etc/passwd", "map,source=Atlantis", "chain,edges=many"),
        *("cloud_edge,edges=0", "cloud_edge,source_rtt_ms=1", "map,source=Warsaw,destination=Warsaw"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_hint(words: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        topologies.get(words).build()
    assert refusal.value.hint


def test_what_is_chosen_with_the_name_and_as_an_axis_must_agree() -> None:
    family = topologies.get("chain,rtt_ms=5")
    defaults = {"rtt_ms": 18.0}
    assert family.build_from_axes({"rtt_ms": 18.0}, defaults).rtts_ms["edge-1"] == 5
    with pytest.raises(InvalidInput, match="twice"):
        family.build_from_axes({"rtt_ms": 30.0}, defaults)


def test_round_trips_are_what_the_links_add_up_to() -> None:
    chain = topologies.get("chain,edges=4,rtt_ms=10,hop_rtt_ms=4").build()
    assert chain.rtts_ms == {"edge-1": 10, "edge-2": 14, "edge-3": 18, "edge-4": 22}
    ring = topologies.get("ring,edges=4,rtt_ms=10,hop_rtt_ms=4").build()
    assert ring.rtts_ms == {"edge-1": 10, "edge-2": 14, "edge-3": 18, "edge-4": 14}
    cloud = topologies.get("cloud_edge,rtt_ms=10,wan_rtt_ms=60").build()
    assert cloud.rtts_ms == {"cloud": 70, "edge-1": 10}
    assert topologies.get("one_lan").build(rtt_ms=6).rtts_ms == {"edge-1": 6, "edge-2": 6}


def test_a_client_is_at_one_site_and_can_change_to_every_other() -> None:
    chain = topologies.get("chain,edges=3").build()
    radio = chain.links_of("client")
    assert [link.up for link in radio] == [True, False, False]
    assert [route for route in routing.routes(chain) if route.node == "client"] == [
        routing.Route("client", "0.0.0.0/0", "10.1.1.1")
    ]
    # the others know where its other addresses are
    far = [route for route in routing.routes(chain) if route.network == "10.1.3.0/24"]
    assert {route.node for route in far} == {"site-1", "site-2"}


def test_a_map_takes_the_shortest_way_by_length_and_leaves_out_what_no_packet_passes() -> None:
    germany = topologies.get("map,name=sndlib/germany50,client=Hamburg,source=Muenchen").build()
    assert germany.parts["destination"] == "edge-2"
    way = routing.path(germany, "client", "edge-1")
    assert way[1] == "hamburg"
    assert "muenchen" in "".join(way)
    assert len(germany.nodes) < 30
    # 610 km as the crow flies; fibre is longer
    assert 18 + 2 * 610 / 200 < germany.rtts_ms["edge-1"] < 18 + 2 * 900 / 200
    whole = topologies.get("map,name=sndlib/germany50,whole=1").build()
    assert sum(node.kind is NodeKind.ROUTER for node in whole.nodes) == 50


@pytest.mark.parametrize("name", ["topozoo/Abilene", "backbone/africa", "gabriel/25/0", "caida/2024-08/8708"])
def test_every_kind_of_map_can_be_built(name: str) -> None:
    check_ways(topologies.get(f"map,name={name}").build())


def topology(words: str) -> Topology:
    return topologies.get(words).build()


def test_a_server_visits_the_edges_as_its_route_says() -> None:
    chain = topology("chain,edges=3")
    a, b, c = "edge-1", "edge-2", "edge-3"
    assert stops(chain, RunSpec(moves=3)) == (a, b, a, b)
    assert stops(chain, RunSpec(moves=4, route="round")) == (a, b, c, a, b)
    assert stops(chain, RunSpec(moves=5, route="along")) == (a, b, c, b, a, b)
    assert stops(topology("two_edges"), RunSpec(moves=3, route="along")) == (a, b, a, b)
    assert onward(stops(chain, RunSpec(moves=5, route="along")), b) == (c, a)


def test_a_client_that_moves_has_its_next_address_and_way_there() -> None:
    chain = topology("chain,edges=3")
    assert routing.first_address(chain, "client") == "10.1.1.2"
    moved = routing.handed_over(chain, "client", "client--site-3")
    assert routing.first_address(moved, "client") == "10.1.3.2"
    assert [route.gateway for route in routing.routes(moved) if route.node == "client"] == ["10.1.3.1"]
    with pytest.raises(InvalidInput, match="not at the link"):
        routing.handed_over(chain, "client", "site-1--site-2")


def test_a_client_goes_to_the_site_of_the_edge_that_is_next_on_the_route() -> None:
    chain = topology("chain,edges=3")
    spec = RunSpec(moves=3, route="round", mobility="before")
    assert stops(chain, spec) == ("edge-1", "edge-2", "edge-3", "edge-1")
    assert client_links(chain, spec) == tuple(f"client--site-{number}" for number in (1, 2, 3, 1))
    alone = RunSpec(moves=3, route="round", mobility="alone")
    assert stops(chain, alone) == ("edge-1",) * 4
    assert client_links(chain, alone) == client_links(chain, spec)


def test_a_client_with_one_access_router_cannot_move() -> None:
    with pytest.raises(InvalidInput, match="one access router") as refusal:
        to_spec({"mobility": "alone"})
    assert "chain" in (refusal.value.hint or "")
    assert to_spec({"mobility": "together", "topology": "ring"}).mobility == "together"


@pytest.mark.parametrize("ip", ["4", "6", "dual"])
@pytest.mark.parametrize("name", ALL)
def test_many_clients_with_an_access_of_their_own_are_each_as_the_first_one_is(name: str, ip: str) -> None:
    alone = topologies.get(name).build(ip=ip)
    made = with_own_access(alone, 4)
    assert made.clients == ("client", "client-2", "client-3", "client-4")
    for client in made.clients[1:]:
        own, first = made.links_of(client), made.links_of("client")
        assert [(a.a_to_b, a.b_to_a, a.up) for a in own] == [(b.a_to_b, b.b_to_a, b.up) for b in first]
        assert len(made.addresses_of(client)) == len(made.addresses_of("client"))
        for edge in made.service_addresses:
            assert routing.path(made, client, edge)[-1] == edge
    for view in routing.by_version(made):
        check_ways(view)


def test_more_clients_than_hosts_can_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="51 clients") as refusal:
        to_spec({"clients": 51, "access": "own"})
    assert "50" in (refusal.value.hint or "")
    with pytest.raises(InvalidInput, match="there is one"):
        to_spec({"access": "own"})
