"""One of the client's connections: TCP, TLS 1.3 and HTTP/1.1, one exchange at a time.

TLS runs over memory buffers (``ssl.MemoryBIO``), because asyncio's own TLS neither resumes sessions
nor says when the TCP connection was there and when the handshake was over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

import h11

from apps.config import SERVER_NAME
from baselines.tcp_dns.config import PATH, TcpClientConfig
from quicferry.errors import FerryError
from quicferry.events import EventLog
from quicferry.model import Endpoint
from quicferry.units import now_s

TCP_USER_TIMEOUT = 18  # include/uapi/linux/tcp.h; in milliseconds
READ_BYTES = 64 * 1024
WRITE_HIGH_BYTES = 64 * 1024


class ConnectFailed(FerryError):
    """The connection could not be established."""


class CarriedExchange(Protocol):
    """What a connection carries: a request with a body in parts, and its answer."""

    @property
    def ended(self) -> bool:
        """Whether all parts are taken and none will follow."""

    @property
    def due_s(self) -> float:
        """Before that no answer can be missed, on the clock of ``now_s``."""

    def next_part(self) -> bytes | None:
        """The next part of the body that is there, None when there is none for now."""

    def answered(self, data: bytes, end: bool, origin: str) -> None:
        """Bytes of the answer's body have come."""


def client_context(config: TcpClientConfig) -> ssl.SSLContext:
    """TLS 1.3 only, the run's authority only, secrets into the key log."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(config.authority)
    context.set_alpn_protocols(["http/1.1"])
    context.keylog_filename = config.keys
    return context


def reason_of(error: BaseException | None) -> str:
    """Why a connection ended, in a word: what the client can know of it."""
    match error:
        case None:
            return "eof"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError():
            return "reset"
        case TimeoutError():  # also ETIMEDOUT of TCP_USER_TIMEOUT
            return "timeout"
        case OSError() if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return "unreachable"
        case _:
            return f"{type(error).__name__}: {error}"


class HttpConnection(asyncio.Protocol):
    """``await open(address)``, then ``carry(exchange)`` whenever ``exchange`` is None.

    ``on_idle`` is called when an exchange is over, ``on_lost`` once when the connection has ended,
    with the reason and what was open.
    """

    def __init__(
        self,
        config: TcpClientConfig,
        context: ssl.SSLContext,
        events: EventLog,
        on_idle: Callable[[HttpConnection], None],
        on_lost: Callable[[HttpConnection, str], None],
        on_room: Callable[[], None],
    ) -> None:
        self._config = config
        self._context = context
        self._events = events
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._on_room = on_room
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._http = h11.Connection(h11.CLIENT)
        self._timer: asyncio.TimerHandle | None = None
        self._writable = True
        self.exchange: CarriedExchange | None = None
        self.address = ""
        self.origin = ""
        self.usable = False

    async def open(self, address: str, session: ssl.SSLSession | None) -> None:
        """Connect and shake hands. Raises ``ConnectFailed``."""
        self.address = address
        self.origin = str(Endpoint(address, self._config.server.port))
        limit_s = self._config.request_timeout_ms / 1e3
        try:
            await asyncio.wait_for(self._connect(address), limit_s)
            self._tls = self._context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=SERVER_NAME, session=session
            )
            self._shake_hands()
            await asyncio.wait_for(asyncio.shield(self._handshake), limit_s)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            self.abort()
            raise ConnectFailed(reason_of(error)) from error
        self._events.emit(
            "client.tls.established", address=self.origin, resumed=bool(self._tls.session_reused)
        )
        self.usable = True

    async def _connect(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.ExitStack() as stack:
            made = socket.socket(family, socket.SOCK_STREAM, self._config.protocol)
            # asyncio looks addresses up by the socket's protocol, and getaddrinfo knows TCP only
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, 0, made.detach()))
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._config.tcp_user_timeout_ms:
                timeout_ms = round(self._config.tcp_user_timeout_ms)
                sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, timeout_ms)
            self._events.emit("client.tcp.connecting", address=self.origin)
            await loop.sock_connect(sock, (address, self._config.server.port))
            self._events.emit("client.tcp.connected", address=self.origin)
            await loop.create_connection(lambda: self, sock=sock)
            stack.pop_all()  # the transport has it now

    # --- the transport -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            if not self._handshake.done():
                self._shake_hands()
            if self._handshake.done() and not self._handshake.exception():
                self._read()
        except (ssl.SSLError, h11.RemoteProtocolError) as error:
            self._end(reason_of(error))

    def eof_received(self) -> bool:
        return False  # close: a half-closed connection carries no further exchange

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._handshake.done():
            self._handshake.set_exception(exc if exc is not None else ConnectionResetError("closed"))
        self._end(reason_of(exc))

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self.exchange is not None:
            self.feed()
            self._on_room()

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._flush()  # the alert
            if not self._handshake.done():
                self._handshake.set_exception(error)
            return
        else:
            if not self._handshake.done():
                self._handshake.set_result(None)
        self._flush()

    def _read(self) -> None:
        assert self._tls is not None
        while True:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                self._end("eof")
                return
            if not data:
                self._end("eof")
                return
            self._answered(data)
        self._flush()  # a key update wants an answer

    def _flush(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    @property
    def session(self) -> ssl.SSLSession | None:
        """The latest TLS session, for resumption."""
        return self._tls.session if self._tls is not None else None

    # --- exchanges -----------------------------------------------------------------------------

    def carry(self, exchange: CarriedExchange) -> None:
        """Send a request; the answer goes to the exchange."""
        self.exchange = exchange
        first = exchange.next_part() or b""
        headers = [("host", SERVER_NAME)]
        if exchange.ended:
            headers.append(("content-length", str(len(first))))
        else:
            headers.append(("transfer-encoding", "chunked"))
        head = self._http.send(h11.Request(method="POST", target=PATH, headers=headers)) or b""
        self._write(head + self._body(first))
        self._wait_anew()
        self.feed()

    def feed(self) -> None:
        """Send what there is more of the request's body."""
        exchange = self.exchange
        if exchange is None or self._http.our_state is not h11.SEND_BODY:
            return
        while self._writable and (part := exchange.next_part()) is not None:
            self._write(self._body(part))
            self._wait_anew()
        if self._writable and self._http.our_state is h11.SEND_BODY:
            # not a call from here: more of the body comes to this very method
            asyncio.get_running_loop().call_soon(self._on_room)

    def _body(self, part: bytes) -> bytes:
        assert self.exchange is not None
        data = self._http.send(h11.Data(data=part)) or b"" if part else b""
        if self.exchange.ended:
            data += self._http.send(h11.EndOfMessage()) or b""
        return data

    def backlog_bytes(self) -> int:
        """What waits to be taken by the kernel."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _write(self, data: bytes) -> None:
        assert self._tls is not None
        if data:
            self._tls.write(data)
            self._flush()

    def _answered(self, data: bytes) -> None:
        self._http.receive_data(data)
        while True:
            event = self._http.next_event()
            exchange = self.exchange
            if event is h11.NEED_DATA or event is h11.PAUSED or exchange is None:
                return
            self._wait_anew()
            if isinstance(event, h11.Response) and event.status_code != 200:
                raise h11.RemoteProtocolError(f"the server answered {event.status_code}")
            if isinstance(event, h11.Data):
                exchange.answered(bytes(event.data), False, self.origin)
            elif isinstance(event, h11.EndOfMessage):
                self._over(exchange)
            elif isinstance(event, h11.ConnectionClosed):
                self._end("eof")
                return

    def _over(self, exchange: CarriedExchange) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.exchange = None
        self._http.start_next_cycle()
        exchange.answered(b"", True, self.origin)
        self._on_idle(self)

    def _wait_anew(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        limit_s = self._config.request_timeout_ms / 1e3
        if self.exchange is not None:
            limit_s += max(0.0, self.exchange.due_s - now_s())
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._too_long)

    def _too_long(self) -> None:
        self._end("request-timeout")

    # --- the end -------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        was_usable, self.usable = self.usable, False
        if self._transport is not None:
            self._transport.abort()
        if was_usable:
            self._on_lost(self, reason)

    def abort(self) -> None:
        """Give it up at once, without telling anybody."""
        self.usable = False
        if not self._handshake.done():
            self._handshake.cancel()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End it in good order."""
        self.usable = False
        if self._tls is not None and self._transport is not None:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
            self._transport.close()
