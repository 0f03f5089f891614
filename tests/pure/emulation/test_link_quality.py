"""Bursts of losses, reordering, duplicates, corruption, traces of rates and cuts, in virtual time."""

from __future__ import annotations

import itertools
import socket
import statistics
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

import topologies
from quicferry.emulation.links import netem
from quicferry.emulation.links.cable.fate import LOST, WHOLE
from quicferry.emulation.links.cable.frames import VNET_HEADER
from quicferry.emulation.links.cable.packets import flip_bit, wire_size
from quicferry.emulation.links.trace import mean_mbps, read_trace
from quicferry.errors import InvalidInput
from quicferry.model import Shape
from tests.cable_support import Direction
from topologies.building.quality import with_quality

MS = 1_000_000
S = 1_000 * MS


def direction(**shape: Any) -> Direction:
    return Direction(Shape(**shape))


def lost_runs(lane: Direction, frames: int) -> tuple[float, float]:
    """The share of lost frames, and the mean length of a run of them."""
    fates = [lane.schedule(number * MS, 100) == LOST for number in range(frames)]
    runs = [len(list(run)) for is_lost, run in itertools.groupby(fates) if is_lost]
    return sum(fates) / frames, statistics.mean(runs)


@pytest.mark.parametrize(("loss", "burst"), [(5.0, 4.0), (1.0, 10.0), (20.0, 2.0)])
def test_losses_come_in_bursts_of_the_asked_length_and_are_as_many_as_asked(
    loss: float, burst: float
) -> None:
    share, length = lost_runs(direction(loss_percent=loss, loss_burst_packets=burst), 200_000)
    assert share == pytest.approx(loss / 100, rel=0.12)
    assert length == pytest.approx(burst, rel=0.1)


def test_without_bursts_losses_are_independent() -> None:
    share, length = lost_runs(direction(loss_percent=20), 100_000)
    assert share == pytest.approx(0.2, rel=0.05)
    assert length == pytest.approx(1 / 0.8, rel=0.03)


def test_what_is_reordered_skips_the_delay_and_the_others_keep_theirs() -> None:
    lane = direction(delay_ms=10, reorder_percent=25)
    released = [lane.schedule(number * MS, 100) - number * MS for number in range(10_000)]
    assert set(released) == {0, 10 * MS}
    assert released.count(0) / len(released) == pytest.approx(0.25, abs=0.02)
    assert lane.lane["reordered_packets"] == released.count(0)


def test_duplicates_and_corruptions_are_as_many_as_asked() -> None:
    lane = direction(duplicate_percent=3, corrupt_percent=5)
    assert sum(lane.is_duplicated() for _ in range(50_000)) / 50_000 == pytest.approx(0.03, rel=0.1)
    bits = [lane.corrupt_bit(800) for _ in range(50_000)]
    hit = [bit for bit in bits if bit != WHOLE]
    assert len(hit) / 50_000 == pytest.approx(0.05, rel=0.1)
    assert min(hit) >= 0
    assert max(hit) < 800
    assert (lane.lane["duplicated_packets"] > 0, lane.lane["corrupted_packets"]) == (True, len(hit))


def flipped(frame: bytes, bit: int) -> bytes:
    changed = np.frombuffer(frame, np.uint8).copy()
    flip_bit(changed, bit)
    return changed.tobytes()


def test_one_bit_is_flipped_and_a_missing_checksum_is_filled_in_before() -> None:
    packet = Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"odd"
    whole = bytes(packet)
    # as the kernel hands it over: the checksum field has the sum of the pseudo header only
    pseudo = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2") + struct.pack("!BBH", 0, 17, 11)
    started = bytearray(whole)
    struct.pack_into("!H", started, 14 + 20 + 6, int.from_bytes(pseudo) % 0xFFFF)
    frame = VNET_HEADER.pack(1, 0, 0, 0, 14 + 20, 6) + bytes(started)
    bit = 8 * (20 + 8) + 3  # in the first byte of the payload
    changed = flipped(frame, bit)
    assert changed[0] == 0  # no checksum is missing any more
    differing = bytes(a ^ b for a, b in zip(changed[VNET_HEADER.size :], whole, strict=True))
    assert differing == bytes(14 + 28) + bytes([8]) + bytes(2)
    stream = Ether() / IP() / TCP() / b"data"
    complete = VNET_HEADER.pack(0, 0, 0, 0, 0, 0) + bytes(stream)
    assert sum(a != b for a, b in zip(flipped(complete, 100), complete, strict=True)) == 1


def test_a_frame_without_a_packet_stays_whole() -> None:
    lane = direction(corrupt_percent=100)
    assert lane.corrupt_bit(0) == WHOLE
    assert lane.corrupt_bit(8) in range(8)


@given(st.binary(min_size=24, max_size=400), st.integers(0, 7))
def test_whatever_a_header_says_only_the_frame_is_touched(frame: bytes, bit: int) -> None:
    memory = np.full(len(frame) + 64, 0xAA, np.uint8)
    memory[: len(frame)] = np.frombuffer(frame, np.uint8)
    size = wire_size(memory[: len(frame)])
    assert size.packets >= 1
    assert size.wire_bytes >= len(frame) - VNET_HEADER.size
    if len(frame) > 24:
        flip_bit(memory[: len(frame)], bit)
        assert set(memory[len(frame) :].tolist()) == {0xAA}


def test_nothing_passes_during_an_outage_which_counts_from_the_beginning_of_the_load() -> None:
    lane = direction(outages=((1.0, 0.5), (3.0, 1.0)))
    assert lane.schedule(0, 100) == 0
    lane.begin(10 * S)
    seen = {
        t: lane.schedule(10 * S + round(t * S), 100) != LOST for t in (0.9, 1.0, 1.49, 1.5, 2.9, 3.5, 4.0)
    }
    assert seen == {0.9: True, 1.0: False, 1.49: False, 1.5: True, 2.9: True, 3.5: False, 4.0: True}
    assert lane.lane["outage_packets"] == 3


def test_a_trace_lets_1500_bytes_pass_at_each_of_its_moments_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "short.trace"
    path.write_text("2\n2\n5\n10\n")
    lane = Direction(Shape(rate_trace=str(path)))
    lane.begin(0)
    assert [lane.schedule(0, 1500) // MS for _ in range(6)] == [2, 2, 5, 10, 12, 12]
    lane = Direction(Shape(rate_trace=str(path)))
    lane.begin(0)
    assert lane.schedule(3 * MS, 1500) == 5 * MS  # what passed unused is lost
    assert lane.schedule(3 * MS, 300) == 10 * MS
    assert lane.schedule(4 * MS, 1200) == 10 * MS  # the rest of the same moment
    assert lane.schedule(4 * MS, 1501) == 12 * MS  # and a frame larger than one takes two
    assert lane.schedule(int(1e6) * MS, 60) == int(1e6) * MS  # a moment of its own


def test_over_a_trace_as_much_passes_as_it_says(tmp_path: Path) -> None:
    moments = tuple(sorted((number * 7919) % 1000 + 1 for number in range(833)))
    assert mean_mbps(moments) == pytest.approx(833 * 1500 * 8 / moments[-1] / 1e3)
    path = tmp_path / "lte.trace"
    path.write_text("".join(f"{moment}\n" for moment in moments))
    lane = Direction(Shape(rate_trace=str(path), queue_packets=1_000_000))
    lane.begin(0)
    last = [lane.schedule(0, 1500) for _ in range(833 * 3)][-1]
    assert last == 3 * moments[-1] * MS


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("1\n5\n3\n", "line 3"),
        ("1\n2.5\n", "line 2"),
        ("1\n\n-2\n", "line 3"),
        ("fast\n", "line 1"),
        ("", "no length"),
        ("0\n0\n", "no length"),
        ("1\né\n", "no text"),
    ],
)
def test_a_bad_trace_is_refused_with_its_file_and_line(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "bad.trace"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=where) as refusal:
        read_trace(path)
    assert str(path) in str(refusal.value)
    assert refusal.value.hint
    with pytest.raises(InvalidInput, match=where):
        with_quality(topologies.get("one_lan").build(), {"rate_trace": str(path)}, None)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.trace"):
        read_trace(tmp_path / "nowhere.trace")


@pytest.mark.parametrize(
    "shape",
    [
        {"reorder_percent": 5},
        {"reorder_percent": 101, "delay_ms": 5},
        {"duplicate_percent": -1},
        {"corrupt_percent": float("nan")},
        {"loss_percent": 1, "loss_burst_packets": 0.5},
        {"loss_percent": 90, "loss_burst_packets": 2},
        {"rate_trace": "x", "rate_mbps": 5},
        {"outages": ((-1, 2),)},
        {"outages": ((1, 0),)},
    ],
    ids=str,
)
def test_what_no_link_can_do_is_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Shape(**shape)
    assert refusal.value.hint


def test_the_axes_hold_for_the_clients_access_and_reordering_for_where_the_delay_is() -> None:
    two_edges = topologies.get("two_edges").build(loss_percent=2)
    made = with_quality(two_edges, {"loss_burst_packets": 3.0, "reorder_percent": 1.0}, None)
    shapes = {link.name: link.a_to_b for link in made.links}
    assert (shapes["client--access"].loss_percent, shapes["client--access"].loss_burst_packets) == (2, 3)
    assert [name for name, shape in shapes.items() if shape.reorder_percent] == [
        "core--edge-1",
        "core--edge-2",
    ]
    assert with_quality(two_edges, {"loss_burst_packets": None, "reorder_percent": 0.0}, None) == two_edges


def test_a_cut_holds_for_the_link_and_the_direction_that_are_named() -> None:
    made = with_quality(
        topologies.get("two_edges").build(), {}, "up@1+0.5, core>edge-2@2+1,edge-1--edge-2@3+1"
    )
    links = {link.name: (link.a_to_b.outages, link.b_to_a.outages) for link in made.links}
    assert links["client--access"] == (((1, 0.5),), ())
    assert links["core--edge-2"] == (((2, 1),), ())
    assert links["edge-1--edge-2"] == (((3, 1),), ((3, 1),))


@pytest.mark.parametrize("flap", ["", "up", "up@1", "up@x+1", "moon>edge-1@1+1", "client>core@1+1", "up@1+0"])
def test_a_cut_that_cannot_be_is_refused(flap: str) -> None:
    if not flap:
        assert with_quality(topologies.get("two_edges").build(), {}, flap)
        return
    with pytest.raises(InvalidInput) as refusal:
        with_quality(topologies.get("two_edges").build(), {}, flap)
    assert refusal.value.hint


def test_netem_is_asked_for_bursts_reordering_duplicates_and_corruption() -> None:
    shape = Shape(
        delay_ms=5, loss_percent=2, loss_burst_packets=4,
        reorder_percent=1, duplicate_percent=3, corrupt_percent=5,
    )  # fmt: skip
    wanted = netem.parameters(shape, 1500)
    assert wanted.loss == 0
    assert wanted.bursts == (pytest.approx(2**32 * 0.02 / (4 * 0.98), abs=2), pytest.approx(2**30, abs=2))
    message = netem.request(7, wanted)
    options = message[16 + 20 + 12 + 4 :]
    _, _, loss, gap, duplicate, _ = struct.unpack_from("=6I", options)
    assert (loss, gap, duplicate) == (0, 1, round(0.03 * (2**32 - 1)))
    found, at = {}, 24
    while at < len(options):
        length, kind = struct.unpack_from("=HH", options, at)
        found[kind & 0x3FFF] = options[at + 4 : at + length]
        at += (length + 3) & ~3
    assert struct.unpack("=II", found[netem.TCA_NETEM_REORDER]) == (round(0.01 * (2**32 - 1)), 0)
    assert struct.unpack("=II", found[netem.TCA_NETEM_CORRUPT]) == (round(0.05 * (2**32 - 1)), 0)
    assert struct.unpack_from("=HH4I", found[netem.TCA_NETEM_LOSS])[1:4] == (
        netem.NETEM_LOSS_GE,
        *wanted.bursts,
    )


def test_what_netem_does_not_know_is_named() -> None:
    assert netem.why_not(Shape(delay_ms=5, loss_percent=1)) is None
    assert "trace" in (netem.why_not(Shape(rate_trace="x")) or "")
    assert "direction" in (netem.why_not(Shape(outages=((1, 1),))) or "")
