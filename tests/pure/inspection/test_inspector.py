"""What is told of connections, paths and migrations, against endpoints whose every packet is known."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from aioquic.quic.packet import QuicProtocolVersion

from cli import main
from quicferry.capture.quic.packets import Direction, Why
from quicferry.errors import CaptureError
from quicferry.inspection.inspector import NOT_QUIC, Inspector, Told
from quicferry.inspection.qlog import QlogWriter
from quicferry.inspection.sequence import DiagramBuilder, as_text, migration_svg
from quicferry.inspection.sources import Source
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

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def inspected(path: Path, *keys: Path) -> tuple[Inspector, list[Told], Source]:
    source = Source(path, keys)
    inspector = Inspector(source.keylog)
    told = [each for sighting in source.sightings() if (each := inspector.tell(sighting)) is not None]
    return inspector, told, source


@pytest.fixture(scope="module")
def scene() -> Scene:
    return moving_scene()


@pytest.fixture(scope="module")
def run(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", scene)


def test_a_move_of_the_server_is_one_migration_with_its_moments(run: Path, scene: Scene) -> None:
    inspector, told, source = inspected(run)
    (story,) = inspector.stories.values()
    assert story.opened == story.packets > 300
    assert [path.ends for path in story.paths.values()] == [
        (text(CLIENT), text(OLD)),
        (text(CLIENT), text(NEW)),
    ]
    (migration,) = story.migrations
    assert (migration.number, migration.who) == (1, "server")
    assert migration.complete_ns is not None
    assert migration.gap_ms == pytest.approx(scene.service_migration_ns / 1e6, abs=0.001)
    assert story.stream_count == len(scene.sent)
    assert story.new_bytes[TO_CLIENT] == 256 * len(scene.answers)
    assert {each.vantage for each in told} == {"client", "edge-1", "edge-2"}
    assert source.gaps() + inspector.gaps() == []
    assert not any(packet.repeated for each in told for packet in each.packets)


@pytest.mark.parametrize("host", ["client", "edge-2"])
def test_a_capture_of_a_run_finds_the_runs_secrets(run: Path, host: str) -> None:
    inspector, told, _ = inspected(run / "captures" / f"{host}.pcapng")
    assert len(told) > 50
    assert all(packet.frames is not None for each in told for packet in each.packets)
    assert inspector.gaps() == []


def test_a_client_that_rebinds_migrates_itself(tmp_path: Path) -> None:
    scene = Scene()
    scene.load(100, 500)
    scene.at(300, lambda: scene.rebind(50_001))
    scene.run(800)
    write_pcapng(tmp_path / "a.pcapng", scene.client_side)
    (tmp_path / "keys.log").write_text(scene.keys.getvalue())
    inspector, _, _ = inspected(tmp_path / "a.pcapng", tmp_path / "keys.log")
    (story,) = inspector.stories.values()
    assert [(each.who, each.reverted) for each in story.migrations] == [("client", False)]


def test_late_packets_of_the_old_path_are_no_migration_back(tmp_path: Path, scene: Scene) -> None:
    sightings = list(scene.client_side)
    first_new = next(i for i, s in enumerate(sightings) if s.source == NEW)
    late = next(s for s in reversed(sightings[:first_new]) if s.source == OLD)
    sightings.remove(late)
    sightings.append(late._replace(t_ns=sightings[first_new + 6].t_ns + 1))
    write_pcapng(tmp_path / "a.pcapng", sightings)
    (tmp_path / "keys.log").write_text(scene.keys.getvalue())
    inspector, _, _ = inspected(tmp_path / "a.pcapng", tmp_path / "keys.log")
    assert inspector.migrations == 1


def test_without_secrets_a_move_that_keeps_its_ids_is_seen_by_addresses(tmp_path: Path) -> None:
    scene = Scene()
    scene.load(100, 900)
    scene.at(400, scene.freeze)
    scene.at(500, scene.resume)
    scene.run(1200)
    write_pcapng(tmp_path / "a.pcapng", scene.client_side)
    inspector, told, _ = inspected(tmp_path / "a.pcapng")
    (story,) = inspector.stories.values()
    assert story.opened <= 4
    assert set(story.why) == {Why.NO_SECRETS}
    assert [each.who for each in story.migrations] == ["server"]
    assert len(told) == len(scene.client_side)


@pytest.mark.parametrize("versions", [[QuicProtocolVersion.VERSION_1], [QuicProtocolVersion.VERSION_2]])
def test_a_capture_that_begins_late_opens_by_the_secrets(tmp_path: Path, versions: list[int]) -> None:
    scene = Scene(interval_ms=1, versions=versions)
    scene.load(100, 600)
    scene.run(900)
    late = [s for s in scene.client_side if s.t_ns > BEGIN_NS + 450_000_000]
    write_pcapng(tmp_path / "a.pcapng", late)
    (tmp_path / "keys.log").write_text(scene.keys.getvalue())
    inspector, told, _ = inspected(tmp_path / "a.pcapng", tmp_path / "keys.log")
    (story,) = inspector.stories.values()
    assert story.opened == story.packets == len(late) == len(told)
    assert min(packet.packet_number or 0 for each in told for packet in each.packets) > 200


def test_keys_of_another_run_are_a_named_reason(tmp_path: Path, scene: Scene) -> None:
    write_pcapng(tmp_path / "a.pcapng", scene.client_side)
    (tmp_path / "keys.log").write_text(moving_scene(key_update=False).keys.getvalue())
    inspector, _, _ = inspected(tmp_path / "a.pcapng", tmp_path / "keys.log")
    story = inspector.stories[0]
    assert set(story.why) == {Why.NO_SECRETS}
    assert story.opened <= 4


@pytest.mark.parametrize("change", [lambda log: log.replace("\n", "\r\n"), lambda log: log + "CLIENT_TRAFF"])
def test_key_logs_with_crlf_or_half_a_line_open_everything(
    tmp_path: Path, scene: Scene, change: object
) -> None:
    write_pcapng(tmp_path / "a.pcapng", scene.client_side)
    log = change(scene.keys.getvalue())  # type: ignore[operator] # a callable
    (tmp_path / "keys.log").write_bytes(log.encode())
    inspector, _, source = inspected(tmp_path / "a.pcapng", tmp_path / "keys.log")
    assert inspector.stories[0].opened == inspector.stories[0].packets
    assert bool(source.gaps()) == log.endswith("TRAFF")


def test_a_key_log_that_is_none_is_refused(tmp_path: Path, scene: Scene) -> None:
    write_pcapng(tmp_path / "a.pcapng", scene.client_side)
    with pytest.raises(CaptureError, match="has no secret in it"):
        Source(tmp_path / "a.pcapng", (tmp_path / "a.pcapng",))
    with pytest.raises(CaptureError, match="no key log"):
        Source(tmp_path / "a.pcapng", (tmp_path / "none.log",))
    with pytest.raises(CaptureError, match="there is no file"):
        Source(tmp_path / "none.pcapng")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptureError, match="has no captures"):
        Source(tmp_path / "empty")


def test_what_is_no_quic_is_a_gap_and_gquic_has_its_name(tmp_path: Path) -> None:
    peer = ("10.9.9.9", 443)
    hello = b"\x0d" + bytes(8) + b"Q043" + bytes(4) + bytes(100)
    packets = [
        Sighting(1, CLIENT, ("10.9.9.8", 53), bytes.fromhex("12340100000100000000000003777777") + bytes(20)),
        Sighting(2, CLIENT, peer, hello),
        Sighting(3, peer, CLIENT, b"\x08" + bytes(8) + bytes(30)),
        Sighting(4, CLIENT, ("10.9.9.7", 443), b"\xc3Q046\x50" + bytes(8) + bytes(100)),
        Sighting(5, CLIENT, ("10.9.9.6", 443), b"\xc0\xff\0\0\x10\x08" + bytes(8) + b"\x00" + bytes(50)),
    ]
    write_pcapng(tmp_path / "a.pcapng", packets)
    inspector, told, _ = inspected(tmp_path / "a.pcapng")
    reasons = {gap.reason: gap.packets for gap in inspector.gaps()}
    assert reasons == {
        f"QUIC packets: {Why.GOOGLE}": 3,
        f"QUIC packets: {Why.UNKNOWN_VERSION}": 1,
        NOT_QUIC: 1,
    }
    assert [each.packets[0].version for each in told] == [0x51303433, 0, 0x51303436, 0xFF000010]


def test_very_many_connections_are_forgotten_and_the_memory_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quicferry.capture.quic.decrypt._CONNECTIONS_REMEMBERED", 8)
    monkeypatch.setattr("quicferry.inspection.inspector._STORIES_REMEMBERED", 8)
    first = Scene().client_side[0].payload
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    sightings = [Sighting(0, CLIENT, OLD, first)]
    for number in range(30):
        client = QuicConnection(configuration=QuicConfiguration(is_client=True, server_name="a"))
        client.connect(OLD, now=0.0)
        data = client.datagrams_to_send(0.0)[0][0]
        sightings.append(Sighting(number, (CLIENT[0], 50_000 + number), OLD, data))
    write_pcapng(tmp_path / "a.pcapng", sightings)
    inspector, _, _ = inspected(tmp_path / "a.pcapng")
    assert len(inspector.stories) == 8
    assert any("oldest were forgotten" in gap.reason for gap in inspector.gaps())


def test_the_memory_does_not_grow_with_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicferry.capture.quic.connections._NONCES_REMEMBERED", 256)
    monkeypatch.setattr("quicferry.inspection.stories._MOST_STREAMS", 32)
    monkeypatch.setattr("quicferry.capture.files.source._CHUNK_BYTES", 4096)
    scene = Scene(interval_ms=1)
    scene.load(100, 700)
    scene.run(900)
    (tmp_path / "keys.log").write_text(scene.keys.getvalue())
    peaks = []
    for share in (3, 1):
        write_pcapng(tmp_path / "a.pcapng", scene.client_side[: len(scene.client_side) // share])
        source = Source(tmp_path / "a.pcapng", (tmp_path / "keys.log",))
        inspector = Inspector(source.keylog)
        tracemalloc.start()
        for sighting in source.sightings():
            inspector.tell(sighting)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 40 * len(scene.client_side), "less than anything that is kept of a packet"


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main.call(["inspect", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_filters_choose_by_connection_path_frame_and_migration(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def packets(*arguments: str) -> list[dict[str, object]]:
        return [each for each in lines(capsys, str(run), *arguments) if each["kind"] == "packet"]

    everything = packets()
    assert packets("--conn", "0") == everything
    assert packets("--conn", "7") == []
    on_new = packets("--path", "1")
    assert on_new == packets("--path", text(NEW))
    assert {each["path"] for each in on_new} == {1}
    new_ids = packets("--frame", "new_conn")
    assert 0 < len(new_ids) < len(everything)
    assert all("NEW_CONNECTION_ID" in json.dumps(each) for each in new_ids)
    near = packets("--around", "1", "--margin-ms", "20")
    assert 0 < len(near) < len(everything)
    everything_again = lines(capsys, str(run))
    (migration,) = [each for each in everything_again if each["kind"] == "migration"]
    assert migration["migration"] == 1
    assert min(each["t_s"] for each in near) <= migration["switched_s"] <= max(each["t_s"] for each in near)  # type: ignore[type-var,operator] # seconds
    assert main.call(["inspect", str(run), "--around", "2"]) == 2
    assert "there is no migration 2" in capsys.readouterr().err


def test_text_has_a_line_per_packet_and_then_the_tables(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.call(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "migration 1 begins" in out
    assert "-- server.frozen" in out
    assert "protected QUIC packets were opened" in out
    assert main.call(["inspect", str(run), "--summary"]) == 0
    assert "1-RTT #" not in capsys.readouterr().out


def test_a_bad_file_ends_in_a_message_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("words")
    assert main.call(["inspect", str(tmp_path / "a.txt")]) == 1
    assert "hint:" in capsys.readouterr().err


def test_the_sequence_diagram_has_times_at_both_ends_and_what_was_lost(run: Path, scene: Scene) -> None:
    source = Source(run)
    inspector = Inspector(source.keylog)
    builder = DiagramBuilder()
    for sighting in source.sightings():
        told = inspector.tell(sighting)
        if told is not None:
            builder.take(told, wanted=True)
    diagram = builder.diagram(source.events())
    assert set(diagram.hosts) == {CLIENT[0], OLD[0], NEW[0]}
    assert diagram.names[OLD[0]] == "edge-1"
    arrived = [each for each in diagram.arrows if each.arrived_ns is not None]
    assert {each.arrived_ns - each.sent_ns for each in arrived} == {scene.one_way_ns}  # type: ignore[operator] # all did
    drawn = "\n".join(as_text(diagram, inspector.first_ns or 0))
    assert "+9.0 ms" in drawn
    assert "-- edge-1: server.frozen" in drawn
    svg = migration_svg(run)
    assert svg is not None
    assert svg.count("<g class=") > 5
    assert "server.frozen" in svg


def test_qlog_has_a_file_per_endpoint_with_rising_times_and_all_packets(run: Path, tmp_path: Path) -> None:
    source = Source(run)
    inspector = Inspector(source.keylog)
    writer = QlogWriter(tmp_path / "qlog", inspector)
    sent = {"client": 0, "server": 0}
    for sighting in source.sightings():
        told = inspector.tell(sighting)
        if told is not None:
            writer.take(told, 3)
            for packet in told.packets:
                home = told.vantage == "client"
                sent["client"] += home and packet.direction is TO_SERVER
                sent["server"] += not home and packet.direction is TO_CLIENT
    writer.close()
    names = {path.name.rpartition("_")[2]: path for path in writer.written}
    assert set(names) == {"client.sqlog", "server.sqlog"}
    for who in ("client", "server"):
        records = names[f"{who}.sqlog"].read_bytes().split(b"\x1e")
        assert records[0] == b""
        assert all(record.endswith(b"\n") for record in records[1:])
        header, *events = [json.loads(record) for record in records[1:]]
        assert header["file_schema"] == "urn:ietf:params:qlog:file:sequential"
        assert header["trace"]["vantage_point"]["type"] == who
        assert header["trace"]["event_schemas"] == ["urn:ietf:params:qlog:events:quic-13"]
        times = [event["time"] for event in events]
        assert times == sorted(times)
        packets = [event for event in events if event["name"] == "quic:packet_sent"]
        assert len(packets) == sent[who]
        assert {"quic:packet_received", "quic:tuple_assigned", "quic:key_updated"} <= {
            e["name"] for e in events
        }
        assert all(frame["frame_type"] for event in packets for frame in event["data"]["frames"])
        states = [e["data"]["new"] for e in events if e["name"] == "quic:migration_state_updated"]
        assert states.count("migration_started") == states.count("migration_complete") == 1
