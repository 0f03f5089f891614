"""Forwarder and waiting room in the simulation: the real ones, on sockets that are not."""

from __future__ import annotations

from collections import deque
from typing import Any
from unittest import mock

import pytest

from quicferry.migration.datagrams.forwarder import Forwarder
from quicferry.migration.datagrams.waiting_room import WaitingRoom, readdress
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from simulation.campaign import quiet
from simulation.history import History
from simulation.ownership import play as ownership
from simulation.ownership.raw_sockets import ip_datagram
from simulation.ownership.story import Fault, Move, Story

CLIENT, SERVICE = ("10.0.0.2", 40_000), ("10.0.1.2", 4433)


def played(*faults: Fault, **changes: Any) -> History:
    quiet()
    values: dict[str, Any] = {
        "seed": 5, "moves": [Move(to=2, strategy=Strategy.REACTIVE_EXPLICIT)], "faults": list(faults),
        "interval_s": 0.005, "forwarding": True, **changes,
    }  # fmt: skip
    return ownership.play(Story(**values))


def test_a_datagram_is_one_that_the_waiting_room_takes() -> None:
    datagram = ip_datagram(CLIENT, SERVICE, b"payload")
    fitting = readdress(datagram, Endpoint("10.0.2.2", 4433))
    assert fitting is not None and fitting.endswith(b"payload") and len(fitting) == 20 + 8 + 7


@pytest.mark.parametrize("forwarding", [True, False])
def test_late_datagrams_are_handed_on_where_the_story_wants_it(forwarding: bool) -> None:
    sent: list[Any] = []
    send, take = Forwarder._send, WaitingRoom._inject

    def counted(self: Forwarder, datagram: bytes) -> None:
        sent.append("handed on")
        send(self, datagram)

    def injected(self: WaitingRoom, datagram: bytes) -> bool:
        sent.append("injected")
        return take(self, datagram)

    with mock.patch.object(Forwarder, "_send", counted), mock.patch.object(WaitingRoom, "_inject", injected):
        history = played(forwarding=forwarding)
    assert not history.violations, history.violations
    assert (sent.count("handed on") > 0) is forwarding
    assert (sent.count("injected") > 0) is forwarding


def test_what_is_handed_on_is_lost_where_the_link_between_the_edges_is_cut() -> None:
    cut = Fault(kind="edge-link-cut", anchor="edge-2 server.resumed", at="edge-2", seconds=0.3)
    assert not played(cut, commit_s=5.0).violations


def test_a_room_that_gives_a_datagram_to_nobody_is_no_fault_but_one_that_invents_is() -> None:
    """A lost datagram costs a retransmission; another client's bytes would be decrypted by nobody."""
    with mock.patch.object(WaitingRoom, "_let_in", lambda self: 0):
        assert not played().violations
    doubled: deque[bytes] = deque()
    inject = WaitingRoom._inject

    def twice(self: WaitingRoom, datagram: bytes) -> bool:
        doubled.append(datagram)
        return inject(self, datagram) and inject(self, datagram)

    with mock.patch.object(WaitingRoom, "_inject", twice):
        history = played()
    assert doubled and not history.violations  # QUIC drops what comes twice
