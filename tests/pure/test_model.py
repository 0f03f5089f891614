import ipaddress
import math

import pytest

from quicferry.errors import InvalidInput
from quicferry.model import Endpoint, Link, Node, NodeKind, Shape, Topology

BAD_SHAPES = [
    {"delay_ms": -1},
    {"delay_ms": 10_001},
    {"delay_ms": math.nan},
    {"delay_ms": 1, "jitter_ms": 2},
    {"jitter_ms": -0.5},
    {"loss_percent": 150},
    {"loss_percent": -1},
    {"loss_percent": math.inf},
    {"rate_mbps": 0},
    {"rate_mbps": -10},
    {"rate_mbps": math.nan},
    {"queue_packets": 0},
]


@pytest.mark.parametrize("values", BAD_SHAPES, ids=str)
def test_a_shape_that_no_link_can_have_is_refused_with_a_hint(values: dict[str, float]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Shape(**values)
    assert "a link cannot have" in str(refusal.value)
    assert refusal.value.hint


def test_the_limits_themselves_are_allowed() -> None:
    Shape(delay_ms=10_000, jitter_ms=10_000, rate_mbps=100_000, loss_percent=100, queue_packets=1)


def test_the_queue_holds_twice_the_bandwidth_delay_product_and_at_least_a_hundred_packets() -> None:
    assert Shape(rate_mbps=100, delay_ms=60).queue_limit(1500) == 1000
    assert Shape(rate_mbps=1, delay_ms=1).queue_limit(1500) == 100
    assert Shape(rate_mbps=100, delay_ms=60, queue_packets=7).queue_limit(1500) == 7
    assert Shape(delay_ms=60).queue_limit(1500) == 100_000


@pytest.mark.parametrize("name", ["", "Edge", "1edge", "edge_1", "edge-number-9", "ä"])
def test_a_node_name_that_cannot_become_an_interface_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        Node(name=name)


@pytest.mark.parametrize(
    "values",
    [
        {"a": "x", "b": "x"},
        {"a": "x", "b": "y", "mtu_bytes": 500},
        {"a": "x", "b": "y", "a_address": "10.0.0.300/24"},
        {"a": "x", "b": "y", "b_address": "here"},
    ],
    ids=str,
)
def test_a_bad_link_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        Link(**values)


def make(**changes: object) -> Topology:
    values: dict[str, object] = {
        "name": "t",
        "summary": "",
        "nodes": (Node(name="a"), Node(name="b"), Node(name="s", kind=NodeKind.SWITCH)),
        "links": (
            Link(a="a", b="s", a_address="10.0.0.1/24"),
            Link(a="s", b="b", b_address="10.0.0.2/24", a_to_b=Shape(delay_ms=1)),
        ),
    }
    return Topology(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": (Node(name="a"), Node(name="a"))},
        {"nodes": (Node(name="a"), Node(name="b"))},  # a link ends at s
        {"parts": {"client": "nobody"}},
        {
            "links": (
                Link(a="a", b="s", a_address="10.0.0.1/24"),
                Link(a="s", b="b", b_address="10.0.0.1/24"),
            )
        },
    ],
    ids=["two of one name", "unknown end", "unknown part", "one address twice"],
)
def test_a_topology_that_does_not_fit_together_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        make(**changes)


def test_a_topology_answers_questions_about_itself() -> None:
    topology = make()
    assert topology.addresses_of("b") == ("10.0.0.2/24",)
    assert topology.addresses_of("s") == ()
    assert [link.name for link in topology.links_of("s")] == ["a--s", "s--b"]
    assert topology.networks() == ("10.0.0.0/24",)
    assert topology.links[0].is_plain
    assert not topology.links[1].is_plain
    with pytest.raises(InvalidInput) as refusal:
        topology.node("c")
    assert refusal.value.hint == "it has a, b, s"


def test_an_endpoint_is_written_as_in_urls() -> None:
    assert str(Endpoint("10.0.0.1", 4433)) == "10.0.0.1:4433"
    assert str(Endpoint("fd00::1", 4433)) == "[fd00::1]:4433"


@pytest.mark.parametrize("words", ["10.0.1.2:4433", "[fd00:a:0:2::2]:4433", "[::1]:1"])
def test_an_endpoint_is_read_as_it_is_written(words: str) -> None:
    endpoint = Endpoint.parse(words)
    assert str(endpoint) == words
    assert ipaddress.ip_address(endpoint.host)
    with pytest.raises(ValueError, match="invalid literal"):
        Endpoint.parse("edge")
