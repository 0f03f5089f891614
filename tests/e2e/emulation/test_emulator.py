"""Real networks in private roots: packets go where the topology says, and the machine stays as it was."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

import topologies
from quicferry.emulation import routing
from quicferry.process import run
from tests.e2e.support import InPrivateRoot, in_private_root

pytestmark = pytest.mark.needs("root", "mininet")

DEPLOY = """
    import time
    from pathlib import Path
    import topologies
    from quicferry.emulation import routing
    from quicferry.emulation.mininet.emulator import MininetEmulator
    from quicferry.process import PIPE

    WORK = Path(os.environ["TEST_REPORT"]).parent / "links"
    topology = topologies.get(ARGUMENTS["topology"]).build(**ARGUMENTS.get("parameters", {}))
    emulator = MininetEmulator(WORK)
    begun = time.monotonic()
    emulator.deploy(topology)
    deployed_s = time.monotonic() - begun
"""

#: Without delays: what is asked here is where packets go.
PLAIN = {"rtt_ms": 0, "inter_edge_rtt_ms": 0, "inter_edge_mbps": None}


def play(script: str, directory: Path, topology: str = "two_edges", **parameters: float | None) -> Any:
    arguments = {"topology": topology, "parameters": parameters}
    return in_private_root(textwrap.dedent(DEPLOY) + textwrap.dedent(script), directory, arguments=arguments)


def outside() -> dict[str, str]:
    """What of this machine an emulation must not change."""
    links = run(["ip", "-o", "link"]).stdout
    return {
        "links": "\n".join(sorted(line.partition("mtu")[0] for line in links.splitlines())),
        "routes": run(["ip", "route", "show", "table", "all"]).stdout,
        "named namespaces": run(["ip", "netns"]).stdout,
        "mounts": Path("/proc/self/mounts").read_text(),
        **{
            name: Path("/proc/sys", name).read_text()
            for name in (
                "net/ipv4/ip_forward",
                "net/ipv4/conf/all/rp_filter",
                "net/ipv4/conf/default/rp_filter",
                "net/core/wmem_max",
                "net/core/netdev_max_backlog",
                "net/ipv4/neigh/default/gc_thresh1",
                "fs/file-max",
                "kernel/pid_max",
            )
            if Path("/proc/sys", name).exists()
        },
    }


PING_ALL = """
    pairs = list(routing.connected_pairs(topology))
    lost = []
    for a, b in pairs:
        answer = emulator.execute(a, ["ping", "-n", "-c1", "-W2", emulator.address(b)], check=False)
        if answer.status != 0:
            lost.append([a, b, answer.stdout])
    emulator.destroy()
    report({"lost": lost, "pairs": len(pairs), "deployed_s": deployed_s})
"""


@pytest.mark.parametrize(
    ("topology", "parameters"),
    [
        ("two_edges", PLAIN),
        ("one_lan", {"rtt_ms": 0}),
        ("chain", {"rtt_ms": 0, "hop_rtt_ms": 0, "inter_edge_mbps": None, "ip": "dual"}),
        ("ring", {"rtt_ms": 0, "hop_rtt_ms": 0, "inter_edge_mbps": None, "ip": "6"}),
    ],
    ids=["routers", "bridge", "dual stack along a road", "IPv6 around a ring"],
)
def test_every_pair_reaches_each_other_with_the_first_packet(
    topology: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    before = outside()
    seen = play(PING_ALL, tmp_path, topology, **parameters)
    assert seen["lost"] == []
    assert seen["pairs"] >= 20
    assert outside() == before


def test_the_first_command_to_a_node_gets_a_shell_in_its_namespaces(tmp_path: Path) -> None:
    seen = play(
        """
        client = emulator._network["client"]
        before = client.pid
        found = client.cmd("ip -o -4 address show; findmnt -no FSTYPE /run").splitlines()
        same = client.pid == before
        emulator.destroy()
        report({"found": found, "same": same})
        """,
        tmp_path,
        **PLAIN,
    )
    assert any("10.0.0.2/24" in line for line in seen["found"])
    assert seen["found"][-1].strip() == "tmpfs"
    assert seen["same"]


@pytest.mark.needs("shaped-link")
def test_a_packet_takes_the_asked_time_and_a_network_is_up_soon(tmp_path: Path) -> None:
    seen = play(
        """
        ping = ["ping", "-n", "-c5", "-i0.02", "-W2"]
        far = emulator.execute("client", [*ping, "10.0.2.2"]).stdout
        near = emulator.execute("edge-1", [*ping, "10.0.90.2"]).stdout
        readings = [(r.link, r.backend, r.asked.delay_ms) for r in emulator.link_readings()]
        begun = time.monotonic()
        emulator.destroy()
        report([far, near, readings, deployed_s, time.monotonic() - begun])
        """,
        tmp_path,
        rtt_ms=40.0,
        inter_edge_rtt_ms=2.0,
    )
    far, near, readings, deployed_s, destroyed_s = seen
    fastest = [float(text.rpartition("= ")[2].partition("/")[0]) for text in (far, near)]
    assert 40 <= fastest[0] < 80
    assert 2 <= fastest[1] < 30
    assert len(readings) == 2 * 7
    assert ("plain" in {backend for link, backend, _ in readings if link == "core--dns"}) is True
    # What is seen is 0.4 s and 0.1 s; a busy machine may need longer, but not this much.
    assert deployed_s < 30
    assert destroyed_s < 30


@pytest.mark.needs("shaped-link")
def test_calibration_measures_what_was_asked_and_later_readings_keep_it(tmp_path: Path) -> None:
    calibrated, later = play(
        """
        import msgspec
        calibrated = emulator.calibrate()
        later = emulator.link_readings()
        report(msgspec.to_builtins([calibrated, later]))
        """,
        tmp_path,
        "one_lan",
        rtt_ms=20.0,
    )
    ways = {(r["link"], r["sender"]): r for r in calibrated}
    assert len(ways) == 2 * 5
    for end in ("client", "lan"):
        assert 10.0 <= ways["client--lan", end]["measured_delay_ms"] < 30.0
    assert ways["edge-1--lan", "lan"]["measured_delay_ms"] < 10.0
    for reading in later:
        asked = ways[reading["link"], reading["sender"]]
        assert reading["measured_delay_ms"] == asked["measured_delay_ms"]
        assert asked["read_back"]["rtt_median_ms"] == reading["read_back"]["rtt_median_ms"]


def test_packets_take_the_routes_of_the_topology(tmp_path: Path) -> None:
    seen = play(
        """
        hops = {}
        for host, target in (("client", "edge-2"), ("edge-1", "edge-2"), ("orch", "client")):
            out = emulator.execute(host, ["ping", "-n", "-R", "-c1", "-W2", emulator.address(target)]).stdout
            hops[f"{host} {target}"] = [w for w in out.partition("RR:")[2].split() if w[0].isdigit()]
        between = emulator.execute("edge-1", ["ip", "route", "get", "10.0.90.2"]).stdout
        report({"hops": hops, "between": between, "unreachable": emulator.execute(
            "client", ["ping", "-n", "-c1", "-W1", "10.0.90.2"], check=False).status})
        """,
        tmp_path,
        **PLAIN,
    )
    topology = topologies.get("two_edges").build()
    owner = {a.host_address: a.node for a in routing.attachments(topology)}
    for pair, addresses in seen["hops"].items():
        start, end = pair.split()
        passed = [owner[address] for address in addresses if address in owner]
        there = routing.path(topology, start, end)
        assert tuple(passed[: len(there)]) == there, f"{pair}: {passed}"
    assert "dev edge-1-eth1" in seen["between"]
    assert seen["unreachable"] != 0


def test_the_kernel_has_what_was_meant(tmp_path: Path) -> None:
    seen = play(
        """
        def setting(host, name):
            return emulator.execute(host, ["cat", f"/proc/sys/net/{name}"]).stdout.strip()
        report({
            "forward": {n.name: setting(n.name, "ipv4/ip_forward") for n in topology.nodes},
            "rp_filter": setting("edge-2", "ipv4/conf/edge-2-eth0/rp_filter"),
            "rp_filter_all": setting("edge-2", "ipv4/conf/all/rp_filter"),
            "accept_local": setting("edge-2", "ipv4/conf/edge-2-eth0/accept_local"),
            "send_redirects": setting("core", "ipv4/conf/core-eth0/send_redirects"),
            "neighbours": emulator.execute("client", ["ip", "neighbour"]).stdout,
            "ipv6": emulator.execute("client", ["ip", "-6", "address"]).stdout,
            "mininet": [str(emulator.interface(n, l.name)) for l in topology.links for n in (l.a, l.b)],
        })
        """,
        tmp_path,
        **PLAIN,
    )
    assert {name for name, value in seen["forward"].items() if value == "1"} == {"access", "core"}
    assert (seen["rp_filter"], seen["rp_filter_all"], seen["accept_local"]) == ("0", "0", "1")
    assert seen["send_redirects"] == "0"
    assert "10.0.0.1 dev client-eth0 lladdr 02:00:0a:00:00:01 PERMANENT" in seen["neighbours"]
    assert seen["ipv6"] == ""
    assert "core-eth2" in seen["mininet"]


def test_hosts_share_no_run_directory_and_no_network_but_programs_of_a_host_do(tmp_path: Path) -> None:
    seen = play(
        """
        emulator.execute("edge-1", ["touch", "/run/here"])
        hosts = ("edge-1", "edge-2", "client")
        listed = {host: emulator.execute(host, ["ls", "/run"]).stdout.split() for host in hosts}
        process = emulator.spawn("edge-1", ["sh", "-c", "echo $$; sleep 60; true"], stdout=PIPE)
        pid = int(process.stdout.readline())
        same = os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{emulator.pid('edge-1')}/ns/net")
        tag = f"QUICFERRY_RUN={os.environ['QUICFERRY_RUN']}".encode()
        tagged = tag in open(f"/proc/{pid}/environ", "rb").read().split(b"\\0")
        process.stdout.close()
        emulator.destroy()
        report({"listed": listed, "pid": [pid, process.pid], "same": same, "tagged": tagged,
                "status": process.returncode, "own_run": os.listdir("/run")})
        """,
        tmp_path,
        **PLAIN,
    )
    assert seen["listed"] == {"edge-1": ["here"], "edge-2": [], "client": []}
    assert seen["own_run"] == []
    assert seen["pid"][0] == seen["pid"][1]
    assert seen["same"] is True
    assert seen["tagged"] is True
    assert seen["status"] == -9  # the end of the emulation is the end of its programs


def test_hundreds_of_programs_are_cheap_and_leave_no_zombie(tmp_path: Path) -> None:
    seen = play(
        """
        begun = time.monotonic()
        for number in range(300):
            host = topology.nodes[number % len(topology.nodes)].name
            assert emulator.spawn(host, ["true"]).wait() == 0
        each_s = (time.monotonic() - begun) / 300
        ended = [emulator.spawn("edge-1", ["sh", "-c", "sleep 100 & sleep 100 & exit 0"]) for _ in range(5)]
        running = [emulator.spawn("edge-2", ["sleep", "100"]) for _ in range(5)]
        time.sleep(0.2)
        emulator.destroy()
        for _ in range(100):
            left = {}
            for entry in filter(str.isdigit, os.listdir("/proc")):
                try:
                    left[entry] = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
            if not set(left) - {"1", str(os.getpid())}:
                break
            time.sleep(0.1)
        report({"each_s": each_s, "left": left, "me": os.getpid()})
        """,
        tmp_path,
        **PLAIN,
    )
    assert seen["each_s"] < 0.5
    left = set(seen["left"]) - {"1", str(seen["me"])}
    assert not left, {pid: seen["left"][pid] for pid in left}


@pytest.mark.needs("shaped-link")
@pytest.mark.parametrize("parameters", [PLAIN, {**PLAIN, "rtt_ms": 4}], ids=["plain", "shaped"])
def test_a_cut_link_carries_nothing_and_a_mended_one_is_as_before(
    parameters: dict[str, Any], tmp_path: Path
) -> None:
    seen = play(
        """
        def state():
            return {h: [emulator.execute(h, ["ip", "-o", *w]).stdout for w in (["route"], ["neighbour"])]
                    for h in ("core", "edge-2", "client")}
        def ping(host, target):
            return emulator.execute(host, ["ping", "-n", "-c1", "-W1", target], check=False).status
        before = state()
        emulator.set_link("core--edge-2", up=False)
        cut = ping("client", "10.0.2.2"), ping("client", "10.0.1.2"), ping("edge-1", "10.0.90.2")
        emulator.set_link("core--edge-2", up=True)
        report({"before": before, "after": state(), "cut": cut, "mended": ping("client", "10.0.2.2")})
        """,
        tmp_path,
        **parameters,
    )

    def ordered(state: dict[str, list[str]]) -> dict[str, list[list[str]]]:
        return {host: [sorted(text.splitlines()) for text in texts] for host, texts in state.items()}

    assert [status == 0 for status in seen["cut"]] == [False, True, True]
    assert seen["mended"] == 0
    assert ordered(seen["after"]) == ordered(seen["before"])


def test_unknown_names_are_refused_and_a_failed_program_is_told(tmp_path: Path) -> None:
    seen = play(
        """
        from quicferry.errors import FerryError
        said = []
        for act in (
            lambda: emulator.execute("moon", ["true"]),
            lambda: emulator.interface("client", "core--edge-1"),
            lambda: emulator.set_link("moon--sun", up=True),
            lambda: emulator.execute("client", ["false"]),
            lambda: emulator.execute("client", ["sleep", "9"], timeout_s=0.2),
            lambda: emulator.deploy(topology),
        ):
            try:
                act()
            except FerryError as error:
                said.append([type(error).__name__, str(error)])
        emulator.destroy()
        emulator.destroy()
        emulator.deploy(topology)  # after the end, there can be a new beginning
        again = emulator.execute("client", ["ping", "-n", "-c1", "-W2", "10.0.2.2"]).status
        report([said, again])
        """,
        tmp_path,
        **PLAIN,
    )
    kinds = [kind for kind, _ in seen[0]]
    assert kinds == ["InvalidInput"] * 3 + ["CommandFailed"] * 2 + ["EmulationError"]
    assert seen[1] == 0


def test_a_deployment_that_fails_leaves_nothing_inside(tmp_path: Path) -> None:
    seen = in_private_root(
        """
        from pathlib import Path
        import topologies
        from quicferry.emulation.emulator import DeployPhase
        from quicferry.emulation.mininet.emulator import MininetEmulator
        left = {}
        for phase in DeployPhase:
            def fail(done, phase=phase):
                if done is phase:
                    raise RuntimeError("told to fail")
            emulator = MininetEmulator(Path(os.environ["TEST_REPORT"]).parent / "links", progress=fail)
            try:
                emulator.deploy(topologies.get("two_edges").build())
            except RuntimeError:
                left[phase] = sorted(p for p in os.listdir("/proc") if p.isdigit())
        report({"left": left, "me": os.getpid()})
        """,
        tmp_path,
    )
    assert len(seen["left"]) == 5
    for phase, pids in seen["left"].items():
        assert set(pids) == {"1", str(seen["me"])}, phase


def test_ipv6_works_at_once(tmp_path: Path) -> None:
    seen = in_private_root(
        """
        from pathlib import Path
        from quicferry.emulation.mininet.emulator import MininetEmulator
        from quicferry.model import Link, Node, NodeKind, Topology
        topology = Topology(
            name="six", summary="",
            nodes=(Node(name="a"), Node(name="r", kind=NodeKind.ROUTER), Node(name="b")),
            links=(
                Link(a="a", b="r", a_address="fd00:1::2/64", b_address="fd00:1::1/64"),
                Link(a="r", b="b", a_address="fd00:2::1/64", b_address="fd00:2::2/64"),
            ),
        )
        with MininetEmulator(Path(os.environ["TEST_REPORT"]).parent) as emulator:
            emulator.deploy(topology)
            report(emulator.execute("a", ["ping", "-n", "-c1", "-W2", "fd00:2::2"]).status)
        """,
        tmp_path,
    )
    assert seen == 0


def test_a_program_that_leaves_the_network_ends_too(tmp_path: Path) -> None:
    seen = play(
        """
        process = emulator.spawn("client", ["unshare", "--net", "sleep", "600"])
        time.sleep(0.2)
        emulator.destroy()
        report(process.returncode)
        """,
        tmp_path,
        **PLAIN,
    )
    assert seen == -9


def test_two_networks_of_equal_names_live_side_by_side(tmp_path: Path) -> None:
    before = outside()
    script = (
        DEPLOY
        + """
    Path(ARGUMENTS["mine"]).touch()
    deadline = time.monotonic() + 60
    while not Path(ARGUMENTS["other"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    emulator.execute("edge-2", ["touch", "/run/" + Path(ARGUMENTS["mine"]).name])
    answer = emulator.execute("client", ["ping", "-n", "-c2", "-i0.1", "-W2", "10.0.2.2"])
    listed = emulator.execute("edge-2", ["ls", "/run"]).stdout.split()
    report([os.readlink("/proc/self/ns/net"), listed, answer.status])
    """
    )
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    roots = [
        InPrivateRoot(
            script,
            tmp_path / f"root{number}",
            arguments={"topology": "two_edges", "parameters": PLAIN, "mine": mine, "other": other},
        )
        for number, (mine, other) in enumerate((files, files[::-1]))
    ]
    with roots[0], roots[1]:
        results = [root.result() for root in roots]
    assert results[0][0] != results[1][0]
    assert [result[1] for result in results] == [["a"], ["b"]]
    assert [result[2] for result in results] == [0, 0]
    assert outside() == before


def test_outside_of_a_private_root_nothing_is_deployed(tmp_path: Path) -> None:
    from quicferry.emulation.mininet.emulator import MininetEmulator
    from quicferry.errors import Unsupported

    before = outside()
    with pytest.raises(Unsupported, match="private root"):
        MininetEmulator(tmp_path).deploy(topologies.get("two_edges").build())
    assert outside() == before


def test_stock_mininet_builds_the_topology_from_its_file(tmp_path: Path) -> None:
    """``mn`` itself, with plain links, as netem may not be there; its own shells ping."""
    before = outside()
    seen = in_private_root(
        """
        import pathlib, sys
        from quicferry.process import run
        mn = pathlib.Path(sys.executable).parent / "mn"
        done = run(
            [sys.executable, mn, "--custom", "topologies/two_edges.py", "--topo", "two_edges_plain,rtt_ms=30",
             "--controller", "none", "--switch", "lxbr", "--test", "pingall"],
            timeout_s=120, check=False,
        )
        report([done.status, done.stdout + done.stderr])
        """,
        tmp_path,
        timeout_s=150,
    )
    assert seen[0] == 0, seen[1]
    assert "Results: 0% dropped" in seen[1], seen[1]
    assert outside() == before
