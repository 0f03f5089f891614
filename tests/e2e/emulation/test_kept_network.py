"""A kept network: a run finds nothing of the one before, and what cannot be made as it was is not kept."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import in_private_root

pytestmark = pytest.mark.needs("root", "mininet", "shaped-link")

BEGIN = """
    import socket, time
    from pathlib import Path
    import topologies
    from quicferry.emulation.mininet import node_state
    from quicferry.emulation.mininet.kept import SETTINGS, KeptEmulator
    from quicferry.emulation.sandbox.namespaces import network_id, network_of
    from quicferry.process import PIPE, run

    WORK = Path(os.environ["TEST_REPORT"]).parent
    topology = topologies.get("two_edges").build(rtt_ms=ARGUMENTS["rtt_ms"])
    emulator = KeptEmulator()

    def next_run(number, topology=topology, **asked):
        return emulator.next_run(topology, WORK / f"links-{number}", seed=number, backend=None, **asked)

    def state(host):
        return node_state.state_of(emulator.pid(host), SETTINGS)

    def networks():
        return {node.name: network_id(emulator.pid(node.name)) for node in topology.nodes}
"""


def play(script: str, directory: Path, rtt_ms: float = 4.0) -> Any:
    return in_private_root(
        textwrap.dedent(BEGIN) + textwrap.dedent(script), directory, arguments={"rtt_ms": rtt_ms}
    )


def test_the_next_run_finds_nothing_of_the_one_before(tmp_path: Path) -> None:
    found = play(
        """
        told = {}
        next_run(1)
        with emulator:
            emulator.deploy(topology)
            told["networks"] = [networks()]
            before = {node.name: state(node.name) for node in topology.nodes}
            client, edge = emulator.pid("client"), emulator.pid("edge-1")
            # a program that will not end, with a child
            emulator.spawn("edge-1", ["sh", "-c", "trap '' TERM; sleep 600 & sleep 600"])
            # connections that wait for their end, and listeners
            with network_of(edge):
                listener = socket.create_server((topology.service_addresses["edge-1"], 4433))
            with network_of(client):
                calling = socket.create_connection((topology.service_addresses["edge-1"], 4433))
            called, _ = listener.accept()
            calling.close(); time.sleep(0.05); called.close(); listener.close()
            time.sleep(0.05)
            told["waiting"] = Path(f"/proc/{client}/net/tcp").read_text().count(" 06 ")
            # what agents leave: a filter, files, a mount
            run(["mnexec", "-a", str(edge), "nft", "-f", "-"], stdin="add table inet quicferry_agent")
            Path(f"/proc/{edge}/root/run/server.jsonl").write_text("{}")
            Path(f"/proc/{edge}/root/run/folder").mkdir()
            run(["nsenter", f"--mount=/proc/{edge}/ns/mnt", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            told["changed"] = state("edge-1") != before["edge-1"]
        emulator.tidy_up()
        told["why"] = emulator.why
        told["is_kept"] = emulator.is_kept
        told["number"] = next_run(2)
        with emulator:
            emulator.deploy(topology)
            told["networks"].append(networks())
            told["same"] = all(state(name) == before[name] for name in before)
            pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
            inside = set(networks().values())
            told["strangers"] = [
                pid for pid in pids
                if network_id(pid) in inside and pid not in {emulator.pid(name) for name in before}
            ]
            told["zombies"] = [
                pid
                for pid in pids
                if Path("/proc", str(pid), "stat").read_text().rpartition(")")[2][1] == "Z"
            ]
            # a port of the run before is free
            with network_of(edge):
                socket.create_server((topology.service_addresses["edge-1"], 4433), reuse_port=False).close()
            configured = [WORK / f"links-{n}" / "cable.json" for n in (1, 2)]
            told["seeds"] = [json.loads(path.read_text())["seed"] for path in configured]
        emulator.destroy()
        report(told)
        """,
        tmp_path,
    )
    assert found["waiting"] == 1
    assert found["changed"]
    assert (found["why"], found["is_kept"], found["number"]) == (None, True, 2)
    first, second = found["networks"]
    assert first == second
    assert found["same"]
    assert found["strangers"] == []
    assert found["zombies"] == []
    assert found["seeds"] == [1, 2]


def test_a_datagram_on_its_way_does_not_reach_the_next_run(tmp_path: Path) -> None:
    found = play(
        """
        def heard(receiver):
            receiver.settimeout(0.6)
            try:
                return receiver.recv(100).decode()
            except TimeoutError:
                return None

        def endpoints():
            with network_of(emulator.pid("edge-1")):
                receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                receiver.bind((topology.service_addresses["edge-1"], 4433))
            with network_of(emulator.pid("client")):
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            return sender, receiver

        place = (topology.service_addresses["edge-1"], 4433)
        next_run(1)
        with emulator:
            emulator.deploy(topology)
            sender, receiver = endpoints()
            with sender, receiver:
                sender.sendto(b"in time", place)
                first = heard(receiver)
                sender.sendto(b"late", place)
        emulator.tidy_up()
        next_run(2)
        with emulator:
            emulator.deploy(topology)
            sender, receiver = endpoints()
            with sender, receiver:
                second = heard(receiver)
        emulator.destroy()
        report([first, second])
        """,
        tmp_path,
        rtt_ms=600.0,
    )
    assert found == ["in time", None]


def test_a_network_that_cannot_be_trusted_is_built_anew(tmp_path: Path) -> None:
    found = play(
        """
        from quicferry.errors import MigrationError

        told = []
        def one(number, harm, **asked):
            number_of_network = next_run(number, **asked)
            try:
                with emulator:
                    emulator.deploy(topology)
                    harm()
            except MigrationError:
                pass
            emulator.tidy_up()
            told.append([number_of_network, emulator.is_kept, emulator.why])

        def fail():
            raise MigrationError("it failed")

        def address():
            emulator.execute("edge-2", ["ip", "address", "add", "10.77.0.1/32", "dev", "lo"])

        def setting():
            with network_of(emulator.pid("client")):
                Path("/proc/sys/net/mptcp/add_addr_timeout").write_text("7")

        def link():
            emulator.set_link(topology.links[0].name, up=False)

        def holder():
            os.kill(emulator.pid("edge-1"), 9)

        one(1, lambda: None)
        one(2, fail)
        one(3, lambda: None, may_stay=False)
        one(4, address)
        one(5, setting)
        one(6, link)
        one(7, holder)
        one(8, lambda: None)
        other = topologies.get("two_edges").build(rtt_ms=9.0)
        told.append(emulator.next_run(other, WORK / "links-9", seed=9, backend=None))
        told.append(emulator.is_kept)
        report(told)
        """,
        tmp_path,
    )
    *runs, number, is_kept = found
    assert [run[:2] for run in runs] == [
        [1, True],
        [2, False],  # it failed
        [1, False],  # it had faults
        [1, False],
        [1, False],
        [1, False],
        [1, False],
        [1, True],
    ]
    assert "it failed" in runs[1][2]
    assert runs[3][2] == "the run has changed edge-2"
    assert runs[4][2] == "the run has changed client"
    # another topology takes the network away
    assert (number, is_kept) == (1, False)
