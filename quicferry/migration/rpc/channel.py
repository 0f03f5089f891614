"""Remote procedure calls between agents and orchestrator: grpc.aio carries, msgspec encodes.

gRPC brings what one would otherwise write by hand, badly: framing, flow control, deadlines that
travel with the call, keepalive, TLS. Its generic handlers take any serializer, so there is no
protobuf compiler: messages are msgspec structs in MessagePack. See docs/adr/0003.

Errors: a ``FerryError`` raised by a handler arrives at the caller as the same kind of error with
its hint. Trouble of the connection itself arrives as ``Unreachable`` or ``TooLate``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import msgspec

from quicferry.errors import UNDECODABLE, FencedError, FerryError, InvalidInput, MigrationError, Unsupported
from quicferry.migration.rpc.credentials import Identity
from quicferry.model import Endpoint

Q = TypeVar("Q")  # request
A = TypeVar("A")  # answer

SERVICE = "quicferry.Agent"
HINT_KEY = "quicferry-hint-bin"  # "-bin": gRPC then allows any bytes
KIND_KEY = "quicferry-error"

KEEPALIVE_MS = 2_000
KEEPALIVE_RTTS = 3
CALL_RTTS = 5  # TCP, TLS and HTTP/2 of a new connection take up to four, the call one
#: One attempt to connect may take so long: TCP, TLS and HTTP/2 at a round trip of 4 s. One to a host that
#: is down, or has no agent, fails at once, and is tried again within RECONNECT_MS.
CONNECT_MS = 20_000
RECONNECT_MS = 500
#: What a party may send in one message. An agent's largest are files that it was asked to collect.
REQUEST_BYTES = 8 << 20
ANSWER_BYTES = 256 << 20
STREAMS_PER_CONNECTION = 64
CONNECTIONS_AT_ONCE = 64  # also of those who have not said who they are; a party has two, one per way
CALLS_AT_ONCE = 256  # of all callers together


@functools.cache
def _keep_poller() -> None:
    """Let gRPC's poller live as long as this process, once it is needed.

    It lives from the first object to the last; when a garbage collection takes the last one, it waits for a
    thread that may never wake (seen: for ever). One reference of our own keeps it alive. Not taken when this
    module is loaded: the poller's threads and descriptors must not be there when a program is forked.
    """
    grpc.aio.init_grpc_aio()


_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", -1),  # the receiving end says what is too long
    ("grpc.so_reuseport", 0),  # two agents on one port are a mistake to be told
    ("grpc.enable_http_proxy", 0),  # an emulated host must not heed the machine's proxy settings
    ("grpc.http2.lookahead_bytes", 8 << 20),  # the window: 8 MiB is 64 ms at 1 Gbit/s
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
]
_CLIENT_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", ANSWER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),  # in spite of its name, the time for one attempt
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
    ("grpc.service_config_disable_resolution", 1),  # else every channel asks DNS for a TXT record
]
_SERVER_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", REQUEST_BYTES),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_AT_ONCE),
    ("grpc.server_handshake_timeout_ms", CONNECT_MS),  # who does not say who it is, is not kept
]


def _common(rtt_s: float) -> list[tuple[str, int | str]]:
    """Options of both ends: a connection is dead when a ping has no answer for longer than its way takes.

    The same time is the connection's TCP_USER_TIMEOUT.
    """
    silent_ms = max(KEEPALIVE_MS, round(KEEPALIVE_RTTS * rtt_s * 1000))
    return [*_OPTIONS, ("grpc.keepalive_timeout_ms", silent_ms)]


class Unreachable(MigrationError):
    """The other party cannot be reached, or the connection broke: what it did is not known."""


class TooLate(MigrationError):
    """The other party did not answer in time: what it did is not known."""


_KINDS: dict[str, type[FerryError]] = {
    kind.__name__: kind for kind in (MigrationError, InvalidInput, Unsupported, FencedError)
}


@dataclass(frozen=True)
class Unary(Generic[Q, A]):
    """A method with one request and one answer."""

    name: str
    request: type[Q]
    answer: type[A]


@dataclass(frozen=True)
class Duplex(Generic[Q, A]):
    """A method with a stream either way. ``request`` and ``answer`` may be unions of tagged structs."""

    name: str
    request: Any
    answer: Any


UnaryHandler = Callable[[Any, str], Awaitable[Any]]
DuplexHandler = Callable[[AsyncIterator[Any], Callable[[Any], Awaitable[None]], str], Awaitable[None]]

_encode = msgspec.msgpack.Encoder().encode


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """A decoder from MessagePack for that type; it raises ``msgspec.DecodeError`` and nothing else."""
    plain = msgspec.msgpack.Decoder(kind)

    def decode(data: bytes) -> Any:
        try:
            return plain.decode(data)
        except UNDECODABLE as error:
            raise msgspec.DecodeError(str(error)) from error

    return decode


def address_of(endpoint: Endpoint) -> str:
    """An endpoint in gRPC's notation: the address itself, so that no resolver is asked."""
    return f"{'ipv6' if ':' in endpoint.host else 'ipv4'}:{endpoint}"


def _caller(context: Any) -> str:
    """The name in the caller's certificate."""
    names = context.auth_context().get("x509_common_name", [b""])
    return bytes(names[0]).decode()


def _permitted(caller: str, allowed: frozenset[str], method: str) -> str:
    """The caller's name, if it may call that method. Raises ``MigrationError``."""
    if caller not in allowed:
        raise MigrationError(
            f"{caller or 'a caller without a name'} may not call {method}",
            hint="an agent hears its orchestrator and the agents that its configuration names",
        )
    return caller


async def _refuse(context: Any, error: Exception) -> None:
    """Tell the caller of an error: kind and hint travel as trailing metadata."""
    hint = getattr(error, "hint", None) or ""
    known = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS), None)
    metadata = [(HINT_KEY, hint.encode())]
    if known is not None:
        metadata.append((KIND_KEY, known))
    text = str(error) if isinstance(error, FerryError) else f"{type(error).__name__}: {error}"
    code = grpc.StatusCode.FAILED_PRECONDITION if known is not None else grpc.StatusCode.INTERNAL
    await context.abort(code, text, tuple(metadata))


def error_from(error: grpc.aio.AioRpcError, method: str, peer: str) -> FerryError:
    """The error of ours for a failed call, the other party's own kind where it named one."""
    metadata = dict(error.trailing_metadata() or ())
    hint = metadata.get(HINT_KEY, b"")
    text = hint.decode() if isinstance(hint, bytes) else str(hint)
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TooLate(
            f"{peer} did not answer {method} in time", hint=text or "give the step a longer deadline"
        )
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Unreachable(
            f"{peer} cannot be reached for {method}: {details}",
            hint=text or "is its agent running, and does the link to it work?",
        )
    kind = _KINDS.get(str(metadata.get(KIND_KEY, "")), MigrationError)
    return kind(f"{peer}: {details}", hint=text or None)


class RpcServer:
    """The end that is called. Register the methods, then ``await start()``.

    ``rtt_s``: the longest round trip to a caller, in seconds. Every method names its callers: a party with a
    certificate of the authority that is not among them is refused before its request is looked at further.
    """

    def __init__(self, identity: Identity, listen: Endpoint, rtt_s: float = 0.0) -> None:
        self._identity = identity
        self._rtt_s = rtt_s
        self._listen = listen
        self._handlers: dict[str, Any] = {}
        self._allowed: dict[str, frozenset[str]] = {}  # method -> who may call it
        self._server: Any = None
        self.port = listen.port

    def unary(
        self,
        method: Unary[Q, A],
        handler: Callable[[Q, str], Awaitable[A]],
        callers: Collection[str] | None = None,
    ) -> None:
        """Serve a method; the handler gets the request and the caller's proven name.

        ``callers``: who may call it; None: as it was registered before, at first nobody.
        """
        allowed = self._allow(method.name, callers)

        async def serve(request: Q, context: Any) -> A | None:
            try:
                return await handler(request, _permitted(_caller(context), allowed, method.name))
            except Exception as error:  # every failure is told to the caller
                await _refuse(context, error)
                return None

        self._handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            serve, decoder(method.request), _encode
        )

    def duplex(
        self, method: Duplex[Q, A], handler: DuplexHandler, callers: Collection[str] | None = None
    ) -> None:
        """Serve a method; the handler gets the requests, a way to send answers and the caller's name.

        ``callers``: as in ``unary``.
        """
        allowed = self._allow(method.name, callers)

        async def serve(requests: AsyncIterator[Q], context: Any) -> None:
            async def send(answer: Any) -> None:
                await context.write(answer)

            try:
                await handler(requests, send, _permitted(_caller(context), allowed, method.name))
            except Exception as error:  # every failure is told to the caller
                await _refuse(context, error)

        self._handlers[method.name] = grpc.stream_stream_rpc_method_handler(
            serve, decoder(method.request), _encode
        )

    def _allow(self, method: str, callers: Collection[str] | None) -> frozenset[str]:
        if callers is not None:
            self._allowed[method] = frozenset(callers)
        return self._allowed.get(method, frozenset())

    async def start(self) -> None:
        """Listen. Raises ``MigrationError`` when the address cannot be had."""
        _keep_poller()
        self._server = grpc.aio.server(
            options=[*_common(self._rtt_s), *_SERVER_OPTIONS], maximum_concurrent_rpcs=CALLS_AT_ONCE
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, self._handlers),)
        )
        credentials = grpc.ssl_server_credentials(
            [(self._identity.key, self._identity.certificate)],
            root_certificates=self._identity.authority,
            require_client_auth=True,
        )
        try:
            # without the scheme: add_secure_port takes addresses as they are
            self.port = self._server.add_secure_port(str(self._listen), credentials)
        except RuntimeError as error:
            raise MigrationError(
                f"cannot listen on {self._listen}: {error}", hint="does another agent use the port?"
            ) from error
        await self._server.start()

    async def stop(self, grace_s: float = 0.5) -> None:
        """End all calls and stop listening."""
        if self._server is None:
            return
        try:
            await self._server.stop(grace_s)
        except asyncio.CancelledError:
            # gRPC cancels a future of its own when calls outlive the grace, and may let that out
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise


class DuplexCall(Generic[Q, A]):
    """An open stream, seen from the caller."""

    def __init__(self, call: Any, method: str, peer: str) -> None:
        self._call = call
        self._method = method
        self._peer = peer

    async def write(self, message: Q) -> None:
        """Send one message; waits while the window is full. Raises as ``RpcClient.call`` does."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise error_from(error, self._method, self._peer) from error
        except asyncio.InvalidStateError as error:
            raise await self._reason() from error

    async def done_writing(self) -> None:
        """No more messages will be sent."""
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._reason() from error

    async def read(self) -> A:
        """The next answer. Raises as ``RpcClient.call`` does, also when there are no more."""
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from(error, self._method, self._peer) from error
        if answer is grpc.aio.EOF:
            raise await self._reason()
        return answer  # type: ignore[no-any-return]  # grpc has no types; the deserializer checked it

    async def _reason(self) -> FerryError:
        """The error for a stream that has ended."""
        code = await self._call.code()
        error = grpc.aio.AioRpcError(
            code if code is not grpc.StatusCode.OK else grpc.StatusCode.UNAVAILABLE,
            await self._call.initial_metadata() or grpc.aio.Metadata(),
            await self._call.trailing_metadata() or grpc.aio.Metadata(),
            details=await self._call.details(),
        )
        return error_from(error, self._method, self._peer)

    def cancel(self) -> None:
        """Break the stream off."""
        self._call.cancel()


class RpcClient:
    """A channel to one party, checked against its name. ``connect`` before time matters.

    ``rtt_s``: the round trip of the path to it, in seconds. All times that are given to ``call``, ``open``
    and ``ready`` are besides what the path takes.
    """

    def __init__(self, identity: Identity, peer: str, endpoint: Endpoint, rtt_s: float = 0.0) -> None:
        self.peer = peer
        self.way_s = CALL_RTTS * rtt_s  # what the path may take for one call, a new connection included
        self.endpoint = endpoint
        _keep_poller()
        credentials = grpc.ssl_channel_credentials(
            root_certificates=identity.authority,
            private_key=identity.key,
            certificate_chain=identity.certificate,
        )
        options = [*_common(rtt_s), *_CLIENT_OPTIONS, ("grpc.ssl_target_name_override", peer)]
        self._channel = grpc.aio.secure_channel(address_of(endpoint), credentials, options=options)
        self._calls: dict[str, Any] = {}

    @property
    def endpoints(self) -> list[Endpoint]:
        """All addresses at which the party can be reached."""
        return [self.endpoint]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def connect(self) -> None:
        """Begin to connect: else gRPC does so with the first call. What comes of it, a call will tell."""
        self._channel.get_state(try_to_connect=True)

    async def ready(self, timeout_s: float) -> None:
        """Wait until the connection stands. Raises ``Unreachable``."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s + self.way_s)
        except TimeoutError as error:
            raise Unreachable(
                f"no connection to {self.peer} at {self.endpoint} within {timeout_s + self.way_s:g} s",
                hint="is its agent running, and does the link to it work?",
            ) from error

    async def call(self, method: Unary[Q, A], request: Q, *, timeout_s: float, wait: bool = False) -> A:
        """Call a method and return its answer.

        ``wait``: a connection that is down is waited for, not a failure at once. Raises what the
        other party raised, ``Unreachable``, or ``TooLate``.
        """
        if method.name not in self._calls:
            self._calls[method.name] = self._channel.unary_unary(
                f"/{SERVICE}/{method.name}", _encode, decoder(method.answer)
            )
        try:
            answer = await self._calls[method.name](
                request, timeout=timeout_s + self.way_s, wait_for_ready=wait
            )
        except grpc.aio.AioRpcError as error:
            raise error_from(error, method.name, self.peer) from error
        return answer  # type: ignore[no-any-return]  # grpc has no types; the deserializer checked it

    def open(self, method: Duplex[Q, A], *, timeout_s: float) -> DuplexCall[Q, A]:
        """Open a stream that lives at most ``timeout_s``, and as much longer as its path takes."""
        if method.name not in self._calls:
            self._calls[method.name] = self._channel.stream_stream(
                f"/{SERVICE}/{method.name}", _encode, decoder(method.answer)
            )
        call = self._calls[method.name](timeout=timeout_s + self.way_s)
        return DuplexCall(call, method.name, self.peer)

    async def close(self) -> None:
        """Close the channel; running calls end."""
        await self._channel.close()
