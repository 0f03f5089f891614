"""Capture files that are not whole are told from whole ones, wherever they are cut or changed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from quicferry.capture.damage import damage_of
from quicferry.paths import RUNS

(GOLDEN,) = RUNS.glob("golden/*/captures/client.pcapng")
PCAP = (
    b"\xd4\xc3\xb2\xa1\x02\x00\x04\x00" + bytes(8) + b"\xff\xff\x00\x00\x01\x00\x00\x00"
    + 2 * (bytes(8) + b"\x04\x00\x00\x00\x04\x00\x00\x00" + b"abcd")
)  # fmt: skip


def damaged(tmp_path: Path, content: bytes) -> str | None:
    path = tmp_path / "capture"
    path.write_bytes(content)
    return damage_of(path)


def test_whole_captures_are_whole(tmp_path: Path) -> None:
    assert damage_of(GOLDEN) is None
    assert damaged(tmp_path, PCAP) is None


def test_every_cut_is_noticed_but_between_two_packets(tmp_path: Path) -> None:
    content = GOLDEN.read_bytes()[:2000]
    whole = [size for size in range(1, len(content)) if damaged(tmp_path, content[:size]) is None]
    # 32-bit aligned blocks, each at least of twelve bytes
    assert whole
    assert all(size % 4 == 0 for size in whole)
    assert all(b - a >= 12 for a, b in itertools.pairwise(whole))
    assert [size for size in range(4, len(PCAP)) if damaged(tmp_path, PCAP[:size]) is None] == [24, 44]


def test_a_changed_length_is_noticed_with_its_place(tmp_path: Path) -> None:
    content = bytearray(GOLDEN.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    content[first + 4] ^= 0x08
    assert f"byte {first}" in (damaged(tmp_path, bytes(content)) or "")


@pytest.mark.parametrize("content", [b"", b"not a capture", bytes(100)])
def test_what_is_no_capture(tmp_path: Path, content: bytes) -> None:
    assert damaged(tmp_path, content) is not None


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        damage_of(tmp_path / "none")
