"""Numbers of synthetic runs against the truth of their generator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from quicferry.analysis import timeline
from quicferry.analysis.analyse import analyse
from quicferry.analysis.derive import derive, read_result
from quicferry.analysis.metrics import measure, phase_spans
from quicferry.capture.clock import ClockConversion, clock_warning, realtime_minus_monotonic_ns
from quicferry.capture.quic.table import SCHEMA
from quicferry.errors import StoreError
from quicferry.events import Event, read_events, write_events
from quicferry.model import Link, Node, NodeKind, Topology
from quicferry.record import Clock, Manifest, RunPaths, RunResult, read_manifest, write_json
from quicferry.units import NS_PER_MS, now_ns
from tests.capture_support import (
    BEGIN_NS,
    CLIENT,
    NEW,
    OLD,
    Scene,
    Sighting,
    moving_scene,
    text,
    write_pcapng,
    write_run,
)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return moving_scene()


@pytest.fixture(scope="module")
def recorded(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", scene)


@pytest.fixture
def run_copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


def change_manifest(run_dir: Path, **changes: Any) -> None:
    manifest = read_manifest(run_dir)
    for name, value in changes.items():
        setattr(manifest, name, value)
    write_json(RunPaths(run_dir).manifest, manifest)


def change_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(value))


def change_events(run_dir: Path, change: Any) -> None:
    path = RunPaths(run_dir).events
    write_events(path, [changed for event in read_events(path) if (changed := change(event)) is not None])


def test_every_number_of_a_move_is_as_it_was_made(scene: Scene, run_copy: Path) -> None:
    result = derive(run_copy)
    assert result.outcome == "succeeded"
    assert result.error is None
    assert result.warnings == []
    assert result.service_migration_time_ms == scene.service_migration_ns / NS_PER_MS == 120.0
    assert result.log_service_migration_time_ms == 120.0
    assert result.container_downtime_ms == 100.0
    assert result.connection_overhead_ms == pytest.approx(28.0, abs=0.001)
    assert result.rtt_ms == pytest.approx(18.0, abs=0.02)
    assert result.rtt_method is not None
    assert "request to acknowledgement" in result.rtt_method
    assert result.transferred_bytes == 5000
    assert (result.requests_sent, result.requests_lost, result.requests_duplicated) == (90, 0, 0)
    assert result.bytes_verified == 90 * 256
    assert result.state_ok is True
    assert result.packets_undecrypted == 0
    assert result.phases_ms == {
        "notice": 0.5,
        "checkpoint": 20.0,
        "transfer": 50.0,
        "restore": 30.0,
        "first_packet": 109.0,
        "useful": pytest.approx(128.0, abs=0.001),
    }
    assert result.moments_ms["frozen"] == 0.0
    assert result.moments_ms["resumed"] == 100.0
    assert result.moments_ms["last_useful_old"] == pytest.approx(8.0, abs=0.001)
    assert result.moments_ms["transfer.started"] == 20.0


@pytest.mark.parametrize(("downtime_ms", "one_way_ms"), [(0.5, 9), (7.3, 2), (40, 61), (400, 0.25)])
def test_capture_and_application_agree_whatever_the_times(
    tmp_path: Path, downtime_ms: float, one_way_ms: float
) -> None:
    # key updates faster than a round trip make aioquic drop packets of the phase before
    scene = moving_scene(downtime_ms=downtime_ms, one_way_ms=one_way_ms, key_update=one_way_ms < 20)
    result = analyse(write_run(tmp_path / "run", scene, downtime_ms=downtime_ms)).result
    assert result.service_migration_time_ms == pytest.approx(scene.service_migration_ns / NS_PER_MS)
    assert result.log_service_migration_time_ms == result.service_migration_time_ms
    assert result.container_downtime_ms == pytest.approx(downtime_ms)
    assert result.rtt_ms == pytest.approx(2 * one_way_ms, abs=0.05)


def test_loss_and_repetition_do_not_deceive_it(tmp_path: Path) -> None:
    scene = Scene(interval_ms=5)
    scene.lose_to_client = lambda t_ns: (t_ns // 1_000_000) % 13 == 5
    scene.duplicate_to_client = lambda t_ns: (t_ns // 1_000_000) % 7 == 2
    scene.load(100, 800)
    scene.at(400, scene.freeze)
    scene.at(450, scene.resume)
    scene.run(3000)
    result = analyse(write_run(tmp_path / "run", scene, downtime_ms=50)).result
    assert result.service_migration_time_ms == pytest.approx(scene.service_migration_ns / NS_PER_MS)
    assert result.warnings == []


def test_the_run_directory_is_not_touched_outside_derived(run_copy: Path) -> None:
    def raw() -> dict[str, bytes]:
        return {
            str(path.relative_to(run_copy)): path.read_bytes()
            for path in sorted(run_copy.rglob("*"))
            if path.is_file() and "derived" not in path.parts
        }

    before = raw()
    derive(run_copy)
    assert raw() == before
    derived = {path.name for path in (run_copy / "derived").iterdir()}
    assert derived == {"result.json", "timeline.parquet", "timeline.png", "timeline.svg"}
    assert not any(b"CLIENT_TRAFFIC_SECRET" in path.read_bytes() for path in (run_copy / "derived").iterdir())


def test_the_result_file_is_the_result_and_is_read_back(run_copy: Path) -> None:
    result = derive(run_copy)
    written = msgspec.json.decode(RunPaths(run_copy).result.read_bytes(), type=RunResult)
    assert written == result == read_result(run_copy)
    RunPaths(run_copy).result.unlink()
    assert read_result(run_copy) == result


def test_the_timeline_has_a_row_for_every_moment_event_and_packet(run_copy: Path, scene: Scene) -> None:
    derive(run_copy)
    table = pl.read_parquet(run_copy / "derived" / "timeline.parquet")
    assert set(table["kind"]) == {"capture", "event", "packet"}
    assert table["t_ns"].is_sorted()
    packets = table.filter(pl.col("kind") == "packet")
    assert packets.filter(pl.col("direction") == "to-client")["new_bytes"].sum() >= 90 * 256
    useful = table.filter((pl.col("kind") == "capture") & (pl.col("name") == "useful"))
    assert useful["t_ms"].to_list() == [pytest.approx(128.0, abs=0.001)]


def test_a_log_that_disagrees_is_a_warning(run_copy: Path) -> None:
    def later(event: Event) -> Event:
        if event.name == "client.response.received" and event.detail["server"] == text(NEW):
            return msgspec.structs.replace(event, t_ns=event.t_ns + 3 * NS_PER_MS)
        return event

    change_events(run_copy, later)
    result = analyse(run_copy).result
    assert result.log_service_migration_time_ms == 123.0
    assert any("they differ by 3.000 ms" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("server", "shift_ms", "words"),
    [
        (
            NEW,
            3,
            "the client could use the first service from the new address 3.000 ms after its packet had come",
        ),
        (
            NEW,
            -3,
            "the client's log has the first service from the new address 3.000 ms before the packet that",
        ),
        (
            OLD,
            3,
            "the client could use the last service from the old address 3.000 ms after its packet had come",
        ),
    ],
)
def test_a_disagreement_says_at_which_end_and_why(
    run_copy: Path, server: object, shift_ms: int, words: str
) -> None:
    def shifted(event: Event) -> Event:
        if event.name == "client.response.received" and event.detail["server"] == text(server):
            return msgspec.structs.replace(event, t_ns=event.t_ns + shift_ms * NS_PER_MS)
        return event

    change_events(run_copy, shifted)
    assert any(words in warning for warning in analyse(run_copy).result.warnings)


def test_half_a_millisecond_is_no_disagreement(run_copy: Path) -> None:
    def later(event: Event) -> Event:
        if event.name == "client.response.received" and event.detail["server"] == text(NEW):
            return msgspec.structs.replace(event, t_ns=event.t_ns + NS_PER_MS // 2)
        return event

    change_events(run_copy, later)
    assert analyse(run_copy).result.warnings == []


def test_download_data_counts_in_the_log_too() -> None:
    events = [
        Event(t_ns=5, vantage="client", name="client.response.received", detail={"server": "a:1"}),
        Event(t_ns=9, vantage="client", name="client.download.data", detail={"server": "b:1"}),
        Event(t_ns=7, vantage="client", name="client.download.data", detail={"server": "a:1"}),
        Event(t_ns=6, vantage="client", name="client.request.sent", detail={"number": 1}),
    ]
    gap = timeline.service_gap(timeline.logged_arrivals(events), "a:1", "b:1")
    assert gap is not None
    assert (gap.last_old_ns, gap.first_new_ns, gap.length_ns) == (7, 9, 2)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),
        ([(1, "old", 10)], None),
        ([(1, "new", 10)], None),
        ([(1, "old", 10), (5, "new", 10)], (1, 5, 0)),
        ([(1, "old", 10), (5, "new", 10), (6, "old", 3), (9, "new", 1)], (1, 5, 3)),
        ([(1, "old", 10), (2, "other", 1), (5, "new", 10)], (1, 5, 0)),
        ([(5, "old", 10), (5, "new", 10)], (5, 5, 0)),
        ([(5, "new", 10), (6, "old", 1)], None),
    ],
)
def test_the_service_gap(rows: list[tuple[int, str, int]], expected: tuple[int, int, int] | None) -> None:
    useful = pl.DataFrame(rows, schema=timeline.ARRIVALS, orient="row")
    assert timeline.service_gap(useful, "old", "new") == expected


def frames(rows: list[dict[str, Any]]) -> pl.DataFrame:
    common = {"connection": 0, "space": "1-rtt", "generation": 0, "key_phase": 0, "packet_bytes": 100}
    common |= {"destination_cid": "", "repeated": False, "nonce_reused": False}
    full = [dict.fromkeys(SCHEMA) | common | row for row in rows]
    return pl.DataFrame(full, schema=SCHEMA)


def probe(t_ns: int, name: str, data: str, number: int, server: str = "new") -> dict[str, Any]:
    challenge = name == "PATH_CHALLENGE"
    return {
        "t_ns": t_ns,
        "frame": name,
        "data": data,
        "packet_number": number,
        "direction": "to-server" if challenge else "to-client",
        "source": "client" if challenge else server,
        "destination": server if challenge else "client",
    }


def test_a_path_is_validated_by_the_answer_to_its_own_challenge() -> None:
    traffic = frames(
        [
            probe(1, "PATH_CHALLENGE", "aa", 1),
            probe(2, "PATH_CHALLENGE", "bb", 2, server="dead"),
            probe(20, "PATH_CHALLENGE", "cc", 3),
            probe(30, "PATH_RESPONSE", "zz", 1),
            probe(31, "PATH_RESPONSE", "bb", 2),
            probe(38, "PATH_RESPONSE", "cc", 3),
            probe(39, "PATH_RESPONSE", "aa", 4),
        ]
    )
    assert timeline.path_validated(traffic, "new") == 38
    assert timeline.path_validated(traffic, "dead") is None
    assert timeline.paths_validated(traffic, "dead") == {}
    trip = timeline.round_trip(traffic, "new", 10)
    assert trip is not None
    assert (trip.median_ns, trip.samples) == (18, 1)
    assert trip.method == "PATH_CHALLENGE to PATH_RESPONSE"


def test_each_of_many_clients_validates_its_own_path() -> None:
    traffic = frames(
        [
            probe(1, "PATH_CHALLENGE", "aa", 1),
            probe(2, "PATH_CHALLENGE", "bb", 1) | {"connection": 1},
            probe(3, "PATH_CHALLENGE", "cc", 1) | {"connection": 2},
            probe(10, "PATH_RESPONSE", "bb", 1) | {"connection": 1},
            probe(11, "PATH_CHALLENGE", "dd", 2),
            probe(20, "PATH_RESPONSE", "dd", 1),
            probe(21, "PATH_RESPONSE", "aa", 2),
        ]
    )
    assert timeline.paths_validated(traffic, "new") == {1: 10, 0: 20}


def test_the_round_trip_leaves_out_the_delay_of_the_acknowledgement() -> None:
    rows: list[dict[str, Any]] = []
    for number in range(5):
        at = number * 1_000_000
        request = {"t_ns": at, "frame": "STREAM", "direction": "to-server", "packet_number": number}
        answer = {"t_ns": at + 120_000, "frame": "ACK", "direction": "to-client", "packet_number": number}
        rows.append(request | {"source": "client", "destination": "new", "stream_id": 4 * number})
        rows.append(
            answer | {"source": "new", "destination": "client", "largest_acked": number, "ack_delay_us": 20}
        )
    trip = timeline.round_trip(frames(rows), "new", 1_000_000)
    assert trip is not None
    assert (trip.median_ns, trip.samples) == (100_000, 4)
    assert timeline.round_trip(frames(rows), "old", 0) is None
    # another connection with the same packet numbers, half a second earlier
    earlier = [row | {"connection": 1, "t_ns": row["t_ns"] - 500_000} for row in rows]
    trip = timeline.round_trip(frames(earlier + rows), "new", 1_000_000)
    assert trip is not None
    assert (trip.median_ns, trip.samples) == (100_000, 7)


def event(t_ns: int, name: str, **detail: Any) -> Event:
    return Event(t_ns=t_ns, vantage="x", name=name, detail=detail)


def test_phases_are_spans_with_both_ends() -> None:
    spans = phase_spans(
        [
            event(5, "migration.checkpoint.complete", bytes=1),
            event(1, "migration.checkpoint.started"),
            event(6, "migration.transfer.started"),
            event(9, "migration.transfer.failed"),
            event(10, "migration.transfer.started"),
            event(12, "migration.transfer.complete", bytes=7),
            event(13, "migration.restore.started"),
            event(2, "run.load.started"),
        ]
    )
    assert [(span.name, span.begin_ns, span.end_ns, span.complete) for span in spans] == [
        ("checkpoint", 1, 5, True),
        ("transfer", 6, 9, False),
        ("transfer", 10, 12, True),
    ]


def test_an_aborted_attempt_before_the_move_is_not_the_downtime() -> None:
    events = [
        event(1, "server.frozen", epoch=1),
        event(2, "server.aborted", epoch=1),
        event(10, "server.frozen", epoch=2),
        event(30, "server.resumed", epoch=2),
        event(31, "client.loss.noticed", pto_ms=55.5, silent_ms=60),
        event(40, "server.frozen", epoch=3),
    ]
    measured = measure(frames([]), events, "old", "new")
    assert measured.downtime_ms == 20 / NS_PER_MS
    assert measured.pto_ms == 55.5
    assert measured.overhead_ms is None
    assert measured.gap is None
    assert measured.transferred_bytes is None


def test_bytes_of_all_transfers_are_added_else_the_orchestrator_is_believed() -> None:
    finished = event(9, "migration.finished", outcome="succeeded", transferred_bytes=12)
    rounds = [event(t, "migration.transfer.complete", bytes=t) for t in (3, 4)]
    assert measure(frames([]), [*rounds, finished], "old", "new").transferred_bytes == 7
    assert measure(frames([]), [finished], "old", "new").transferred_bytes == 12


def test_a_nonce_that_was_reused_fails_the_run(run_copy: Path, scene: Scene) -> None:
    crypto = scene.server._cryptos[next(k for k in scene.server._cryptos if k.name == "ONE_RTT")]
    last = analyse(run_copy).packets.filter(
        (pl.col("source") == text(NEW)) & (pl.col("generation") == pl.col("generation").max())
    )
    number = int(last["packet_number"][-1])
    cid = [s for s in scene.client_side if s.source == NEW][-1].payload[1:9]
    phase = 4 * (int(last["generation"][-1]) & 1)
    forged = crypto.encrypt_packet(
        bytes([0x41 | phase]) + cid + number.to_bytes(2, "big"), b"\x01" * 30, number
    )
    # the source's own packet, after the snapshot: it never reached the client, only the edge saw it
    edge = [*scene.server_side[text(OLD)], Sighting(scene.stamp(), OLD, CLIENT, forged)]
    write_pcapng(run_copy / "captures" / "edge-1.pcapng", edge)
    result = analyse(run_copy).result
    assert result.outcome == "failed"
    assert result.error is not None
    assert result.error.startswith("1 packets used a key and packet number")


def with_inter_edge_link(run_dir: Path) -> None:
    manifest = read_manifest(run_dir)
    nodes = (Node(name="client"), *(Node(name=f"edge-{k}", kind=NodeKind.EDGE) for k in (1, 2)))
    link = Link(a="edge-1", b="edge-2", a_address="10.0.90.1/24", b_address="10.0.90.2/24")
    parts = manifest.topology.parts
    change_manifest(run_dir, topology=Topology(name="t", summary="", nodes=nodes, links=(link,), parts=parts))


@pytest.mark.parametrize(("datagrams", "complaint"), [(6, False), (4, True)])
def test_what_was_moved_must_have_crossed_the_link(
    run_copy: Path, scene: Scene, datagrams: int, complaint: bool
) -> None:
    with_inter_edge_link(run_copy)
    a, b = ("10.0.90.1", 5000), ("10.0.90.2", 6000)
    image = [Sighting(BEGIN_NS + place, a, b, bytes(1000)) for place in range(datagrams)]
    back = [Sighting(BEGIN_NS + place, b, a, bytes(500)) for place in range(9)]
    path = run_copy / "captures" / "edge-1.pcapng"
    write_pcapng(path, [*scene.server_side[text(OLD)], *image, *back])
    result = analyse(run_copy).result
    assert result.inter_edge_bytes == datagrams * 1042
    assert any("crossed the link" in warning for warning in result.warnings) is complaint
    lost = "Packets received/dropped on interface 'edge-1-eth1': 4/1 (pcap:0/dumpcap:1/flushed:0/ps_ifdrop:0)"
    (run_copy / "captures" / "edge-1.log").write_text(lost)
    assert not any("crossed the link" in warning for warning in analyse(run_copy).result.warnings)


def test_a_failed_run_is_a_failed_result(scene: Scene, tmp_path: Path) -> None:
    result = derive(write_run(tmp_path / "run", scene, outcome="failed"))
    assert (result.outcome, result.error) == ("failed", "the server did not come back")
    assert result.service_migration_time_ms == 120.0


def test_an_interrupted_run_is_failed(run_copy: Path) -> None:
    change_manifest(run_copy, outcome="running")
    result = derive(run_copy)
    assert (result.outcome, result.error) == ("failed", "the run was interrupted")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("captures/client.pcapng", "no capture client.pcapng"),
        ("secrets/keys.log", "no key log"),
        ("events.jsonl", "no events"),
    ],
)
def test_raw_data_that_is_missing_fails_the_result_with_words(
    run_copy: Path, missing: str, words: str
) -> None:
    (run_copy / missing).unlink()
    result = derive(run_copy)
    assert result.outcome == "failed"
    assert words in (result.error or "")
    assert RunPaths(run_copy).result.is_file()


def test_a_capture_of_nothing_and_of_strangers(run_copy: Path) -> None:
    write_pcapng(run_copy / "captures" / "client.pcapng", [])
    assert "no useful service" in (analyse(run_copy).result.error or "")
    stranger = moving_scene()
    write_pcapng(run_copy / "captures" / "client.pcapng", stranger.client_side)
    result = analyse(run_copy).result
    assert result.outcome == "failed"
    assert result.service_migration_time_ms is None


@pytest.mark.parametrize("corrupt_percent", [0.0, 1.0])
def test_what_the_link_damaged_cannot_be_decrypted(
    scene: Scene, run_copy: Path, corrupt_percent: float
) -> None:
    """That is no complaint where the link was asked to damage packets; the number is in the result."""
    damaged = [*scene.client_side]
    payload = damaged[-1].payload
    damaged[-1] = damaged[-1]._replace(payload=payload[:-1] + bytes([payload[-1] ^ 1]))
    write_pcapng(run_copy / "captures" / "client.pcapng", damaged, "client-eth0")
    spec = json.loads(RunPaths(run_copy).manifest.read_bytes())["spec"]
    change_manifest(run_copy, spec=spec | {"corrupt_percent": corrupt_percent})
    result = analyse(run_copy).result
    assert result.packets_undecrypted == 1
    assert any("could not be decrypted" in each for each in result.warnings) is (not corrupt_percent)


def quiet_after_the_move(tmp_path: Path) -> Path:
    """A run whose client had all its answers before the server froze, and asked nothing afterwards."""
    scene = Scene()
    scene.load(100, 350)
    scene.at(400, scene.freeze)
    scene.at(500, scene.resume)
    scene.run(1500)
    return write_run(tmp_path / "run", scene)


@pytest.mark.parametrize(
    ("known", "lost", "more", "outcome"),
    [
        (True, 0, {}, "succeeded"),  # nothing was missing
        (False, 0, {}, "failed"),  # the client never found out
        (True, 1, {}, "failed"),  # it waits for an answer
        (True, 0, {"workload": "push"}, "failed"),  # the server should have spoken
        (False, 0, {"baseline": "mptcp"}, "succeeded"),  # such a client finds out when it asks
        (False, 1, {"baseline": "mptcp"}, "failed"),
    ],
)
def test_a_client_that_asks_nothing_after_the_move_misses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
    lost: int,
    more: dict[str, str],
    outcome: str,
) -> None:
    run_dir = quiet_after_the_move(tmp_path)
    monkeypatch.setattr(timeline, "path_validated", lambda *_: BEGIN_NS if known else None)
    change_json(RunPaths(run_dir).client, requests_lost=lost)
    spec = json.loads(RunPaths(run_dir).manifest.read_bytes())["spec"]
    change_manifest(run_dir, spec=spec | more)
    result = analyse(run_dir).result
    assert (result.outcome, result.service_migration_time_ms) == (outcome, None)
    words = [*result.warnings, result.error or ""]
    expected = "asked nothing" if outcome == "succeeded" else "no useful service from 10.0.2.2:4433"
    assert any(expected in each for each in words)


def test_missing_edges_and_summary_are_warnings(run_copy: Path) -> None:
    (run_copy / "captures" / "edge-2.pcapng").unlink()
    (run_copy / "client.json").unlink()
    result = analyse(run_copy).result
    assert result.outcome == "succeeded"
    assert result.requests_sent is None
    assert any("no capture of the destination edge" in warning for warning in result.warnings)
    assert any("no summary" in warning for warning in result.warnings)


def test_what_the_client_complains_of_is_a_warning(run_copy: Path) -> None:
    transfer = {"kind": "download", "size_bytes": 10, "done_bytes": 7, "verified": False}
    change_json(
        run_copy / "client.json",
        requests_lost=2,
        requests_duplicated=1,
        state_ok=False,
        state_detail="counter went from 7 to 3",
        closed="idle timeout",
        transfers=[transfer],
    )
    result = analyse(run_copy).result
    words = " | ".join(result.warnings)
    for part in (
        "2 requests were never",
        "1 requests were executed twice",
        "7 to 3",
        "idle timeout",
        "7 of 10",
    ):
        assert part in words
    assert result.state_ok is False


def test_no_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run in"):
        derive(tmp_path)


def test_a_manifest_survives_its_round_trip(recorded: Path) -> None:
    manifest = read_manifest(recorded)
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


def test_the_clock_is_interpolated_between_its_samples() -> None:
    clock = Clock(realtime_minus_monotonic_start_ns=1_000_000, realtime_minus_monotonic_end_ns=1_000_100)
    convert = ClockConversion(clock, begin_ns=0, end_ns=1000)
    assert convert.to_monotonic_ns(1_000_000) == 0
    assert convert.to_monotonic_ns(1_000_500 + 50) == 495
    assert convert.to_monotonic_ns(1_005_000) == 4900
    assert convert.to_monotonic_ns(999_000) == -1000
    assert ClockConversion(None, 0, 0).to_monotonic_ns(77) == 77


@pytest.mark.parametrize(
    ("drift_ms", "duration_s", "warned"),
    [(0, 1, False), (0.9, 1, False), (-2, 1, True), (3600_000, 10, True), (20, 60, False), (-40, 60, True)],
)
def test_a_clock_that_was_set_is_a_warning(drift_ms: float, duration_s: int, warned: bool) -> None:
    clock = Clock(
        realtime_minus_monotonic_start_ns=0, realtime_minus_monotonic_end_ns=round(drift_ms * NS_PER_MS)
    )
    assert (clock_warning(clock, duration_s * 1_000_000_000) is not None) is warned


def test_no_clock_is_a_warning() -> None:
    assert clock_warning(None, 1) is not None


def test_the_offset_of_the_clocks_is_sampled_well() -> None:
    import time

    assert abs(time.time_ns() - now_ns() - realtime_minus_monotonic_ns()) < 50 * NS_PER_MS


def test_a_baseline_that_does_not_move_is_no_failure(run_copy: Path) -> None:
    scene = Scene()
    scene.load(100, 300)
    scene.run(500)
    write_pcapng(run_copy / "captures" / "client.pcapng", scene.client_side)
    (run_copy / "secrets" / "keys.log").write_text(scene.keys.getvalue())
    write_events(RunPaths(run_copy).events, scene.events)
    assert analyse(run_copy).result.outcome == "failed"
    spec = msgspec.structs.replace(read_manifest(run_copy).spec, baseline="stay")
    change_manifest(run_copy, spec=spec)
    result = derive(run_copy)
    assert (result.outcome, result.strategy, result.kind) == ("succeeded", "stay", "baseline")
    assert result.service_migration_time_ms is None
