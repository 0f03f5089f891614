"""The lists of moved, rebuilt and dropped fields against living objects of the installed aioquic."""

from __future__ import annotations

from typing import Any

import pytest
from aioquic import tls

from quicferry.quic._aioquic import state_fields
from tests.snapshot_support import World


def attributes(thing: object) -> set[str]:
    """What the object holds, with the class's defaults that it has not yet replaced."""
    held = set(vars(thing))
    for kind in type(thing).__mro__:
        held |= set(vars(kind).get("__annotations__", {}))
    return held


@pytest.fixture(params=["reno", "cubic"])
def world(request: pytest.FixtureRequest) -> World:
    made = World(loss=0.1, seed=3, server_options={"congestion_control_algorithm": request.param})
    made.connect()
    for number in range(20):
        made.get(5000, number)
    made.flush()
    made.run(lambda: made.delivered > 40)
    return made


def parts(connection: Any) -> list[object]:
    """The connection and all the objects of aioquic in it."""
    stream = next(iter(connection._streams.values()))
    space = connection._spaces[tls.Epoch.ONE_RTT]
    pair = connection._cryptos[tls.Epoch.ONE_RTT]
    return [
        connection,
        connection._host_cids[0],
        connection._local_max_data,
        connection._network_paths[0],
        space,
        space.received_packets,
        space.ack_queue,
        stream,
        stream.receiver,
        stream.sender,
        connection._loss,
        connection._loss._pacer,
        connection._loss._cc,
        connection._loss._cc._rtt_monitor,
        pair,
        pair.send,
        connection.tls,
    ]


def test_every_field_of_every_part_has_a_fate(world: World) -> None:
    seen = set()
    for part in parts(world.server):
        name = type(part).__name__
        seen.add(name)
        assert attributes(part) == set(state_fields.FATES[name]), name
    other = {"RenoCongestionControl", "CubicCongestionControl"} - seen
    assert set(state_fields.FATES) - seen == other
