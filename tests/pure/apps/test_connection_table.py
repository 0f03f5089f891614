"""What a server does with datagrams that are nobody's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration

from apps.server.connections import ConnectionTable
from apps.udp import Datagram
from quicferry.units import now_s


class Port:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []

    def send(self, data: bytes, receiver: Any) -> None:
        self.sent.append((data, receiver))


def table_of(port: Port) -> ConnectionTable:
    """A server's table that sends through the port, and whose service does nothing."""
    return ConnectionTable(
        port,  # type: ignore[arg-type]
        QuicConfiguration(is_client=False),
        None,
        lambda peer, event: None,
        lambda peer: None,
    )


@pytest.mark.parametrize("accepting", [False, True])
def test_a_connection_that_is_elsewhere_is_met_with_silence(accepting: bool) -> None:
    """A source that has given its connections away, and a standby that has none yet, send no resets."""
    #: wire-format 14.5: MUST NOT send stateless resets
    port = Port()
    table = table_of(port)
    table.accepting = accepting
    strangers = [Datagram(bytes([0x40 | number]) + bytes(60), ("10.0.0.2", 40000), 0) for number in range(8)]
    table.received(strangers)
    assert (port.sent, table.peers) == ([], {})


class Connection:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def receive_datagram(self, *_: Any) -> None:
        self.asked.append("receive")

    def datagrams_to_send(self, _: float) -> list[tuple[bytes, Any]]:
        self.asked.append("send")
        return []

    def next_event(self) -> None:
        return None

    def get_timer(self) -> None:
        return None


@pytest.mark.parametrize("first", ["receive", "send"])
def test_a_held_connection_is_woken_before_anything_else_and_once(first: str) -> None:
    table = table_of(Port())
    connection, cid = Connection(), bytes(8)
    peer = table.adopt(connection, {cid})  # type: ignore[arg-type]
    peer.wake = lambda: connection.asked.append("wake")
    if first == "receive":
        table.deliver([Datagram(b"\x40" + cid + bytes(40), ("10.0.0.2", 40000), 0)])
    table.proceed(peer)
    table.proceed(peer)
    assert connection.asked[:2] == ["wake", first]
    assert connection.asked.count("wake") == 1


def test_no_timer_counts_while_all_is_held_back() -> None:
    table = table_of(Port())

    class Timed(Connection):
        due_s: float | None = None

        def get_timer(self) -> float | None:  # type: ignore[override]
            return self.due_s

        def handle_timer(self, now: float) -> None:
            self.asked.append("timer")
            self.due_s = None

    connection = Timed()

    async def play() -> None:
        peer = table.adopt(connection, {bytes(8)})  # type: ignore[arg-type]
        connection.due_s = now_s() + 0.01
        table.proceed(peer)
        table.hold_back()
        await asyncio.sleep(0.03)
        assert "timer" not in connection.asked
        table.let_go()
        await asyncio.sleep(0.03)
        assert "timer" not in connection.asked  # it is for whoever lets it go to have each go on
        table.proceed(peer)
        await asyncio.sleep(0.03)
        assert connection.asked.count("timer") == 1

    asyncio.run(play())
