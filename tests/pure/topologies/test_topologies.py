import runpy
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

import topologies
from cli.topo import topo as topo_command
from quicferry.emulation import drawing
from quicferry.errors import InvalidInput
from quicferry.model import NodeKind, Shape, Topology
from topologies import Family, Parameter

ROOT = Path(topologies.__file__).parent


def two_edges(**parameters: float | None) -> Topology:
    return topologies.get("two_edges").build(**parameters)


def shapes(topology: Topology, name: str) -> tuple[Shape, Shape]:
    link = next(link for link in topology.links if link.name == name)
    return link.a_to_b, link.b_to_a


def test_every_module_of_the_folder_is_in_the_registry() -> None:
    files = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "registry", "mininet_topo"}
    assert files == set(topologies.names())


@pytest.mark.parametrize("name", topologies.names())
def test_every_topology_builds_with_its_defaults_and_has_all_parts(name: str) -> None:
    family = topologies.get(name)
    topology = family.build()
    assert topology.name == family.name == name
    assert topology.summary == family.summary
    assert set(topology.parts) == {"client", "source", "destination", "orchestrator", "dns"}
    assert topology.parts["destination"] in topology.pool
    assert topology.parts["source"] not in topology.pool
    for edge, address in topology.service_addresses.items():
        assert topology.node(edge).kind is NodeKind.EDGE
        assert address in [a.partition("/")[0] for a in topology.addresses_of(edge)]
    assert msgspec.json.decode(msgspec.json.encode(topology), type=Topology) == topology


def test_an_unknown_topology_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidInput) as refusal:
        topologies.get("moon")
    assert "two_edges" in (refusal.value.hint or "")
    with pytest.raises(InvalidInput):
        topologies.get("registry")


def test_an_unknown_parameter_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidInput) as refusal:
        two_edges(rtt=3)
    assert "rtt_ms" in (refusal.value.hint or "")


def test_an_axis_that_a_topology_does_not_have_is_refused_only_when_it_was_chosen() -> None:
    lan, defaults = topologies.get("one_lan"), {"rtt_ms": 18.0, "jitter_ms": 0.0, "pool": 1}
    topology = lan.build_from_axes({"rtt_ms": 18.0, "jitter_ms": 0.0, "pool": 1}, defaults)
    assert shapes(topology, "client--lan") == (Shape(delay_ms=9),) * 2
    with pytest.raises(InvalidInput, match="no parameter 'pool'"):
        lan.build_from_axes({"rtt_ms": 18.0, "jitter_ms": 0.0, "pool": 3}, defaults)


def test_a_family_whose_summary_and_builder_disagree_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Family(
            name="x",
            summary="",
            parameters=(Parameter(name="rtt_ms", default=1.0, summary=""),),
            builder=topologies.get("two_edges").builder,
        )


@pytest.mark.parametrize(
    "parameters",
    [
        {"rtt_ms": -1},
        {"rtt_ms": float("nan")},
        {"source_rtt_ms": -1},
        {"rtt_ms": 30_000},
        {"rtt_ms": 4, "jitter_ms": 3},
        {"source_rtt_ms": 4, "jitter_ms": 3},
        {"jitter_ms": -1},
        {"loss_percent": 150},
        {"loss_percent": -0.1},
        {"rate_mbps": 0},
        {"inter_edge_mbps": 0},
        {"inter_edge_rtt_ms": -1},
        {"pool": 0},
        {"pool": 8},
        {"pool": 1.5},
        {"pool": True},
    ],
    ids=str,
)
def test_bad_parameters_are_refused_before_anything_is_built(parameters: dict[str, float]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        two_edges(**parameters)
    assert refusal.value.hint


def test_delays_sit_between_core_and_edges_and_loss_at_the_client() -> None:
    topology = two_edges(
        rtt_ms=40, source_rtt_ms=10, jitter_ms=1, loss_percent=2, rate_mbps=50, inter_edge_mbps=100, pool=2
    )
    assert shapes(topology, "core--edge-1") == (Shape(delay_ms=5, jitter_ms=1),) * 2
    assert shapes(topology, "core--edge-2") == (Shape(delay_ms=20, jitter_ms=1),) * 2
    assert shapes(topology, "core--edge-3") == (Shape(delay_ms=20, jitter_ms=1),) * 2
    assert shapes(topology, "client--access") == (Shape(loss_percent=2, rate_mbps=50),) * 2
    assert shapes(topology, "edge-1--edge-2") == (Shape(delay_ms=0.25, rate_mbps=100),) * 2
    assert all(shape.does_nothing for shape in shapes(topology, "core--orch"))


@pytest.mark.parametrize("pool", range(1, 8))
def test_a_pool_has_as_many_candidates_as_asked_and_the_destination_is_not_always_first(pool: int) -> None:
    topology = two_edges(pool=pool)
    assert len(set(topology.pool)) == pool
    assert topology.pool[-1] == topology.parts["destination"] == "edge-2"
    assert set(topology.pool) <= set(topology.service_addresses)
    edges = [node for node in topology.nodes if node.kind is NodeKind.EDGE]
    assert len(edges) == max(2, pool + 1)  # no edge that nobody needs


def test_the_addresses_are_those_of_the_documentation() -> None:
    topology = two_edges(pool=7)
    assert topology.addresses_of("client") == ("10.0.0.2/24",)
    assert topology.addresses_of("access") == ("10.0.0.1/24", "10.0.10.1/24")
    assert topology.addresses_of("edge-1") == ("10.0.1.2/24", "10.0.90.1/24")
    assert topology.addresses_of("edge-2") == ("10.0.2.2/24", "10.0.90.2/24")
    assert topology.addresses_of("edge-8") == ("10.0.8.2/24",)
    assert topology.addresses_of("orch") == ("10.0.80.2/24",)
    assert topology.addresses_of("dns") == ("10.0.81.2/24",)


@pytest.mark.parametrize("name", topologies.names())
def test_stock_mininet_finds_topos_in_the_file(name: str) -> None:
    topos = runpy.run_path(str(ROOT / f"{name}.py"))["topos"]
    topology = topologies.get(name).build()
    topo = topos[name]()
    switches = {node.name for node in topology.nodes if node.kind is NodeKind.SWITCH}
    assert set(topo.switches()) == switches
    assert set(topo.hosts()) == {node.name for node in topology.nodes} - switches
    made = {frozenset((a, b)) for a, b in topo.links()}
    assert made == {frozenset((link.a, link.b)) for link in topology.links}


def test_stock_mininet_gets_each_directions_shape_in_its_own_units() -> None:
    topo = topologies.get("two_edges").mininet_topos()["two_edges"](rtt_ms=30, jitter_ms=2, loss_percent=1.5)
    links = {frozenset((a, b)): info for a, b, info in topo.links(withInfo=True)}
    edge = links[frozenset(("core", "edge-2"))]
    assert edge["cls"].__name__ == "TCLink"
    expected = {"delay": "15ms", "jitter": "2ms", "max_queue_size": 100_000}
    assert edge["params1"] == {"ip": "10.0.2.1/24", **expected}
    assert edge["params2"] == {"ip": "10.0.2.2/24", **expected}
    access = links[frozenset(("client", "access"))]
    assert access["params1"]["loss"] == 1.5
    between = links[frozenset(("edge-1", "edge-2"))]
    assert between["params1"]["bw"] == 1000.0
    assert links[frozenset(("core", "dns"))]["cls"].__name__ == "Link"
    core = topo.nodeInfo("core")
    assert core["forward"] is True
    assert ("10.0.0.0/24", "10.0.10.1") in core["routes"]
    assert topo.nodeInfo("client")["routes"] == (("0.0.0.0/0", "10.0.0.1"),)


def test_the_kind_of_a_switch_is_left_to_the_command_line_of_stock_mininet() -> None:
    topo = topologies.get("one_lan").mininet_topos()["one_lan"]()
    assert topo.nodeInfo("lan") == {"isSwitch": True, "dpid": "1"}


def test_a_rate_that_stock_mininet_would_ignore_is_refused() -> None:
    topos = topologies.get("two_edges").mininet_topos()
    with pytest.raises(InvalidInput, match="10000 Mbit/s"):
        topos["two_edges"](inter_edge_mbps=10_000)
    topos["two_edges_plain"](inter_edge_mbps=10_000)


def test_the_plain_variant_for_stock_mininet_has_no_shape() -> None:
    topo = topologies.get("two_edges").mininet_topos()["two_edges_plain"]()
    assert {info["cls"].__name__ for _, _, info in topo.links(withInfo=True)} == {"Link"}


def test_the_text_drawing_shows_every_node_and_every_link_once() -> None:
    topology = two_edges(pool=2, loss_percent=1)
    text = drawing.text(topology)
    tree, _, closing = text.partition("also linked:\n")
    assert len(tree.splitlines()) == len(topology.nodes)
    for node in topology.nodes:
        assert sum(f"{node.name} " in f"{line} " for line in tree.splitlines()) >= 1
    assert "1 % loss each way" in tree
    assert closing.strip() == "edge-1 ── edge-2 (0.25 ms, 1000 Mbit/s each way)"


def test_directions_that_differ_are_both_told() -> None:
    link = topologies.get("two_edges").build().links[0]
    uneven = msgspec.structs.replace(link, a_to_b=Shape(delay_ms=1), b_to_a=Shape())
    assert drawing.describe_link(uneven) == "client→access: 1 ms; access→client: plain"


@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.parametrize("name", topologies.names())
def test_the_picture_is_of_the_kind_its_name_says(name: str, suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"picture{suffix}"
    drawing.picture(topologies.get(name).build(), target)
    head = target.read_bytes()[:512]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in head


def test_the_same_topology_gives_the_same_picture(tmp_path: Path) -> None:
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    for target in (first, second):
        drawing.picture(two_edges(), target)
    assert first.read_bytes() == second.read_bytes()


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refusal:
        drawing.picture(two_edges(), tmp_path / "picture.doc")
    assert ".svg" in (refusal.value.hint or "")


def topo(*words: str) -> Result:
    return CliRunner().invoke(topo_command, list(words))


def test_the_list_tells_each_topology_and_its_parameters() -> None:
    answer = topo("list")
    assert answer.exit_code == 0
    for name in topologies.names():
        assert f"{name}: {topologies.get(name).summary}" in answer.stdout
    assert "rtt_ms" in answer.stdout
    lines = topo("list", "--json").stdout.splitlines()
    assert [msgspec.json.decode(line)["name"] for line in lines] == list(topologies.names())


def test_show_tells_nodes_links_and_settings() -> None:
    answer = topo("show", "two_edges", "--set", "rtt_ms=30", "--set", "rate_mbps=none")
    assert answer.exit_code == 0
    assert "15 ms each way" in answer.stdout
    assert "10.0.2.2/24" in answer.stdout
    shown = msgspec.json.decode(topo("show", "two_edges", "--set", "pool=3", "--json").stdout)
    assert shown["topology"]["pool"] == ["edge-3", "edge-4", "edge-2"]
    assert shown["parameters"]["pool"] == 3
    assert shown["parameters"]["rtt_ms"] == 18.0


def test_draw_writes_to_stdout_or_to_a_file(tmp_path: Path) -> None:
    assert topo("draw", "one_lan").stdout.startswith("client 10.1.0.2/24")
    target = tmp_path / "lan.svg"
    answer = topo("draw", "one_lan", "--output", str(target))
    assert answer.exit_code == 0
    assert answer.stdout == ""
    assert target.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("show", "moon"),
        ("show", "two_edges", "--set", "pool=8"),
        ("show", "two_edges", "--set", "rtt_ms"),
        ("show", "two_edges", "--set", "rtt_ms=slow"),
        ("draw", "two_edges", "--output", "/no/such/directory/x.svg"),
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_refused(words: tuple[str, ...]) -> None:
    assert isinstance(topo(*words).exception, InvalidInput)
