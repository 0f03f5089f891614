"""A client that asks and then wants no answer (STOP_SENDING): the server serves it and others as before."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import HandshakeCompleted, QuicEvent, StreamDataReceived

from apps.config import ALPN, SERVER_NAME
from apps.workload import Ask, header
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.units import now_s
from tests.loopback.apps.test_apps import DEADLINE_S, LoopbackRun, loopback_run


class Caller:
    """A client whose every packet the test decides about."""

    def __init__(self, it: LoopbackRun, link: socket.socket) -> None:
        quic = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], server_name=SERVER_NAME)
        quic.load_verify_locations(it.tls.authority)
        self.connection = MigratableConnection(configuration=quic, extension=ExtensionConfig())
        self._server = (it.addresses[0].host, it.addresses[0].port)
        self._link = link
        link.settimeout(0.05)
        self.connection.connect(self._server, now_s())

    async def until(self, is_so: Callable[[QuicEvent], bool]) -> None:
        """Send and receive until an event is so."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for data, _ in self.connection.datagrams_to_send(now_s()):
                    self._link.sendto(data, self._server)
                try:
                    data = await asyncio.to_thread(self._link.recv, 65536)
                except TimeoutError:
                    self.connection.handle_timer(now_s())
                else:
                    self.connection.receive_datagram(data, self._server, now_s())
                while (event := self.connection.next_event()) is not None:
                    if is_so(event):
                        return

    def ask(self, request: bytes, *, stop: bool = False) -> int:
        """Send a request; with ``stop``, and in the same packet, say that no answer is wanted."""
        stream_id = self.connection.get_next_available_stream_id()
        self.connection.send_stream_data(stream_id, request, True)
        if stop:
            self.connection.stop_stream(stream_id, 7)
        return stream_id


@pytest.mark.parametrize(
    "request_",
    [
        header(Ask(op="get", session="s", number=1)),
        header(Ask(op="get", session="s", number=1, delay_ms=200.0)),
        header(Ask(op="download", session="s", size=4 << 20, seed=1)),
        b"no request\n",
    ],
    ids=["get", "poll", "download", "malformed"],
)
def test_a_server_whose_client_wants_no_answer(tmp_path: Path, request_: bytes) -> None:
    async def play() -> None:
        async with loopback_run(tmp_path) as it:
            await it.server(1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
                caller = Caller(it, link)
                await caller.until(lambda event: isinstance(event, HandshakeCompleted))
                caller.ask(request_, stop=True)
                late = caller.ask(header(Ask(op="get", session="s", number=2, delay_ms=400.0)))
                await caller.until(
                    lambda event: (
                        isinstance(event, StreamDataReceived)
                        and (event.stream_id, event.end_stream) == (late, True)
                    )
                )
            client = await it.client()
            await it.until(client, "client.response.received")
            assert (await it.finish(client)).requests_lost == 0
            assert "Traceback" not in (tmp_path / "edge-1.log").read_text()

    asyncio.run(play())
