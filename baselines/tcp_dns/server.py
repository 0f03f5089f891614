"""The server of TCP with DNS: the service behind HTTP/1.1 and TLS 1.3, moved like any other.

    python -m baselines.tcp_dns.server --config FILE

It obeys the same orders as the QUIC server (``quicferry.migration.control``). Its connections do not
move: CRIU closes them (``--tcp-close``), and a hand-off takes the service's state only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import Any, cast

import h11
import msgspec

from apps.config import ServerConfig
from apps.server.due_answers import DueAnswers
from apps.server.service import ApplicationService
from apps.server.shell import ServerShell, read_state, run_server, write_state
from apps.workload import BACKLOG_BYTES
from baselines.tcp_dns.config import ALPN_HTTP
from quicferry.migration import control

LISTEN_BACKLOG = 128
#: SO_LINGER values (``struct linger``): reset at the end, and the kernel's usual end in good order.
RESET_AT_END = struct.pack("ii", 1, 0)
SEND_TO_THE_END = struct.pack("ii", 0, 0)


class HttpPeer(asyncio.Protocol):
    """One client's connection: requests in, answers out, one after another."""

    def __init__(self, server: TcpServer, key: str) -> None:
        self._server = server
        self.key = key
        self._http = h11.Connection(h11.SERVER)
        self._transport: asyncio.Transport | None = None
        self._stream = 0
        self._writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BACKLOG_BYTES // 2)
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            self._read()
        except (h11.RemoteProtocolError, ValueError, msgspec.DecodeError):
            self._refuse()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.left(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.pump()

    def _read(self) -> None:
        service = self._server.service
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Request):
                self._stream += 1
            elif isinstance(event, h11.Data):
                service.received(self.key, self._stream, bytes(event.data), False, self._send)
            elif isinstance(event, h11.EndOfMessage):
                service.received(self.key, self._stream, b"", True, self._send)
                self._next()
                self.pump()
                self._server.due.arm(service)
            elif isinstance(event, h11.ConnectionClosed):
                self.close()
                return

    def _send(self, stream: int, data: bytes, end: bool) -> None:
        out = b""
        if self._http.our_state is h11.SEND_RESPONSE:
            size = ("content-length", str(len(data))) if end else ("transfer-encoding", "chunked")
            out += self._http.send(h11.Response(status_code=200, headers=[size])) or b""
        if data:
            out += self._http.send(h11.Data(data=data)) or b""
        if end:
            out += self._http.send(h11.EndOfMessage()) or b""
        if self._transport is not None:
            self._transport.write(out)

    def _next(self) -> None:
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    def pump(self) -> None:
        """Send more of a download, as far as the kernel takes it."""
        if self._transport is None or self._transport.is_closing() or self._server.frozen_epoch is not None:
            return
        if not self._server.lease.may_send():
            return
        service = self._server.service
        service.pump(self.key, lambda _: self._backlog_bytes(), self._send)
        self._next()
        if self._writable and any(service.downloads(self.key)):
            asyncio.get_running_loop().call_soon(self.pump)

    def _backlog_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _refuse(self) -> None:
        if self._transport is None:
            return
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=400, headers=[("content-length", "0"), ("connection", "close")])
            self._transport.write(self._http.send(head) or b"")
        self.close()

    def hold(self) -> None:
        """Read nothing until ``go_on``."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again, and send again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.pump()

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection in good order."""
        if self._transport is not None and not self._transport.is_closing():
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SEND_TO_THE_END)
            self._transport.close()


class TcpServer(ServerShell):
    """A server that speaks HTTP/1.1 over TLS 1.3. See ``ServerShell``.

    With ``keeps_connections`` a resumed server goes on with the connections it had.
    """

    protocol = 0  # of the listening socket; 0: TCP
    keeps_connections = False

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._tls.load_cert_chain(config.certificate, config.key)
        self._tls.set_alpn_protocols([ALPN_HTTP])
        self._peers: set[HttpPeer] = set()
        self._accepted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self.due = DueAnswers(lambda: self.frozen_epoch is None and self.lease.may_send(), self._answer_due)

    def _answer_due(self, key: str) -> None:
        peer = next((each for each in self._peers if each.key == key), None)
        if peer is None:
            self.service.forget(key)
        else:
            peer.pump()

    @property
    def connections(self) -> int:
        return len(self._peers)

    def _start_serving(self) -> None:
        self._listen()

    def _end(self) -> None:
        self._accept_no_more()
        for peer in list(self._peers):
            peer.close()

    # --- connections -------------------------------------------------------------------------

    def _listen(self) -> None:
        """Listen, and accept what comes."""
        if self._listener is None:
            listen = self.config.listen
            family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
            self._listener = socket.socket(family, socket.SOCK_STREAM, self.protocol)
            self._listener.setblocking(False)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((listen.host, listen.port))
            self._listener.listen(LISTEN_BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept_no_more(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self.keeps_connections:
                # The kernel would send on what a dismissed or killed server had written, and the
                # client would take that for service. In a deployment the container's network
                # namespace ends with it; here it is the edge host's.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_END)
            self._accepted += 1
            task = asyncio.get_running_loop().create_task(self._shake_hands(connection, str(self._accepted)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, connection: socket.socket, key: str) -> None:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: HttpPeer(self, key), connection, ssl=self._tls
            )
        except (OSError, ssl.SSLError):
            return  # the client has left, or speaks no TLS
        self.events.emit("server.connected", negotiated=False)

    def joined(self, peer: HttpPeer) -> None:
        """A connection is ready for requests."""
        self._peers.add(peer)
        if self.frozen_epoch is not None or self.lease.held:
            peer.hold()

    def left(self, peer: HttpPeer) -> None:
        """A connection has gone."""
        self._peers.discard(peer)
        self.service.forget(peer.key)

    # --- the lease (quicferry.migration.serving_lease) -----------------------------------------

    def _hold_back(self) -> None:
        self._accept_no_more()
        for peer in self._peers:
            peer.hold()
        self.events.emit("server.held", epoch=self.lease.epoch)

    def _go_on_again(self) -> None:
        self.events.emit("server.kept", epoch=self.lease.epoch)
        self._listen()
        for peer in self._peers:
            peer.go_on()
        self.due.arm(self.service)

    # --- orders ------------------------------------------------------------------------------

    async def _prepare(self, order: control.Prepare) -> dict[str, Any]:
        return {"ready": 0, "refused": 0, "unable": 0, "silent": 0}  # HTTP has no message to announce a move

    def _dismiss(self) -> int:
        """Reset all connections, as the end of this process would: the destination serves."""
        peers = list(self._peers)
        for peer in peers:
            peer.abort()
        return len(peers)

    def _hold(self) -> None:
        self._accept_no_more()
        for peer in self._peers:
            peer.hold()

    def _after_freeze(self, order: control.Freeze) -> dict[str, Any]:
        if order.state_path is None:
            return {}
        return {**write_state(order.state_path, self.service.dump()), "connections": 0}

    def _serve_again(self, order: control.Resume) -> dict[str, Any]:
        peers = list(self._peers)
        if not self.keeps_connections:
            # CRIU has closed them (--tcp-close): drop them at once instead of at the next write to each
            for peer in peers:
                peer.abort()
        answer = self._go_on(order.epoch, order.edge)
        if self.keeps_connections:
            for peer in peers:
                peer.go_on()
        return answer

    def _import(self, order: control.Import) -> dict[str, Any]:
        self.service = ApplicationService.load(read_state(order), order.edge, self.config.response_bytes)
        self.service.state.connections.clear()  # connections stay at the source and end there
        self.standby = False
        return self._go_on(order.epoch, order.edge)

    def _go_on(self, epoch: int, edge: str) -> dict[str, Any]:
        self.frozen_epoch = None
        self._listen()
        self.due.arm(self.service)
        resumed = self.events.emit("server.resumed", epoch=epoch, edge=edge, server_first=False)
        return {"t_ns": resumed.t_ns, "connections": 0}

    def _abort(self, order: control.Abort) -> dict[str, Any]:
        self.frozen_epoch = None
        self._listen()
        for peer in list(self._peers):
            peer.go_on()
        self.due.arm(self.service)
        aborted = self.events.emit("server.aborted", epoch=order.epoch, reason=order.reason)
        return {"t_ns": aborted.t_ns}


def main() -> None:
    """Run a TCP server until ordered to stop."""
    run_server(TcpServer, "baselines.tcp_dns.server")


if __name__ == "__main__":
    main()
