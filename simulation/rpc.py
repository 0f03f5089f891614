"""Stands where gRPC is, so that ``quicferry.migration.rpc`` runs unchanged over simulated paths.

It offers what ``rpc/channel.py`` uses of ``grpc`` and ``grpc.aio``, with gRPC's habits as far as a move can
notice them: a call that need not wait fails at once on a channel that could not connect; an attempt takes
three round trips (TCP, TLS) and is given up after ``min_reconnect_backoff_ms``; a deadline or a caller who
goes away cancels the handler at the server; a broken connection ends all calls on it as UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc

from quicferry.migration.rpc.channel import CONNECT_MS
from simulation.clock import VirtualLoop
from simulation.paths import Connection, Path, Paths
from simulation.process import Process, State, current

ROUND_TRIPS = 3  # TCP, TLS, and HTTP/2's settings with the first request
ATTEMPT_S = CONNECT_MS / 1000  # min_reconnect_backoff_ms in rpc/channel.py
STOPPED_POLL_S = 0.05
SYN_AGAIN_S = 1.0  # tcp_syn_linear_timeouts: the first repetitions of a SYN are a second apart
BACKOFF_S = (0.05, 0.5)  # initial_ and max_reconnect_backoff_ms
BACKOFF_FACTOR = 1.6

_EOF = grpc.aio.EOF


class Aborted(Exception):
    """What ``context.abort`` raises to end a handler."""

    def __init__(self, code: Any, details: str, metadata: Any) -> None:
        super().__init__(details)
        self.code, self.details, self.metadata = code, details, metadata


def _error(code: Any, details: str, metadata: Any = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details=details, debug_error_string=None
    )


class Network:
    """What all channels and servers of a world share. ``route`` finds path and host of an address."""

    def __init__(
        self, loop: VirtualLoop, paths: Paths, route: Callable[[str, str], tuple[Path, str]]
    ) -> None:
        self.loop = loop
        self.paths = paths
        self.route = route
        self.servers: dict[tuple[str, int], Server] = {}  # (host, port)

    def module(self) -> Any:
        """What is to stand for the module ``grpc``."""
        return SimpleNamespace(
            StatusCode=grpc.StatusCode,
            ssl_channel_credentials=lambda **files: files["certificate_chain"].decode(),
            ssl_server_credentials=lambda pairs, **_: pairs[0][1].decode(),
            unary_unary_rpc_method_handler=lambda serve, decode, encode: ("unary", serve, decode, encode),
            stream_stream_rpc_method_handler=lambda serve, decode, encode: ("duplex", serve, decode, encode),
            method_handlers_generic_handler=lambda service, handlers: (service, handlers),
            aio=SimpleNamespace(
                AioRpcError=grpc.aio.AioRpcError,
                Metadata=grpc.aio.Metadata,
                EOF=_EOF,
                init_grpc_aio=lambda: None,  # there is no poller here
                server=lambda **_: Server(self),
                secure_channel=lambda address, name, **_: Channel(self, address, name),
            ),
        )


class Server:
    """A listening party."""

    def __init__(self, network: Network) -> None:
        self._network = network
        process = current()
        assert process is not None
        self.process: Process = process
        self.handlers: dict[str, Any] = {}
        self._at: tuple[str, int] | None = None

    def add_generic_rpc_handlers(self, generic: tuple[tuple[str, dict[str, Any]], ...]) -> None:
        for service, handlers in generic:
            self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_secure_port(self, address: str, credentials: str) -> int:
        port = int(address.rpartition(":")[2])
        self._at = (self.process.host, port)
        if self._at in self._network.servers:
            raise RuntimeError(f"{address} is in use")
        return port

    async def start(self) -> None:
        assert self._at is not None
        if not self.process.alive:  # killed in the middle of this callback: what follows has no effect
            return
        self._network.servers[self._at] = self
        self.process.at_death.append(self._gone)

    def _gone(self) -> None:
        if self._at is not None and self._network.servers.get(self._at) is self:
            del self._network.servers[self._at]

    async def stop(self, grace: float) -> None:
        self._gone()
        for connection in self._network.paths.connections:
            if connection.server is self.process:
                connection.break_off()


class Channel:
    """A caller's way to one party."""

    def __init__(self, network: Network, address: str, name: str) -> None:
        self.network = network
        self.name = name
        process = current()
        assert process is not None
        self.process: Process = process
        _, host, port = address.split(":")
        self.path, self.peer_host = network.route(process.host, host)
        self.port = int(port)
        self._connection: Connection | None = None
        self._server: Server | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._failed = False
        self._closed = False
        self._changed = asyncio.Event()

    def get_state(self, try_to_connect: bool = False) -> None:
        if try_to_connect:
            self._start_connecting()

    async def channel_ready(self) -> None:
        while self._connection is None:
            self._start_connecting()
            await self._changed.wait()

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.break_off()

    def _start_connecting(self) -> None:
        alive = self._connecting is not None and not self._connecting.done()
        if self._connection is None and not alive and not self._closed:
            self._connecting = self.process.spawn(self._connect())

    async def _connect(self) -> None:
        backoff_s, most_s = BACKOFF_S
        while not self._closed:
            if await self._attempt():
                self._failed = False
                self._tell()
                return
            self._failed = True
            self._tell()
            await asyncio.sleep(backoff_s)
            backoff_s = min(most_s, backoff_s * BACKOFF_FACTOR)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _reachable(self) -> bool:
        return self.path.carries(self.process.host) and self.path.carries(self.peer_host)

    async def _attempt(self) -> bool:
        rtt_s = 2 * self.path.latency_s
        for _ in range(round(ATTEMPT_S / SYN_AGAIN_S)):
            if self._reachable():
                break
            await asyncio.sleep(SYN_AGAIN_S)
        else:
            return False
        server = self.network.servers.get((self.peer_host, self.port))
        if server is None:
            await asyncio.sleep(rtt_s)  # a reset comes back
            return False
        if ROUND_TRIPS * rtt_s > ATTEMPT_S:
            await asyncio.sleep(ATTEMPT_S)
            return False
        given_up_s = asyncio.get_running_loop().time() + ATTEMPT_S
        while server.process.state is State.STOPPED:
            # its kernel has accepted the connection; TLS goes on when it does
            if asyncio.get_running_loop().time() > given_up_s:
                return False
            await asyncio.sleep(STOPPED_POLL_S)
        await asyncio.sleep(ROUND_TRIPS * rtt_s)
        alive = self.network.servers.get((self.peer_host, self.port)) is server
        if not alive or not self._reachable():
            return False
        self._server = server
        self._connection = self.network.paths.connect(self.path, self.process, server.process)
        self._connection.on_break.append((self.process, self._broken))
        return True

    def _broken(self) -> None:
        self._connection = None
        self._tell()

    async def connected(self, wait: bool) -> tuple[Connection, Server]:
        """A connection that stands; an error at once when it failed and ``wait`` is False."""
        while self._connection is None:
            if self._failed and not wait:
                self._start_connecting()
                raise _error(
                    grpc.StatusCode.UNAVAILABLE, f"failed to connect to {self.peer_host}:{self.port}"
                )
            self._start_connecting()
            await self._changed.wait()
        assert self._server is not None
        return self._connection, self._server

    def unary_unary(self, method: str, encode: Any, decode: Any) -> Callable[..., Any]:
        async def call(request: Any, *, timeout: float, wait_for_ready: bool = False) -> Any:
            run = Call(self, method, encode, decode, timeout, wait_for_ready)
            try:
                await run.write(request)
                await run.done_writing()
                answer = await run.read()
                if answer is _EOF:
                    raise _error(await run.code(), await run.details())
                return answer
            finally:
                run.cancel()

        return call

    def stream_stream(self, method: str, encode: Any, decode: Any) -> Callable[..., Any]:
        def call(*, timeout: float) -> Call:
            return Call(self, method, encode, decode, timeout, wait=False)

        return call


class Call:
    """One call, as its caller sees it; a unary one is a stream of one message each way."""

    def __init__(
        self, channel: Channel, method: str, encode: Any, decode: Any, timeout: float, wait: bool
    ) -> None:
        self._channel = channel
        self._method = method
        self._encode, self._decode = encode, decode
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._status: grpc.aio.AioRpcError | None = None  # None: running
        self._ended = asyncio.Event()
        self._begun = asyncio.Event()
        self._connection: Connection | None = None
        self.handling: Handling | None = None
        loop = channel.network.loop
        self._expiry = loop.call_later(timeout, self._expired)
        self._starting = channel.process.spawn(self._begin(wait))

    async def _begin(self, wait: bool) -> None:
        try:
            connection, server = await self._channel.connected(wait)
        except grpc.aio.AioRpcError as error:
            self._end(error)
            return
        self._connection = connection
        connection.on_break.append((self._channel.process, self._broken))
        self.handling = Handling(self, connection, server, self._method, self._channel.name)
        connection.send(self._channel.process, self.handling.begin)
        self._begun.set()

    def _broken(self) -> None:
        self._end(_error(grpc.StatusCode.UNAVAILABLE, "the connection broke"))

    def _expired(self) -> None:
        self._end(_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
        self._cancel_handler()

    def _end(self, status: grpc.aio.AioRpcError | None) -> None:
        if self._ended.is_set():
            return
        self._status = status
        self._expiry.cancel()
        if self._starting is not asyncio.current_task():
            self._starting.cancel()
        self._ended.set()
        self._begun.set()
        self._answers.put_nowait(_EOF)

    def _cancel_handler(self) -> None:
        if self.handling is not None and self._connection is not None:
            self._connection.send(self._channel.process, self.handling.cancel)

    # --- what comes from the server --------------------------------------------------------------

    def answer(self, data: bytes) -> None:
        """One message has come."""
        if not self._ended.is_set():
            self._answers.put_nowait(data)

    def finished(self, status: grpc.aio.AioRpcError | None) -> None:
        """The handler has ended."""
        self._end(status)

    # --- what grpc.aio offers ---------------------------------------------------------------------

    async def write(self, message: Any) -> None:
        if self._ended.is_set():
            raise asyncio.InvalidStateError("RPC already finished.")
        await self._begun.wait()
        if self._status is not None:
            raise self._status
        assert self._connection is not None and self.handling is not None
        data, handling = self._encode(message), self.handling
        self._connection.send(self._channel.process, lambda: handling.request(data))

    async def done_writing(self) -> None:
        if self._ended.is_set():
            return
        await self._begun.wait()
        if self._connection is not None and self.handling is not None:
            self._connection.send(self._channel.process, self.handling.no_more)

    async def read(self) -> Any:
        item = await self._answers.get()
        if item is _EOF:
            self._answers.put_nowait(_EOF)
            if self._status is not None:
                if self._status.code() is grpc.StatusCode.CANCELLED:
                    raise asyncio.CancelledError
                raise self._status
            return _EOF
        return self._decode(item)

    async def code(self) -> Any:
        await self._ended.wait()
        return grpc.StatusCode.OK if self._status is None else self._status.code()

    async def details(self) -> str:
        await self._ended.wait()
        return "" if self._status is None else str(self._status.details())

    async def initial_metadata(self) -> Any:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        await self._ended.wait()
        return grpc.aio.Metadata() if self._status is None else self._status.trailing_metadata()

    def cancel(self) -> None:
        if not self._ended.is_set():
            self._end(_error(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"))
            self._cancel_handler()


class Handling:
    """The same call at the server. Every method is called in the server's process."""

    def __init__(self, call: Call, connection: Connection, server: Server, method: str, caller: str) -> None:
        self._call = call
        self._connection = connection
        self._server = server
        self._handler = server.handlers[method]
        self._caller = caller
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        connection.on_break.append((server.process, self.cancel))

    def begin(self) -> None:
        """The call has come."""
        self._task = self._server.process.spawn(self._run())

    def request(self, data: bytes) -> None:
        """A message of the caller."""
        self._requests.put_nowait(data)

    def no_more(self) -> None:
        """The caller will send nothing more."""
        self._requests.put_nowait(_EOF)

    def cancel(self) -> None:
        """The caller went away."""
        self._cancelled = True
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def _run(self) -> None:
        kind, serve, decode, encode = self._handler
        status: grpc.aio.AioRpcError | None = None
        context = _Context(self, encode)
        try:
            if kind == "unary":
                answer = await serve(decode(await self._requests.get()), context)
                await context.write(answer)
            else:
                await serve(self._messages(decode), context)
        except Aborted as aborted:
            status = _error(aborted.code, aborted.details, aborted.metadata)
        if not self._cancelled:
            self._connection.send(self._server.process, lambda: self._call.finished(status))

    async def _messages(self, decode: Any) -> AsyncIterator[Any]:
        while (data := await self._requests.get()) is not _EOF:
            yield decode(data)

    def send(self, data: bytes) -> None:
        """One message to the caller."""
        self._connection.send(self._server.process, lambda: self._call.answer(data))

    @property
    def caller(self) -> bytes:
        """The caller's proven name."""
        return self._caller.encode()


class _Context:
    """What a handler is given of its call."""

    def __init__(self, handling: Handling, encode: Any) -> None:
        self._handling = handling
        self._encode = encode

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_common_name": [self._handling.caller]}

    async def write(self, message: Any) -> None:
        self._handling.send(self._encode(message))

    async def abort(self, code: Any, details: str, metadata: Any) -> None:
        raise Aborted(code, details, metadata)
