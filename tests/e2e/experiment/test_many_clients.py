"""One server and many connections, moved together: nobody is held up, nobody is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicferry import process
from quicferry.events import Event, read_events
from quicferry.paths import CHECKOUT
from quicferry.record import RunPaths
from quicferry.strategies import Strategy, rules_of


def run(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], list[Event]]:
    done = process.run(
        [
            *(CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path),
            *("--before-s", "0.5", "--after-s", "0.5", *arguments),
        ],
        check=False,
        timeout_s=120.0,
        cwd=Path("/"),
    )
    assert done.status == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result, read_events(RunPaths(Path(result["run_dir"])).events)


def notice(events: list[Event]) -> dict[str, Any]:
    return next(event.detail for event in events if event.name == "migration.notice.complete")


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_those_who_cannot_follow_connect_again(tmp_path: Path) -> None:
    result, events = run(tmp_path, "--clients", "12", "--plain-clients", "3")
    assert result["outcome"] == "succeeded"
    assert (result["clients"], result["reconnected"]) == (12, 3)
    assert (result["requests_lost"], result["requests_duplicated"], result["state_ok"]) == (0, 0, True)
    said = notice(events)
    assert (said["ready"], said["unable"], said["refused"], said["silent"]) == (9, 3, 0, 0)
    switched = {event.detail["client"] for event in events if event.name == "client.switched"}
    assert switched == set(range(4, 13))
    validated = result["clients_validated_ms"]
    assert result["container_downtime_ms"] < validated["median"] <= validated["p95"] <= validated["last"]
    assert not [warning for warning in result["warnings"] if "nonce" in warning]


@pytest.mark.needs("mininet", "tcpdump", "tshark")
@pytest.mark.parametrize("ip", ["4", "6", "dual"])
def test_only_plain_clients(tmp_path: Path, ip: str) -> None:
    result, events = run(tmp_path, "--clients", "2", "--plain-clients", "2", "--ip", ip)
    assert (result["outcome"], result["reconnected"]) == ("succeeded", 2)
    assert (result["requests_lost"], result["state_ok"]) == (0, True)
    assert notice(events)["unable"] == 2


@pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
def test_a_process_with_many_connections(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "--clients", "6", "--plain-clients", "2", "--engine", "criu-cold")
    assert (result["outcome"], result["reconnected"]) == ("succeeded", 2)
    assert (result["requests_lost"], result["requests_duplicated"], result["state_ok"]) == (0, 0, True)


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_a_crowd_that_is_silent_holds_nobody_up(tmp_path: Path) -> None:
    result, events = run(tmp_path, "--clients", "8", "--fault", "notice:client-silent")
    assert (result["outcome"], result["served_by"]) == ("succeeded", "destination")
    assert (result["requests_lost"], result["state_ok"]) == (0, True)
    assert notice(events)["silent"] == 8
    begun, ended = (
        next(event.t_ns for event in events if event.name == f"migration.notice.{end}")
        for end in ("started", "complete")
    )
    assert ended - begun < 4e9, "eight times a client's deadline: it waited for one after the other"


@pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
@pytest.mark.parametrize("engine", ["handoff", "criu-cold"])
def test_each_client_follows_in_its_own_way(tmp_path: Path, engine: str) -> None:
    result, events = run(tmp_path, "--clients", "10", "--mixed-strategies", "--engine", engine)
    assert (result["outcome"], result["reconnected"]) == ("succeeded", 0)
    assert (result["requests_lost"], result["requests_duplicated"], result["state_ok"]) == (0, 0, True)
    told = {event.detail["strategy"] for event in events if event.name == "server.prepare.sent"}
    assert told == {str(strategy) for strategy in Strategy if rules_of(strategy).notice}
    switched = {event.detail["client"] for event in events if event.name == "client.switched"}
    assert switched == set(range(1, 11))


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_clients_without_the_extension_follow_to_a_preferred_address(tmp_path: Path) -> None:
    """RFC 9000 §9.6 is all that they know, and what they asked there early waits for the server."""
    result, events = run(
        tmp_path,
        *("--strategy", "preferred-address", "--clients", "2", "--plain-clients", "2"),
        *("--interval-ms", "100", "--after-s", "2"),
    )
    assert result["outcome"] == "succeeded", result
    assert (result["requests_lost"], result["requests_duplicated"], result["requests_repeated"]) == (0, 0, 0)
    assert [event for event in events if event.name == "client.reconnecting"] == []
    assert [event.detail["negotiated"] for event in events if event.name == "client.connected"] == [False] * 2
