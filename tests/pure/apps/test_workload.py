"""The application protocol: contents, the movable hash, headers in pieces."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.workload import BLOCK_BYTES, HEADER_LIMIT_BYTES, Ask, Chain, HeaderReader, chain_of, content, header


@given(st.integers(0, 5), st.integers(0, 3 * BLOCK_BYTES), st.integers(0, 2 * BLOCK_BYTES))
def test_content_is_the_same_however_it_is_cut(seed: int, offset: int, length: int) -> None:
    whole = content(seed, 0, offset + length)
    assert content(seed, offset, length) == whole[offset:]


def test_content_differs_by_seed_and_block() -> None:
    assert content(1, 0, 64) != content(2, 0, 64)
    assert content(1, 0, 64) != content(1, BLOCK_BYTES, 64)


@given(st.lists(st.binary(max_size=50_000), max_size=6), st.integers(0, 5))
def test_chain_goes_on_after_it_was_moved(parts: list[bytes], moved_after: int) -> None:
    straight, moved = Chain(), Chain()
    straight.update(b"".join(parts))
    for index, part in enumerate(parts):
        if index == moved_after:
            moved = msgspec.msgpack.decode(msgspec.msgpack.encode(moved), type=Chain)
        moved.update(part)
    assert moved.hexdigest() == straight.hexdigest()
    assert moved.size == sum(len(part) for part in parts)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_chain_of_a_made_body(size: int) -> None:
    chain = Chain()
    chain.update(content(7, 0, size))
    assert chain.hexdigest() == chain_of(7, size)


@given(st.binary(max_size=100), st.lists(st.integers(1, 40), max_size=8))
def test_header_is_found_however_the_stream_is_cut(body: bytes, cuts: list[int]) -> None:
    ask = Ask(op="upload", session="s", size=len(body))
    stream = header(ask) + body
    reader, lines, got = HeaderReader(), [], b""
    start = 0
    for cut in [*cuts, len(stream)]:
        line, rest = reader.feed(stream[start : start + cut])
        start += cut
        got += rest
        if line is not None:
            lines.append(line)
    assert [msgspec.json.decode(line, type=Ask) for line in lines] == [ask]
    assert got == body


def test_a_stream_without_header_is_refused() -> None:
    with pytest.raises(ValueError, match="header"):
        HeaderReader().feed(b"x" * (HEADER_LIMIT_BYTES + 1))
