"""A client of qh3 that asks for two documents by HTTP/3, for tools/make_captures.py."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

from qh3.asyncio import QuicConnectionProtocol, connect
from qh3.h3.connection import H3_ALPN, H3Connection
from qh3.h3.events import DataReceived
from qh3.quic.configuration import QuicConfiguration

PORT = 4433


class Http(QuicConnectionProtocol):  # type: ignore[misc] # qh3 is of another environment
    """Counts the answers that are complete."""

    http: Any = None
    answered = 0

    def quic_event_received(self, event: Any) -> None:
        self.http = self.http or H3Connection(self._quic)
        for found in self.http.handle_event(event):
            self.answered += isinstance(found, DataReceived) and found.stream_ended

    def ask(self, path: str) -> None:
        """Send a request."""
        self.http = self.http or H3Connection(self._quic)
        stream = self._quic.get_next_available_stream_id()
        words = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        self.http.send_headers(stream, [(k.encode(), v.encode()) for k, v in words.items()], end_stream=True)
        self.transmit()


async def main() -> None:
    """Ask for two documents."""
    settings = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    with Path(os.environ["SSLKEYLOGFILE"]).open("a") as log:  # noqa: ASYNC230 - before anything runs
        settings.secrets_log_file = log
        async with connect("127.0.0.1", PORT, configuration=settings, create_protocol=Http) as client:
            client.ask("/small")
            client.ask("/large")
            for _ in range(300):
                await asyncio.sleep(0.01)
                if client.answered == 2:
                    break


asyncio.run(main())
