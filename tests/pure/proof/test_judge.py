"""Each rule of the judge on a result in which one thing is wrong, and on one in which nothing is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proof.explore.judge import Complaint, Observation, complaints, kind_of, without_numbers
from proof.explore.load import too_much
from proof.explore.overhead import KNOWN, MUST_ASK, SERVER_FIRST, allowed_ms, bound_of
from quicferry.record import MoveRecord
from session.request import to_spec
from tests import explored

GOOD = msgspec.structs.replace(
    explored.GOOD,
    log_service_migration_time_ms=13.2,
    connection_overhead_ms=12.6,
    requests_sent=200,
    bytes_verified=51200,
)
FAULT = {"faults": ("transfer:link-lost",)}


AS_IT_IS: dict[str, Any] = {}


def seen(
    values: dict[str, Any] | None = None, *, result: dict[str, Any] | None = AS_IT_IS, **changes: Any
) -> Observation:
    """What would be seen of the good run with these changes of its result; None: there is none."""
    fields: dict[str, Any] = {
        "spec": to_spec(values or {}),
        "status": 0,
        "elapsed_s": 5.0,
        "cpu_s": 4.0,
        "stderr": "",
        "result": None if result is None else msgspec.structs.replace(GOOD, **result),
        "built": True,
    }
    return Observation(**(fields | changes))


def kinds(observation: Observation) -> list[str]:
    return [complaint.kind for complaint in complaints(observation)]


def test_a_run_as_it_should_be_has_no_complaint() -> None:
    assert complaints(seen()) == []
    assert complaints(seen(FAULT, result={"served_by": "source"})) == []


def test_who_is_told_once_may_not_hear_it() -> None:
    plain = {"clients": 2, "plain_clients": 1, "interval_ms": 50.0}
    lost = {"requests_lost": 3, "outcome": "degraded", "error": "the service suffered: 3 requests were lost"}
    assert "lost" in kinds(seen(plain, result=lost, status=3))
    for may_be_lost in ({"loss_percent": 1.0}, {"corrupt_percent": 1.0}):
        assert kinds(seen(plain | may_be_lost, result=lost, status=3)) == []


def move(number: int, **changes: Any) -> MoveRecord:
    values: dict[str, Any] = {
        "number": number,
        "source": "a",
        "destination": "b",
        "container_downtime_ms": 4.0,
        "service_migration_time_ms": 13.0,
        "connection_overhead_ms": 12.0,
        "transferred_bytes": 1,
    }
    return MoveRecord(**(values | changes))


TWO_MOVES: dict[str, Any] = {"served_by": "source", "moves": [move(1), move(2)]}


@pytest.mark.parametrize(
    ("kind", "values", "wrong"),
    [
        ("failed", {}, {"outcome": "failed", "error": "the client did not connect"}),
        ("lost", {}, {"requests_lost": 3}),
        ("lost", {}, {"requests_duplicated": 1}),
        ("lost", {}, {"state_ok": False}),
        ("lost", {}, {"bytes_verified": 0}),
        ("lost", {"download_mib": 1.0}, {"warnings": ["download: 3 of 9 bytes, not verified"]}),
        ("owner", {}, {"served_by": "source"}),
        ("owner", {}, {"served_by": "none"}),
        ("owner", {}, {"served_by": "both"}),
        ("owner", FAULT, {"served_by": "destination"}),
        ("owner", {"moves": 2}, TWO_MOVES | {"served_by": "destination"}),
        ("not measured", {}, {"service_migration_time_ms": None}),
        (
            "not measured",
            {"moves": 2},
            TWO_MOVES | {"moves": [move(1), move(2, service_migration_time_ms=None)]},
        ),
        ("not measured", {"moves": 2}, TWO_MOVES | {"moves": [move(1)]}),
        ("log", {}, {"log_service_migration_time_ms": 15.0}),
        ("log", {}, {"log_service_migration_time_ms": None}),
        ("overhead", {"strategy": "symmetric"}, {"connection_overhead_ms": 70.0}),
        (
            "overhead",
            {"strategy": "symmetric", "download_mib": 10.0, "before_s": 0.5},
            {"connection_overhead_ms": 90.0},
        ),
        (
            "overhead",
            {"strategy": "symmetric", "moves": 2},
            TWO_MOVES | {"moves": [move(1), move(2, connection_overhead_ms=90.0)]},
        ),
        ("warning", {}, {"warnings": ["4 packets used a key and packet number that another packet had"]}),
        ("warning", FAULT, {"served_by": "source", "warnings": ["two servers sent new packets"]}),
    ],
)
def test_each_rule_sees_what_it_is_for(kind: str, values: dict[str, Any], wrong: dict[str, Any]) -> None:
    status = 1 if wrong.get("outcome") == "failed" else 0
    assert kinds(seen(values, result=wrong, status=status)) == [kind]


def test_two_moves_as_they_should_be() -> None:
    assert complaints(seen({"moves": 2}, result=TWO_MOVES)) == []


def test_the_log_may_differ_where_the_result_says_why_or_responses_are_large() -> None:
    late = {"log_service_migration_time_ms": 19.0}
    said = late | {"warnings": ["the client's log says 19.0 ms, its capture 13.0 ms"]}
    assert complaints(seen(result=said)) == []
    assert complaints(seen({"response_bytes": 20_000}, result=late)) == []


def test_a_long_overhead_is_right_where_nothing_was_under_way() -> None:
    late = {"connection_overhead_ms": 400.0}
    assert complaints(seen({"interval_ms": 1000.0}, result=late)) == []
    assert kinds(seen({"interval_ms": 0.0}, result=late)) == ["overhead"]
    assert kinds(seen({"interval_ms": 0.0, "request_bytes": 65_536}, result=late)) == []  # several flights
    assert complaints(seen({"workload": "bursts"}, result=late)) == []
    seldom = {"interval_ms": 500.0, "download_mib": 5.0}
    assert complaints(seen(seldom, result=late)) == []  # the download was over before the move
    assert kinds(seen({**seldom, "rate_mbps": 20.0}, result=late)) == ["overhead"]


def test_a_client_that_asks_nothing_after_the_move_waits_for_nothing() -> None:
    idle = {"service_migration_time_ms": None, "log_service_migration_time_ms": None}
    said = idle | {"warnings": ["the client knows the new address, and asked nothing there"]}
    assert complaints(seen({"interval_ms": 30_000.0}, result=said)) == []
    assert kinds(seen({"interval_ms": 30_000.0}, result=idle)) == ["not measured"]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"moves": 2, "strategy": "pool", "pool": 4, "route": "round"}, "edge-3"),
        ({"moves": 2, "topology": "chain", "route": "along"}, "edge-3"),
        ({"moves": 5, "topology": "chain", "route": "along"}, "destination"),
        ({"moves": 4, "topology": "ring", "route": "round"}, "source"),
    ],
    ids=str,
)
def test_the_server_ends_where_its_route_leads(values: dict[str, Any], place: str) -> None:
    moves = [move(number) for number in range(1, values["moves"] + 1)]
    ends = {"served_by": place, "moves": moves}
    assert complaints(seen(values, result=ends)) == []
    assert "owner" in kinds(seen(values, result=ends | {"served_by": "edge-9"}))


def test_nobody_asks_where_a_server_is_that_stays() -> None:
    alone = {"topology": "chain", "mobility": "alone"}
    assert complaints(seen(alone, result={"served_by": None})) == []


def test_requests_may_be_lost_where_the_link_carries_less_than_was_offered() -> None:
    crowded = {"rate_mbps": 1.0, "response_bytes": 60_000, "interval_ms": 20.0}
    assert too_much(to_spec(crowded)) is not None
    assert complaints(seen(crowded, result={"requests_lost": 90, "state_ok": False})) == []
    assert kinds(seen(crowded, result={"requests_duplicated": 1})) == ["lost"]


@pytest.mark.parametrize(
    "values",
    [
        {"rate_mbps": 0.1},
        {"interval_ms": 2.0},
        {"clients": 8, "interval_ms": 0.0, "request_bytes": 65_536},
        {"plain_clients": 1, "interval_ms": 0.0, "response_bytes": 65_536},
        {"download_mib": 100.0},
        {"loss_percent": 5.0, "rtt_ms": 300.0, "response_bytes": 4000},
        {"baseline": "tcp-dns", "rtt_ms": 600.0},
        {"workload": "video", "bit_rate_mbps": 16.0, "loss_percent": 5.0, "corrupt_percent": 3.0},
        {"workload": "requests+video", "clients": 2, "bit_rate_mbps": 8.0, "rate_mbps": 10.0},
        {"engine": "runc-cold", "disk_mib": 1024, "moves": 3},
        {"engine": "runc-cold", "disk_mib": 400, "moves": 3, "inter_edge_mbps": 100.0},
        {"baseline": "tcp-dns", "rtt_ms": 24.0, "loss_percent": 1.0, "interval_ms": 5.0},
        {"workload": "upload", "rate_mbps": 1.0, "clients": 8},
        {"corrupt_percent": 5.0, "rtt_ms": 300.0, "response_bytes": 4000},
        {"reorder_percent": 5.0, "rtt_ms": 300.0, "response_bytes": 4000},
    ],
)
def test_too_much_is_seen(values: dict[str, Any]) -> None:
    assert too_much(to_spec(values)) is not None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"interval_ms": 0.0},
        {"download_mib": 10.0},
        {"rtt_ms": 600.0},
        {"clients": 8},
        {"workload": "video", "rate_mbps": 10.0},
    ],
)
def test_what_is_carried_is_not_too_much(values: dict[str, Any]) -> None:
    assert too_much(to_spec(values)) is None


REFUSED: dict[str, Any] = {"spec": None, "status": 2, "built": False, "result": None, "cpu_s": 1.0}


def test_a_transfer_may_leave_no_pause_to_move_in() -> None:
    failed = {"outcome": "failed", "error": "no pause came in 6 s in which the move could begin"}
    bulk = {"upload_mib": 1.2, "interval_ms": 100.0, "move_when": "pause"}
    assert kinds(seen(bulk, result=failed, status=1)) == []
    assert kinds(seen({"interval_ms": 100.0, "move_when": "pause"}, result=failed, status=1)) != []
    assert kinds(seen(bulk, result=failed | {"error": "the server died"}, status=1)) != []


def test_a_clear_refusal_has_no_complaint() -> None:
    assert complaints(seen(stderr="quicferry: no\n  hint: do\n", **REFUSED)) == []
    unable = {"status": 127, "built": False, "result": None}
    assert complaints(seen(stderr="quicferry: netem: no\n  hint: do\n", **unable)) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("refusal", {"stderr": "no"}),
        ("refusal", {"stderr": "hint:", "built": True}),
        ("refusal", {"stderr": "hint:", "cpu_s": 3.0}),
        ("refused", {"stderr": "hint:", "spec": to_spec({})}),
        ("not refused", {"stderr": "", "status": 1}),
        ("hung", {"status": None}),
        ("exit status", {"status": -11, "spec": to_spec({})}),
        ("no result", {"status": 1, "spec": to_spec({})}),
        ("left behind", {"stderr": "hint:", "left": ("the process server",)}),
    ],
)
def test_what_a_refusal_may_not_be(kind: str, changes: dict[str, Any]) -> None:
    assert kinds(seen(**(REFUSED | changes))) == [kind]


def test_a_crash_is_a_complaint_and_nothing_else_is_asked() -> None:
    words = "quicferry: internal error: KeyError: 12"
    assert complaints(seen(status=1, stderr=words)) == [Complaint(f"crash: {without_numbers(words)}", words)]
    assert kinds(seen(stderr="Traceback (most recent call last)\n")) == ["crash: a traceback"]


def test_what_a_run_leaves_is_looked_at() -> None:
    assert kinds(seen(incomplete=("client.json",))) == ["incomplete"]
    assert kinds(seen(traces={"client.log": "KeyError: 3"})) == ["traceback"]
    assert kinds(seen(left=("the mount /x",))) == ["left behind"]


def test_the_outcome_and_the_exit_status_agree() -> None:
    assert kinds(seen(status=1)) == ["exit status"]


def test_failures_are_told_apart_by_their_words_but_not_by_their_numbers() -> None:
    one = kind_of(Complaint("failed", "no connection to edge-1 at 10.0.1.2:4435 within 25.0 s"))
    two = kind_of(Complaint("failed", "no connection to edge-2 at 10.0.2.2:4435 within 24.9 s"))
    other = kind_of(Complaint("failed", "the client did not connect"))
    assert one == two != other
    assert kind_of(Complaint("lost", "3 lost")) == kind_of(Complaint("lost", "4 duplicated"))


def test_every_strategy_has_a_bound() -> None:
    found = {
        name: bound_of(to_spec({"strategy": name}))
        for name in ("proactive-explicit", "reactive-explicit", "pool", "symmetric", "synchronized-symmetric")
    }
    assert list(found.values()) == [KNOWN, MUST_ASK, MUST_ASK, SERVER_FIRST, SERVER_FIRST]
    assert bound_of(to_spec({"strategy": "pool", "server_first": True})) is SERVER_FIRST


def test_a_downtime_hides_the_detection() -> None:
    spec = to_spec({"strategy": "reactive-explicit", "rtt_ms": 100.0})
    assert allowed_ms(spec, 0.0, 200.0) - allowed_ms(spec, 1000.0, 200.0) == pytest.approx(200.0)
