"""What netem is told: its units, its limit, and the bytes of the request."""

from __future__ import annotations

import struct

import pytest

from quicferry.emulation.links import netem
from quicferry.model import Shape


def test_times_are_ticks_of_64_ns() -> None:
    asked = netem.parameters(Shape(delay_ms=20, jitter_ms=2), 1500)
    assert (asked.delay_ticks, asked.jitter_ticks) == (312_500, 31_250)


def test_fractions_of_a_microsecond_are_kept() -> None:
    assert netem.parameters(Shape(delay_ms=0.0005), 1500).delay_ticks == 8


def test_loss_is_a_fraction_of_32_bits() -> None:
    assert netem.parameters(Shape(loss_percent=100), 1500).loss == 2**32 - 1
    assert netem.parameters(Shape(loss_percent=1), 1500).loss == pytest.approx(2**32 / 100, abs=1)


def test_the_limit_is_twice_the_bandwidth_delay_product_not_the_default_of_1000() -> None:
    # 1000 Mbit/s * 50 ms = 6.25 MB = 4167 packets of 1500 bytes.
    assert netem.parameters(Shape(delay_ms=50, rate_mbps=1000), 1500).limit_packets == 8334
    assert netem.parameters(Shape(delay_ms=50), 1500).limit_packets == 100_000
    assert netem.parameters(Shape(delay_ms=50, rate_mbps=1000, queue_packets=7), 1500).limit_packets == 7


def test_the_rate_is_in_bytes_per_second() -> None:
    assert netem.parameters(Shape(rate_mbps=10), 1500).rate_bytes_per_s == 1_250_000
    assert netem.parameters(Shape(delay_ms=1), 1500).rate_bytes_per_s is None


def test_jitter_alone_gets_a_rate_that_keeps_the_order() -> None:
    rate = netem.parameters(Shape(delay_ms=10, jitter_ms=1), 1500).rate_bytes_per_s
    assert rate == netem.ORDER_KEEPING_RATE_BYTES_PER_S
    assert 1500 / rate < 1e-6


def test_the_table_of_the_normal_distribution_is_symmetric_with_deviation_one() -> None:
    table = struct.unpack(f"={netem.DISTRIBUTION_ENTRIES}h", netem.normal_distribution())
    assert sum(table) == 0
    variance = sum((entry / netem.DISTRIBUTION_SCALE) ** 2 for entry in table) / len(table)
    assert variance == pytest.approx(1, abs=0.01)


def attributes(data: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset < len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        found[kind] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def test_the_request_says_all_of_it() -> None:
    shape = Shape(delay_ms=20, jitter_ms=2, rate_mbps=100, loss_percent=1)
    message = netem.request(3, netem.parameters(shape, 1500))
    length, kind, flags = struct.unpack_from("=IHH", message)
    assert (length, kind, flags) == (len(message), 36, 0x505)  # RTM_NEWQDISC; request, ack, create, replace
    family, index, handle, parent = struct.unpack_from("=B3xiII", message, 16)
    assert (family, index, handle, parent) == (0, 3, 0x10000, 0xFFFFFFFF)
    outer = attributes(message[36:])
    assert outer[1] == b"netem\0"
    assert struct.unpack_from("=6I", outer[2]) == (312_500, 334 + 100, 42_949_673, 0, 0, 31_250)
    inner = attributes(outer[2][24:])
    assert struct.unpack("=IiIi", inner[6]) == (12_500_000, 0, 0, 0)
    assert len(inner[2]) == 2 * netem.DISTRIBUTION_ENTRIES


def test_a_rate_beyond_32_bits_is_given_in_64() -> None:
    message = netem.request(3, netem.parameters(Shape(rate_mbps=100_000), 1500))
    inner = attributes(attributes(message[36:])[2][24:])
    assert struct.unpack_from("=I", inner[6]) == (0xFFFFFFFF,)
    assert struct.unpack("=Q", inner[8]) == (12_500_000_000,)


class Options(dict[str, int]):
    """A netem qdisc's options as pyroute2 hands them out."""

    def __init__(self, rate: int | None, **fields: int) -> None:
        super().__init__(fields)
        self._rate = rate

    def get_attr(self, name: str) -> dict[str, int] | None:
        assert name == "TCA_NETEM_RATE"
        return None if self._rate is None else {"rate": self._rate}


def read(shape: Shape) -> dict[str, str | int | float | None]:
    asked = netem.parameters(shape, 1500)
    return netem.from_kernel(
        Options(
            asked.rate_bytes_per_s
            if asked.rate_bytes_per_s is None
            else min(asked.rate_bytes_per_s, 2**32 - 1),
            delay=asked.delay_ticks,
            jitter=asked.jitter_ticks,
            loss=asked.loss,
            limit=asked.limit_packets,
        )
    )


@pytest.mark.parametrize(
    "shape",
    [
        Shape(delay_ms=20),
        Shape(delay_ms=20, jitter_ms=2),
        Shape(delay_ms=0.5, rate_mbps=1000),
        Shape(rate_mbps=100_000),
        Shape(loss_percent=0.1, delay_ms=1),
    ],
)
def test_what_was_asked_reads_back_as_asked(shape: Shape) -> None:
    assert netem.differences(shape, 1500, read(shape)) == []


def test_a_kernel_that_does_something_else_is_found_out() -> None:
    found = netem.differences(Shape(delay_ms=20, rate_mbps=10), 1500, read(Shape(delay_ms=10, rate_mbps=10)))
    assert any(line.startswith("delay_ms: asked 20") for line in found)
    missing = netem.differences(Shape(rate_mbps=10), 1500, read(Shape()))
    assert any(line.startswith("rate_mbps") for line in missing)
