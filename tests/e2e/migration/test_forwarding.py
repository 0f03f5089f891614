"""Late datagrams in a small network: what is sent to a frozen source reaches the server elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import in_private_root

pytestmark = pytest.mark.needs("netns", "veth")

HOST = Path(__file__).with_name("forwarding_host.py")

#: client -- source 10.0.1.0/24, client -- destination 10.0.2.0/24, source -- destination 10.0.90.0/24
NETWORK = """
import json, time
from quicferry.process import PIPE, run, spawn

class Host:
    def __init__(self, part):
        self.process = spawn(["unshare", "--net", sys.executable, "-W", "error", ARGUMENTS["host"], part],
                             stdin=PIPE, stdout=PIPE, stderr=None)
        self.net = f"/proc/{self.process.pid}/ns/net"
        here = os.readlink("/proc/self/ns/net")
        while os.readlink(self.net) == here:
            time.sleep(0.005)
        self.ip("link", "set", "lo", "up")
    def ip(self, *words):
        run(["nsenter", f"--net={self.net}", "ip", *words])
    def ask(self, *command):
        self.process.stdin.write(json.dumps(command).encode() + b"\\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

def wire(a, a_name, a_address, b, b_name, b_address):
    run(["ip", "link", "add", "va", "type", "veth", "peer", "name", "vb"])
    for host, temporary, name, address in ((a, "va", a_name, a_address), (b, "vb", b_name, b_address)):
        run(["ip", "link", "set", temporary, "netns", str(host.process.pid)])
        host.ip("link", "set", temporary, "name", name, "up")
        host.ip("address", "add", address, "dev", name)

client, source, destination = Host("client"), Host("source"), Host("destination")
wire(client, "source", "10.0.1.1/24", source, "client", "10.0.1.2/24")
wire(client, "dest", "10.0.2.1/24", destination, "client", "10.0.2.2/24")
wire(source, "edge", "10.0.90.1/24", destination, "edge", "10.0.90.2/24")
# the server answers whoever asks by the way it knows: the client has one address for each link
destination.ip("route", "add", "10.0.1.1", "via", "10.0.2.1")
source.ip("route", "add", "10.0.2.1", "via", "10.0.1.1")
"""


def play(story: str, directory: Path) -> Any:
    return in_private_root(NETWORK + story, directory, arguments={"host": str(HOST)})


def test_late_and_early_datagrams_reach_the_server(tmp_path: Path) -> None:
    result = play(
        """
destination.ask("prepare")
source.ask("open")
client.ask("send", "10.0.1.2", "long-before")
time.sleep(0.8)
client.ask("send", "10.0.1.2", "just-before")
source.ask("start")
client.ask("send", "10.0.1.2", "late-1")
client.ask("send", "10.0.1.2", "not-for-the-service", 4434)
client.ask("send", "10.0.2.2", "early-1")
client.ask("send", "10.0.1.2", "late-2", 4433, 1300)
time.sleep(0.2)
destination.ask("serve")
replayed = destination.ask("open")
for number in range(3):
    client.ask("send", "10.0.1.2", f"later-{number}")
client.ask("send", "10.0.2.2", "direct")
time.sleep(0.2)
report({"replayed": replayed, "replies": client.ask("replies", 8), "source": source.ask("close"),
        "destination": destination.ask("report")})
""",
        tmp_path,
    )
    seen = result["destination"]["seen"]
    waited = ["just-before", "late-1", "early-1", "late-2"]
    names = [name for _, _, name, _ in seen]
    # late ones take two hops more than early ones, so their order among each other is not fixed
    assert sorted(names[:4]) == sorted(waited)
    assert sorted(names[4:]) == ["direct", "later-0", "later-1", "later-2"]
    assert result["replayed"] == 4
    # with the client's own address and port, each of its links having one
    for host, port, name, _ in seen:
        assert (host, port) == ("10.0.2.1" if name in ("early-1", "direct") else "10.0.1.1", 50000)
    # and the replies find their way
    assert [reply for reply, _ in result["replies"]] == sorted(f"reply to {name}" for name in names)
    assert {sender for _, sender in result["replies"]} == {"10.0.2.2"}
    assert result["source"] == {"forwarded": 6, "dropped": 0}
    counters = {name: result["destination"][name] for name in ("handed_on", "early", "passed")}
    assert counters == {"handed_on": 6, "early": 1, "passed": 3}


def test_nothing_is_let_in_before_the_client_itself_has_come(tmp_path: Path) -> None:
    result = play(
        """
destination.ask("prepare", True)
source.ask("open")
source.ask("start")
client.ask("send", "10.0.1.2", "late-1")
time.sleep(0.2)
destination.ask("serve")
replayed = destination.ask("open")
client.ask("send", "10.0.1.2", "late-2")
time.sleep(0.2)
before = destination.ask("report")["seen"]
client.ask("send", "10.0.2.2", "probe")
time.sleep(0.2)
client.ask("send", "10.0.1.2", "late-3")
time.sleep(0.2)
report({"replayed": replayed, "before": before, "after": destination.ask("report")["seen"]})
""",
        tmp_path,
    )
    assert (result["replayed"], result["before"]) == (0, [])
    names = [name for _, _, name, _ in result["after"]]
    assert sorted(names[:3]) == ["late-1", "late-2", "probe"]
    assert names.index("late-1") < names.index("late-2")
    assert names[3:] == ["late-3"]


def test_the_newest_datagrams_are_kept_oldest_first(tmp_path: Path) -> None:
    result = play(
        """
destination.ask("prepare")
for number in range(20):
    client.ask("send", "10.0.2.2", f"{number}")
time.sleep(0.2)
destination.ask("serve")
replayed = destination.ask("open")
time.sleep(0.2)
report({"replayed": replayed, **destination.ask("report")})
""",
        tmp_path,
    )
    assert result["replayed"] == 8  # the room's capacity
    assert [name for _, _, name, _ in result["seen"]] == [str(number) for number in range(12, 20)]


def test_forwarding_adds_little(tmp_path: Path) -> None:
    """One tap, one send, one receive, one injection; wide bounds, as the machine may be busy."""
    result = play(
        """
destination.ask("prepare")
destination.ask("serve")
destination.ask("open")
source.ask("open")
source.ask("start")
for number in range(100):
    client.ask("send", "10.0.1.2", f"forwarded-{number}")
    client.ask("send", "10.0.2.2", f"direct-{number}")
    time.sleep(0.002)
time.sleep(0.2)
report(destination.ask("report"))
""",
        tmp_path,
    )
    late = {"forwarded": [], "direct": []}
    for _, _, name, late_ms in result["seen"]:
        late[name.partition("-")[0]].append(late_ms)
    assert len(late["forwarded"]) == len(late["direct"]) == 100
    median = {kind: sorted(values)[50] for kind, values in late.items()}
    assert median["forwarded"] - median["direct"] < 30.0, median


def test_only_known_edges_may_hand_datagrams_on(tmp_path: Path) -> None:
    result = play(
        """
destination.ask("prepare")
destination.ask("serve")
destination.ask("open")
destination.ip("address", "add", "10.0.90.3/24", "dev", "edge")
client.ip("route", "add", "10.0.90.2", "via", "10.0.2.2")
client.ask("send", "10.0.90.2", "stranger", 4436)
time.sleep(0.2)
report(destination.ask("report"))
""",
        tmp_path,
    )
    assert result["handed_on"] == 0
    assert result["seen"] == []


def test_no_icmp_error_while_no_server_listens(tmp_path: Path) -> None:
    result = play(
        """
before = client.ask("knock", "10.0.2.2")
destination.ask("silence")
destination.ask("silence")
after = client.ask("knock", "10.0.2.2")
destination.ask("serve")
report({"before": before, "after": after, "served": client.ask("knock", "10.0.2.2")})
""",
        tmp_path,
    )
    assert result == {"before": "refused", "after": "silent", "served": "answered"}
