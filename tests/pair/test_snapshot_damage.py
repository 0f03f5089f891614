"""What is damaged, cut, of another version or for another configuration is refused as a MigrationError."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import msgspec
import pytest
from aioquic.quic.connection import QuicConnection
from hypothesis import given, settings
from hypothesis import strategies as st

from quicferry.errors import MigrationError
from quicferry.quic import snapshot
from quicferry.quic.snapshot import freeze, pack_bundle, restore_snapshot, take_snapshot, unpack_bundle
from tests.snapshot_support import World, client_configuration, server_configuration


@functools.cache
def moved() -> bytes:
    world = World()
    world.connect()
    world.get(20_000, 1)
    world.flush()
    world.run(lambda: world.delivered > 20)
    assert world.server is not None
    freeze(world.server, world.server_now)
    return take_snapshot(world.server, world.server_now, epoch=3)


def restore(data: bytes, **options: Any) -> QuicConnection:
    return restore_snapshot(
        data, configuration=server_configuration(**options), build=QuicConnection, now=5.0
    )


def test_what_is_whole_is_accepted() -> None:
    assert restore(moved())._handshake_confirmed
    bundle = unpack_bundle(pack_bundle(3, [moved(), moved()], b"state"))
    assert (bundle.epoch, bundle.snapshots, bundle.service) == (3, [moved(), moved()], b"state")


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
@settings(max_examples=300)
def test_any_flipped_bit_is_found(place: int, bit: int) -> None:
    data = bytearray(moved())
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(MigrationError):
        restore(bytes(data))
    bundle = bytearray(pack_bundle(3, [b"a"], b"state"))
    bundle[place % len(bundle)] ^= 1 << bit
    with pytest.raises(MigrationError):
        unpack_bundle(bytes(bundle))


@given(st.integers(min_value=1))
@settings(max_examples=100)
def test_any_cut_and_any_appendix_is_found(amount: int) -> None:
    data = moved()
    with pytest.raises(MigrationError):
        restore(data[: -(amount % len(data)) or None][: len(data) - 1])
    with pytest.raises(MigrationError):
        restore(data + bytes(1 + amount % 1000))


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MigrationError):
        restore(data)
    with pytest.raises(MigrationError):
        unpack_bundle(data)


def reseal(change: Any, version: int = snapshot.FORMAT_VERSION) -> bytes:
    """The snapshot with another content, whole and with the right digest: what a program error makes."""
    start = snapshot._HEADER.size + snapshot._DIGEST_BYTES
    content = msgspec.msgpack.decode(moved()[start:])
    change(content["connection"])
    payload = msgspec.msgpack.encode(content)
    header = snapshot._HEADER.pack(snapshot._SNAPSHOT_MAGIC, version, 0, len(payload))
    return bytes(header + hashlib.sha256(header + payload).digest() + payload)


def test_an_unknown_version_is_refused_with_a_hint() -> None:
    with pytest.raises(MigrationError, match=f"version {snapshot.FORMAT_VERSION + 1}") as caught:
        restore(reseal(lambda _: None, version=snapshot.FORMAT_VERSION + 1))
    assert caught.value.hint is not None


def drop(name: str) -> Any:
    return lambda content: content.pop(name)


def put(value: Any, *path: Any) -> Any:
    def change(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return change


CHANGES: dict[str, Any] = {
    "a field is missing": drop("packet_number"),
    "a field is unknown": put(1, "novelty"),
    "a field has another type": put("many", "packet_number"),
    "a stream is missing": put([1000], "streams_queue"),
    "a stream has no number": put(None, "streams", 0, 6),
    "the cipher is unknown": put(1, "keys", "cipher_suite"),
    "the version of QUIC is unknown": put(0xFF000001, "version"),
    "an event is unknown": put([{"name": "Surprise", "fields": {}}], "events"),
    "an event has other fields": put([{"name": "PingAcknowledged", "fields": {"n": 1}}], "events"),
    "a stream lacks a field": lambda content: content["streams"][0].pop(),
    "a stream has one field more": lambda content: content["streams"][0].append(1),
    "a range is empty": put([[5, 5]], "space", "ack_queue"),
    "there is an extension": put({"version": 1}, "extension"),
    "too few samples": put([], "recovery", "congestion", "rtt_monitor", "samples"),
    "another controller": put("newer", "recovery", "congestion", "type"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_content_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(MigrationError):
        restore(reseal(CHANGES[name]))


@pytest.mark.parametrize(
    "options",
    [
        {"connection_id_length": 10},
        {"idle_timeout": 5.0},
        {"congestion_control_algorithm": "cubic"},
        {"supported_versions": [0x6B3343CF]},
    ],
)
def test_a_configuration_that_breaks_what_the_client_was_told_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MigrationError):
        restore(moved(), **options)


def test_a_client_is_not_built() -> None:
    def build(**_: Any) -> QuicConnection:
        return QuicConnection(configuration=client_configuration())

    with pytest.raises(MigrationError, match="server's end"):
        restore_snapshot(moved(), configuration=server_configuration(), build=build, now=5.0)
