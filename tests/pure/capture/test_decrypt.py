"""Our own decryption of QUIC against endpoints whose every packet is known."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite

from quicferry.capture.pcap import read_datagrams
from quicferry.capture.quic import Decryptor, read_keylog, read_traffic
from quicferry.capture.quic.keys import (
    INITIAL_SUITE,
    PacketProtection,
    decode_packet_number,
    expand_label,
    initial_secrets,
)
from quicferry.capture.quic.table import RangeSet, TrafficTable, tabulate
from quicferry.errors import CaptureError
from tests.capture_support import (
    BEGIN_NS,
    CLIENT,
    NEW,
    OLD,
    REALTIME_OFFSET_NS,
    Scene,
    Sighting,
    moving_scene,
    text,
    write_pcapng,
)


def read(folder: Path, scene: Scene, sightings: list[Sighting] | None = None) -> TrafficTable:
    capture, keys = folder / "client.pcapng", folder / "keys.log"
    write_pcapng(capture, scene.client_side if sightings is None else sightings)
    keys.write_text(scene.keys.getvalue())
    return read_traffic(
        capture,
        Decryptor(read_keylog(keys)),
        port=4433,
        to_monotonic_ns=lambda realtime: realtime - REALTIME_OFFSET_NS,
    )


def short_packets(sightings: list[Sighting]) -> list[Sighting]:
    return [sighting for sighting in sightings if not sighting.payload[0] & 0x80]


def test_initial_keys_are_those_of_rfc_9001_appendix_a() -> None:
    client, server = initial_secrets(1, bytes.fromhex("8394c8f03e515708"))
    assert client.hex() == "c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea"
    assert server.hex() == "3c199828fd139efd216c155ad844cc81fb82fa8d7446fa7d78be803acdda951b"
    assert expand_label("sha256", client, b"quic key", 16).hex() == "1f369613dd76d5467730efcbe3b1a22d"
    assert expand_label("sha256", client, b"quic iv", 12).hex() == "fa044b2f42a3fd3b46fb255c"
    assert expand_label("sha256", client, b"quic hp", 16).hex() == "9f50449e04a0e810283a1e9933adedd2"


def test_the_servers_initial_of_rfc_9001_appendix_a3_opens() -> None:
    packet = bytes.fromhex(
        "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb3"
        "8cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb8402"
        "2f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee"
    )
    secret = initial_secrets(1, bytes.fromhex("8394c8f03e515708"))[1]
    opened = PacketProtection(INITIAL_SUITE, secret, 1).open(packet, 18)
    assert opened is not None
    assert opened.packet_number == 1
    assert opened.payload.hex().startswith("02000000000600405a020000560303eefce7f7b37ba1d1632e96677825ddf7")


def test_the_chacha20_packet_of_rfc_9001_appendix_a5_opens() -> None:
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    protection = PacketProtection(0x1303, secret, 1)
    protection.expected = 654360564
    opened = protection.open(bytes.fromhex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb"), 1)
    assert opened is not None
    assert (opened.packet_number, opened.payload) == (654360564, b"\x01")


@pytest.mark.parametrize(
    ("truncated", "length", "expected", "number"),
    [
        (0x9B32, 2, 0xA82F30EA + 1, 0xA82F9B32),  # RFC 9000 §A.3
        (0xFF, 1, 0x100, 0xFF),
        (0x00, 1, 0x1FF, 0x200),
        (0x01, 1, 0x00, 0x01),
    ],
)
def test_packet_numbers_are_nearest_to_what_is_expected(
    truncated: int, length: int, expected: int, number: int
) -> None:
    assert decode_packet_number(truncated, length, expected) == number


@pytest.mark.parametrize("cipher", list(CipherSuite)[:3])
def test_everything_opens_over_moves_key_updates_and_new_connection_ids(
    tmp_path: Path, cipher: CipherSuite
) -> None:
    scene = moving_scene(cipher=cipher)
    traffic = read(tmp_path, scene)
    assert traffic.undecrypted == 0
    assert traffic.datagrams == len(scene.client_side)
    assert traffic.decryptor.connections == 1
    frame = traffic.frame.filter(pl.col("space") == "1-rtt")
    assert set(frame["generation"]) == {0, 1, 2, 3}
    assert (frame["key_phase"] == frame["generation"] % 2).all()
    assert {text(OLD), text(NEW)} <= set(frame["source"])
    assert frame.filter(pl.col("direction") == "to-server")["destination_cid"].n_unique() >= 2
    assert not traffic.frame["nonce_reused"].any()


@pytest.mark.parametrize(
    "versions",
    [
        [QuicProtocolVersion.VERSION_2],
        [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2],
    ],
)
def test_version_2_opens_too(tmp_path: Path, versions: list[int]) -> None:
    traffic = read(tmp_path, moving_scene(versions=versions))
    assert traffic.undecrypted == 0


def test_stamps_are_on_the_clock_of_the_run(tmp_path: Path) -> None:
    scene = moving_scene(key_update=False)
    traffic = read(tmp_path, scene)
    assert traffic.frame["t_ns"].min() == BEGIN_NS
    assert set(traffic.frame["t_ns"]) <= {sighting.t_ns for sighting in scene.client_side}


def test_new_bytes_are_the_bytes_that_the_application_got(tmp_path: Path) -> None:
    scene = Scene(interval_ms=5)
    scene.lose_to_client = lambda t_ns: (t_ns // 1_000_000) % 11 == 3
    scene.duplicate_to_client = lambda t_ns: (t_ns // 1_000_000) % 7 == 2
    scene.load(100, 400)
    scene.run(3000)
    traffic = read(tmp_path, scene)
    assert len(scene.answers) == len(scene.sent)
    to_client = traffic.frame.filter((pl.col("direction") == "to-client") & (pl.col("frame") == "STREAM"))
    assert to_client["new_bytes"].sum() == 256 * len(scene.answers)
    assert to_client["new_fin"].sum() == len(scene.answers)
    repeated = traffic.frame.filter(pl.col("repeated"))
    assert not repeated.is_empty()
    assert repeated["new_bytes"].drop_nulls().sum() == 0


def test_a_client_that_changes_its_port_stays_the_same_connection(tmp_path: Path) -> None:
    scene = Scene()
    scene.load(100, 500)
    scene.at(300, lambda: scene.rebind(50_001))
    scene.run(800)
    traffic = read(tmp_path, scene)
    assert traffic.undecrypted == 0
    assert set(traffic.frame["connection"]) == {0}
    assert f"{CLIENT[0]}:50001" in set(traffic.frame["destination"])
    assert {"PATH_CHALLENGE", "PATH_RESPONSE"} <= set(traffic.frame["frame"].drop_nulls())


def test_a_capture_that_begins_late_is_opened_by_trying_the_secrets(tmp_path: Path) -> None:
    scene = moving_scene(key_update=False)
    late = [s for s in short_packets(scene.client_side) if s.t_ns > BEGIN_NS + 200_000_000]
    traffic = read(tmp_path, scene, late)
    assert traffic.undecrypted == 0
    assert traffic.decryptor.connections == 1
    assert traffic.frame["direction"].null_count() == 0


def test_another_vantage_opens_with_what_the_first_learnt(tmp_path: Path) -> None:
    scene = moving_scene()
    traffic = read(tmp_path, scene)
    write_pcapng(tmp_path / "edge-2.pcapng", scene.server_side[text(NEW)])
    other = read_traffic(tmp_path / "edge-2.pcapng", traffic.decryptor.other_vantage())
    assert other.datagrams == len(scene.server_side[text(NEW)])
    assert other.undecrypted == 0
    assert not other.frame["nonce_reused"].any()


def test_a_nonce_used_for_two_packets_is_found(tmp_path: Path) -> None:
    """Two copies of one frozen server: what happens without a fence."""
    scene = Scene()
    scene.load(100, 300)
    scene.run(395)
    assert not read(tmp_path, scene).frame["nonce_reused"].any()
    # a second packet under the number of the last one: sealed with the very keys of the first
    crypto = scene.server._cryptos[next(k for k in scene.server._cryptos if k.name == "ONE_RTT")]
    last = read(tmp_path, scene).frame.filter(
        (pl.col("direction") == "to-client") & (pl.col("space") == "1-rtt")
    )
    number = int(last["packet_number"][-1])
    header = bytes([0x41]) + bytes.fromhex(last["destination_cid"][-1]) + number.to_bytes(2, "big")
    forged = crypto.encrypt_packet(header, b"\x01" + bytes(30), number)
    sightings = [*scene.client_side, Sighting(scene.stamp(), NEW, CLIENT, forged)]
    found = read(tmp_path, scene, sightings).frame.filter(pl.col("nonce_reused"))
    assert found["packet_number"].to_list() == [number]
    assert found["source"].to_list() == [text(NEW)]


def test_what_is_no_quic_is_counted_and_hurts_nobody(tmp_path: Path) -> None:
    scene = moving_scene(key_update=False)
    junk = [b"\x00" * 40, b"\xff" * 40, b"\x40" + bytes(60), b"\xc0\0\0\0\1\xff", b"\x80", b"@"]
    noise = [Sighting(scene.stamp(0) + 7 * place, NEW, CLIENT, data) for place, data in enumerate(junk)]
    traffic = read(tmp_path, scene, [*scene.client_side, *noise])
    assert traffic.undecrypted == len(junk)
    assert traffic.frame["frame"].null_count() >= 1


def test_the_wrong_secrets_open_only_the_initial_packets(tmp_path: Path) -> None:
    scene, stranger = moving_scene(), moving_scene()
    write_pcapng(tmp_path / "client.pcapng", scene.client_side)
    (tmp_path / "keys.log").write_text(stranger.keys.getvalue())
    traffic = read_traffic(tmp_path / "client.pcapng", Decryptor(read_keylog(tmp_path / "keys.log")))
    opened = traffic.frame.filter(pl.col("frame").is_not_null())
    assert set(opened["space"]) == {"initial"}
    assert traffic.undecrypted > 100


def test_missing_files_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no key log"):
        read_keylog(tmp_path / "none.log")
    with pytest.raises(CaptureError, match="no readable capture"):
        read_datagrams(tmp_path / "none.pcapng")
    (tmp_path / "text.pcapng").write_text("this is no capture at all, only words")
    with pytest.raises(CaptureError, match="no readable capture"):
        read_datagrams(tmp_path / "text.pcapng")


def test_a_capture_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    scene = moving_scene(key_update=False)
    path = tmp_path / "cut.pcapng"
    write_pcapng(path, scene.client_side)
    path.write_bytes(path.read_bytes()[:-50])
    assert len(read_datagrams(path)) == len(scene.client_side) - 1


def test_a_key_log_may_hold_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    random, secret = "ab" * 32, "cd" * 32
    path.write_text(
        f"# comment\n\nCLIENT_TRAFFIC_SECRET_0 {random} {secret}\nCLIENT_TRAFFIC_SECRET_0 {random} zz\n"
        f"CLIENT_TRAFFIC_SECRET_0 {random[:10]} {secret}\nSERVER_TRAFFIC_SECRET_0 {random} {secret[:20]}"
    )
    assert read_keylog(path) == {bytes.fromhex(random): {"CLIENT_TRAFFIC_SECRET_0": bytes.fromhex(secret)}}


def test_range_set_counts_each_byte_once() -> None:
    ranges = RangeSet()
    assert ranges.add(10, 20) == 10
    assert ranges.add(30, 40) == 10
    assert ranges.add(15, 35) == 10
    assert ranges.add(0, 50) == 20
    assert ranges.add(0, 50) == 0
    assert ranges.add(50, 60) == 10
    assert ranges.add(60, 60) == 0
    assert ranges.add(70, 80) == 10
    assert ranges.add(60, 70) == 10
    assert ranges.add(0, 80) == 0


def test_five_thousand_packets_a_second(tmp_path: Path) -> None:
    """A run of a minute must not take minutes to read. Measured: six times this, on one core."""
    scene = Scene(interval_ms=1, response_bytes=1000)
    scene.load(100, 500)
    scene.run(700)
    traffic = read(tmp_path, scene)
    datagrams = read_datagrams(tmp_path / "client.pcapng")
    keys = read_keylog(tmp_path / "keys.log")
    fastest = min(_seconds(lambda: tabulate(datagrams, Decryptor(keys))) for _ in range(3))
    assert traffic.datagrams / fastest > 5000


def _seconds(action: object) -> float:
    begun = time.process_time()
    action()  # type: ignore[operator] # a callable
    return time.process_time() - begun
