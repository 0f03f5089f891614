"""A server and a client of stock aioquic with HTTP/3, for tools/make_captures.py.

aioquic_ends.py server|client [v2] [retry]
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from aioquic.quic.packet import QuicProtocolVersion

PORT = 4433


class Http(QuicConnectionProtocol):
    """HTTP/3 on both ends: a server answers with as many bytes as the path says."""

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type] # whatever aioquic gives
        self.http: H3Connection | None = None
        self.ended: dict[int, asyncio.Event] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        if self.http is None:
            self.http = H3Connection(self._quic)
        for found in self.http.handle_event(event):
            if isinstance(found, HeadersReceived) and not self._quic.configuration.is_client:
                size = int(dict(found.headers)[b":path"][1:] or b"1")
                self.http.send_headers(found.stream_id, [(b":status", b"200")])
                self.http.send_data(found.stream_id, b"a" * size, end_stream=True)
                self.transmit()
            elif isinstance(found, DataReceived) and found.stream_ended and found.stream_id in self.ended:
                self.ended[found.stream_id].set()

    async def get(self, path: str) -> None:
        """Ask, and wait for the end of the answer."""
        self.http = self.http or H3Connection(self._quic)
        stream = self._quic.get_next_available_stream_id()
        self.ended[stream] = asyncio.Event()
        words = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        self.http.send_headers(stream, [(k.encode(), v.encode()) for k, v in words.items()], end_stream=True)
        self.transmit()
        await asyncio.wait_for(self.ended[stream].wait(), 5)


async def main() -> None:
    """Play one end."""
    settings = QuicConfiguration(is_client=sys.argv[1] == "client", alpn_protocols=H3_ALPN)
    if "v2" in sys.argv:
        settings.supported_versions = [QuicProtocolVersion.VERSION_2, QuicProtocolVersion.VERSION_1]
        settings.original_version = QuicProtocolVersion.VERSION_1
    if sys.argv[1] == "server":
        settings.load_cert_chain(Path("cert.pem"), Path("key.pem"))
        await serve(
            "127.0.0.1", PORT, configuration=settings, create_protocol=Http, retry="retry" in sys.argv
        )
        await asyncio.Event().wait()
    settings.verify_mode = ssl.CERT_NONE
    with Path(os.environ["SSLKEYLOGFILE"]).open("a") as log:  # noqa: ASYNC230 - before anything runs
        settings.secrets_log_file = log
        async with connect("127.0.0.1", PORT, configuration=settings, create_protocol=Http) as client:
            assert isinstance(client, Http)
            await client.ping()
            await client.get("/1000")
            client.request_key_update()
            await client.get("/20000")
            client.change_connection_id()
            await asyncio.gather(*(client.get(f"/{size}") for size in (100, 3000, 1)))


asyncio.run(main())
