"""Topologies from TOML files: what one says, and that an error names file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

import topologies
from quicferry.errors import InvalidInput

CAMPUS = """
summary = "two buildings"

[nodes]
client = "host"
gate = "router"
lan = "switch"
edge-1 = "edge"
edge-2 = "edge"
orch = "host"

[[links]]
a = "client"
b = "gate"
delay_ms = 4
jitter_ms = 0.5
b_to_a = { rate_mbps = 20 }

[[links]]
a = "gate"
b = "lan"

[[links]]
a = "edge-1"
b = "lan"

[[links]]
a = "edge-2"
b = "lan"
loss_percent = 1

[[links]]
a = "orch"
b = "lan"

[parts]
client = "client"
source = "edge-1"
destination = "edge-2"
orchestrator = "orch"
dns = "orch"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "campus.toml"
    path.write_text(text)
    return path


def test_a_file_is_a_topology_with_addresses_of_its_own_making(tmp_path: Path) -> None:
    topology = topologies.get(str(written(tmp_path, CAMPUS))).build()
    assert (topology.name, topology.summary) == ("campus", "two buildings")
    access = topology.links[0]
    assert (access.a_to_b.delay_ms, access.a_to_b.rate_mbps) == (4, None)
    assert (access.b_to_a.jitter_ms, access.b_to_a.rate_mbps) == (0.5, 20)
    assert topology.service_addresses == {"edge-1": "10.0.1.2", "edge-2": "10.0.1.3"}
    assert topology.pool == ("edge-2",)
    assert topology.rtts_ms == {"edge-1": 8, "edge-2": 8}
    six = topologies.get(str(tmp_path / "campus.toml")).build(ip="6")
    assert six.service_addresses["edge-1"] == "fd00:a:0:1::2"


def test_an_axis_of_other_topologies_is_refused_for_a_file(tmp_path: Path) -> None:
    family = topologies.get(str(written(tmp_path, CAMPUS)))
    assert family.build_from_axes({"rtt_ms": 18.0}, {"rtt_ms": 18.0}).name == "campus"
    with pytest.raises(InvalidInput, match="rtt_ms"):
        family.build_from_axes({"rtt_ms": 30.0}, {"rtt_ms": 18.0})


@pytest.mark.parametrize(
    ("old", "new", "key", "allowed"),
    [
        ("[parts]", "[parts", "line 39", ""),
        ('lan = "switch"', 'lan = "hub"', "nodes.lan", "host, edge, router, switch"),
        ('edge-1 = "edge"', 'EDGE = "edge"', "nodes.EDGE", "a-z"),
        ('b = "gate"', 'b = "gat"', "links[1].b", "gate"),
        ("delay_ms = 4", "delay = 4", "links[1].delay", "delay_ms"),
        ("delay_ms = 4", 'delay_ms = "4"', "links[1].a_to_b", ""),
        ("delay_ms = 4", "delay_ms = -4", "links[1].a_to_b", "0 to 10000"),
        ("rate_mbps = 20", "rate = 20", "links[1].b_to_a.rate", "rate_mbps"),
        ('source = "edge-1"', 'source = "gate"', "parts.source", "edge"),
        ('source = "edge-1"', 'source = "edge-2"', "parts", "two"),
        ('dns = "orch"', "", "parts.dns", "orch"),
        ('dns = "orch"', 'dns = "orch"\nmoon = "orch"', "parts.moon", "dns"),
        ("summary =", "sumary =", "sumary", "summary"),
        ('summary = "two buildings"', 'pool = ["edge-1"]', "pool", "destination"),
        ('summary = "two buildings"', "links = 3", "links", ""),
        ('summary = "two buildings"', 'services = { edge-1 = "10.9.9.9" }', "services.edge-1", "10.0.1.2"),
    ],
)
def test_an_error_names_file_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, key: str, allowed: str
) -> None:
    assert old in CAMPUS
    path = written(tmp_path, CAMPUS.replace(old, new, 1))
    with pytest.raises(InvalidInput) as refusal:
        topologies.get(str(path)).build()
    assert str(path) in str(refusal.value)
    assert allowed in (refusal.value.hint or "")
    if new not in ("links = 3", "[parts"):
        assert key in str(refusal.value)


def test_edges_without_a_path_between_them_are_an_error(tmp_path: Path) -> None:
    islands = CAMPUS.replace('[[links]]\na = "edge-2"\nb = "lan"', '[[links]]\na = "edge-2"\nb = "client"')
    path = written(tmp_path, islands)
    with pytest.raises(InvalidInput, match=r"no path from .* to edge-2|no path from edge-2") as refusal:
        topologies.get(str(path)).build()
    assert str(path) in str(refusal.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.toml"):
        topologies.get(str(tmp_path / "nowhere.toml"))
