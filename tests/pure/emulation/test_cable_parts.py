"""The cable's histogram, the wire size of frames, and the file it is told things with."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quicferry.emulation.links.cable.config import CableConfig, CableLink
from quicferry.emulation.links.cable.frames import VNET_HEADER
from quicferry.emulation.links.cable.lateness import (
    BUCKETS,
    COARSE_SHIFT,
    FINE_BUCKETS,
    bucket,
    percentile_us,
)
from quicferry.emulation.links.cable.packets import VNET_HEADER_BYTES, wire_size
from quicferry.errors import InvalidInput
from quicferry.model import Shape


def percentile(late_us: list[int], percent: float, *, max_us: float = 1e9) -> float:
    counts = np.zeros(BUCKETS, np.int64)
    for us in late_us:
        counts[bucket(us * 1000)] += 1
    return percentile_us(counts, percent, max_us=max_us)


def test_lateness_of_nothing_is_zero() -> None:
    assert percentile([], 99, max_us=0) == 0


def test_lateness_percentiles_are_upper_edges_of_buckets() -> None:
    late = list(range(100))
    assert percentile(late, 50) == 50
    assert percentile(late, 99) == 99
    assert percentile(late, 100, max_us=99) == 99  # never above the maximum


@pytest.mark.parametrize("us", [0, 1, 255, 256, 300, 5_000, 60_000])
def test_lateness_is_known_to_a_bucket(us: int) -> None:
    wide = 1 if us < 256 else 128
    assert us < percentile([us, 10**6], 50) <= us + wide


def test_lateness_beyond_the_last_bucket_and_below_zero_is_counted() -> None:
    late = [-5, 3_000_000]
    assert percentile(late, 50) == 1
    assert percentile(late, 100, max_us=3_000_000) == BUCKETS - FINE_BUCKETS << COARSE_SHIFT


def size_of(frame: bytes) -> tuple[int, int]:
    return wire_size(np.frombuffer(frame, np.uint8))


def plain_frame(length: int) -> bytes:
    return bytes(VNET_HEADER_BYTES + length)


def tcp_frame(payload: int, *, segment: int, options: int = 0, gso_type: int = 1, hint: int = 0) -> bytes:
    header = VNET_HEADER.pack(1, gso_type, hint, segment, 34, 16)
    tcp = bytearray(20 + options)
    tcp[12] = (len(tcp) // 4) << 4
    return header + bytes(34) + bytes(tcp) + bytes(payload)


def test_a_frame_without_segmentation_is_one_packet() -> None:
    assert size_of(plain_frame(1514)) == (1514, 1)


def test_each_segment_has_the_headers_again() -> None:
    # Two full packets and one of 100 bytes of payload, 54 bytes of headers each.
    assert size_of(tcp_frame(2 * 1460 + 100, segment=1460)) == (2 * 1514 + 154, 3)


def test_tcp_options_are_headers_too() -> None:
    assert size_of(tcp_frame(2 * 1448, segment=1448, options=12)) == (2 * 1514, 2)


@pytest.mark.parametrize("hint", [0, 54, 900])
def test_the_header_length_of_the_virtio_header_is_not_trusted(hint: int) -> None:
    assert size_of(tcp_frame(2920, segment=1460, hint=hint)) == (2 * 1514, 2)


def test_ecn_does_not_hide_the_kind_of_segmentation() -> None:
    assert size_of(tcp_frame(2920, segment=1460, gso_type=0x81)) == (2 * 1514, 2)


def test_udp_segments_have_eight_bytes_of_transport_header() -> None:
    header = VNET_HEADER.pack(1, 5, 0, 1200, 34, 6)
    assert size_of(header + bytes(42) + bytes(2400)) == (2 * 1242, 2)


def test_without_a_checksum_to_fill_in_the_hint_is_all_there_is() -> None:
    header = VNET_HEADER.pack(0, 1, 54, 1000, 0, 0)
    assert size_of(header + bytes(54) + bytes(3000)) == (3 * 1054, 3)


def test_the_configuration_survives_its_file() -> None:
    shape = Shape(delay_ms=20, jitter_ms=2, rate_mbps=50, loss_percent=1, queue_packets=40)
    link = CableLink(
        name="a--b", left_interface="l", right_interface="r", left_to_right=shape, right_to_left=Shape()
    )
    config = CableConfig(links=(link,), seed=7, stats_path="/x", parent_pid=1)
    assert msgspec.json.decode(msgspec.json.encode(config), type=CableConfig) == config


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="sede"):
        msgspec.json.decode(b'{"links": [], "sede": 1, "seed": 1, "stats_path": "/x"}', type=CableConfig)


def test_an_impossible_shape_is_refused() -> None:
    wrong = b'{"links": [{"name": "x", "left_interface": "l", "right_interface": "r", "left_to_right":'
    wrong += b' {"delay_ms": -1}, "right_to_left": {}}], "seed": 1, "stats_path": "/x"}'
    with pytest.raises((InvalidInput, msgspec.ValidationError), match="delay of -1"):
        msgspec.json.decode(wrong, type=CableConfig)
