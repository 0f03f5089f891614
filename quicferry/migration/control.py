"""Orders from the node agent to the server process on its own host.

One JSON datagram per order and per answer, over UDP on the loopback address of the edge host. UDP,
because a process that is to be checkpointed must not hold a connection to a process that stays.
Orders carry a number: a duplicate is answered again, not carried out again.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.migration.memory.userfault_offer import offer
from quicferry.migration.order import Lease
from quicferry.migration.serving_lease import ServingLease
from quicferry.model import Endpoint
from quicferry.strategies import StrategyName

REPEAT_S = 0.005  # a restored server may not hear the first order: its socket may not exist yet


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """Report the server's state.

    Answer: pid, standby, frozen, connections, requests, committed_epoch, lease.
    """


class Track(msgspec.Struct, frozen=True, kw_only=True, tag="track"):
    """Offer a userfaultfd, so that the kernel can tell what you write (see ``write_tracking``).

    Answer: descriptor, its number in the server's process, where the agent takes it; it is closed there
    with the next order. Obeyed by ``ControlServer`` itself, for whatever server.
    """


class Prepare(msgspec.Struct, frozen=True, kw_only=True, tag="prepare"):
    """Tell the clients, as the strategy wants it. Answered when all have answered or ``deadline_s`` is over.

    Answer: ready, refused, unable, silent (numbers of connections). Without notice it is answered at once.
    """

    epoch: int
    strategy: StrategyName
    server_first: bool
    destination: Endpoint | None
    downtime_ms: float
    deadline_s: float
    service: Endpoint | None = None  # where clients reach the server afterwards, for those told to reconnect


class CopyAhead(msgspec.Struct, frozen=True, kw_only=True, tag="copy-ahead"):
    """Write to ``state_path`` (mode 0600) copies of some connections as they are now, and go on serving.

    Each connection once in a ``round``, but for those that are as an earlier round has copied them; to be
    given again until none is left. Answer: connections, and bytes and sha256 if that is not 0. What is no
    longer than ``inline_bytes`` is in the answer, as that of Freeze is.
    ``last``: Freeze is next; given once, and answered with bytes and sha256 in any case.
    """

    epoch: int
    round: int
    state_path: str
    last: bool = False
    inline_bytes: int = 0


class TakeAhead(msgspec.Struct, frozen=True, kw_only=True, tag="take-ahead"):
    """At the standby: make ready what CopyAhead wrote elsewhere. Answer: nothing. Import is to follow.

    With ``state`` nothing lies in ``state_path``: the copies are in the order.
    """

    epoch: int
    state_path: str
    sha256: str
    state: bytes | None = None


class Freeze(msgspec.Struct, frozen=True, kw_only=True, tag="freeze"):
    """Stop serving: nothing is read or sent until Resume or Abort. Answer: t_ns.

    With ``state_path`` the live connections and the service's state are written there (mode 0600)
    after the fence, and the answer has bytes and sha256 besides. What is no longer than ``inline_bytes`` is
    not written: it is in the answer, as state (base64).
    """

    epoch: int
    strategy: StrategyName
    server_first: bool
    state_path: str | None = None
    inline_bytes: int = 0


class Resume(msgspec.Struct, frozen=True, kw_only=True, tag="resume"):
    """Serve again at ``edge``, where the checkpointed process was restored. Answer: t_ns, when it serves.

    With a ``lease`` only within it, until ``Commit``; refused when it is over. None: for good.
    """

    epoch: int
    edge: str
    strategy: StrategyName
    server_first: bool
    service: Endpoint | None = None  # where clients reach the server from now on
    lease: Lease | None = None


class Import(msgspec.Struct, frozen=True, kw_only=True, tag="import"):
    """Take over what Freeze wrote elsewhere, and serve. Answer: t_ns, connections. ``lease``: see Resume.

    With ``state`` nothing lies in ``state_path``: the state is in the order.
    """

    epoch: int
    edge: str
    strategy: StrategyName
    server_first: bool
    state_path: str
    sha256: str
    state: bytes | None = None
    service: Endpoint | None = None  # where clients reach the server from now on
    lease: Lease | None = None


class Dismiss(msgspec.Struct, frozen=True, kw_only=True, tag="dismiss"):
    """Close the connections that the destination did not get: it serves now. Answer: dismissed.

    Their clients are told to connect again, there.
    """

    epoch: int


class Commit(msgspec.Struct, frozen=True, kw_only=True, tag="commit"):
    """At the destination: the source will not serve again. Answer: nothing.

    The server serves for good, also where its lease is over. One that has taken over live connections may
    use all packet numbers from now on.
    """

    epoch: int


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """Serve again at the source, above the packet-number lease: the move is off. Answer: t_ns."""

    epoch: int
    reason: str


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Write the closing event and end. Answer: the summary of the service."""


class ClientRequest(msgspec.Struct, frozen=True, kw_only=True, tag="client-request"):
    """The other way round, from the server to its agent: a client asks for a move. Answer: reply.

    ``edge`` is where the server was when it asked: a process that was copied in the middle of it must not
    have itself moved on from where it came to.
    """

    edge: str


Order = (
    Status | Track | Prepare | CopyAhead | TakeAhead | Freeze | Resume | Import | Dismiss | Commit | Abort
    | Stop | ClientRequest
)  # fmt: skip


class Envelope(msgspec.Struct, frozen=True):
    """An order with its number, as it is sent."""

    number: int
    order: Order


class Answer(msgspec.Struct, frozen=True):
    """The answer to the order of that number; ``error`` is None when it was carried out."""

    number: int
    error: str | None = None
    detail: dict[str, Any] = {}


Handler = Callable[[Order], Awaitable[dict[str, Any]]]


class ControlHandler(ABC):
    """A server's handling of the orders: one method for each, whatever the server speaks with its clients.

    Each returns the detail of the answer, as the order's own text says, and raises on refusal. The lease
    is handled here, the same for every server; a server asks ``lease.may_send()`` before it sends.
    """

    @functools.cached_property
    def lease(self) -> ServingLease:
        """The right of this process to serve."""
        return ServingLease(self._hold_back, self._go_on_again)

    async def obey(self, order: Order) -> dict[str, Any]:
        """Carry out one order; the ``Handler`` for a ``ControlServer``."""
        match order:
            case Status():
                return {**self._status(), "lease": self.lease.described()}
            case Prepare():
                return await self._prepare(order)
            case CopyAhead():
                return await self._copy_ahead(order)
            case TakeAhead():
                return await self._take_ahead(order)
            case Freeze():
                self.lease.check_kept()
                return self._freeze(order)
            case Resume() | Import():
                # before anything of it can be sent; what is late raises
                self.lease.begin(order.epoch, order.lease)
                try:
                    return self._resume(order) if isinstance(order, Resume) else self._import(order)
                except BaseException:
                    self.lease.forget()
                    raise
            case Dismiss():
                return {"dismissed": self._dismiss()}
            case Commit():
                self.lease.keep(order.epoch)
                return self._commit()
            case Abort():
                return self._abort(order)
            case Stop():
                return self._stop()
            case ClientRequest():
                raise MigrationError("the order client-request is for an agent, not for a server")
            case Track():
                raise MigrationError("the order track is for ControlServer, and did not get there")

    def _hold_back(self) -> None:
        """The lease is over: read and send nothing until ``_go_on_again``.

        A server that does not know how ends: it may not serve, and nobody could tell it to.
        """
        os.kill(os.getpid(), signal.SIGKILL)

    def _go_on_again(self) -> None:
        """Undo ``_hold_back``: the move was committed after all."""
        raise MigrationError("this server does not go on after its lease")

    @abstractmethod
    def _status(self) -> dict[str, Any]:
        """Carry out ``Status``."""

    @abstractmethod
    async def _prepare(self, order: Prepare) -> dict[str, Any]:
        """Carry out ``Prepare``."""

    async def _copy_ahead(self, order: CopyAhead) -> dict[str, Any]:
        """Carry out ``CopyAhead``; a server without connections that can move has nothing to copy."""
        return {"connections": 0}

    async def _take_ahead(self, order: TakeAhead) -> dict[str, Any]:
        """Carry out ``TakeAhead``."""
        raise MigrationError("this server takes nothing in before the freeze")

    @abstractmethod
    def _freeze(self, order: Freeze) -> dict[str, Any]:
        """Carry out ``Freeze``."""

    @abstractmethod
    def _resume(self, order: Resume) -> dict[str, Any]:
        """Carry out ``Resume``."""

    @abstractmethod
    def _import(self, order: Import) -> dict[str, Any]:
        """Carry out ``Import``."""

    @abstractmethod
    def _dismiss(self) -> int:
        """Carry out ``Dismiss``; returns the number of connections that were closed."""

    def _commit(self) -> dict[str, Any]:
        """Nothing, for a server whose connections do not move."""
        return {}

    @abstractmethod
    def _abort(self, order: Abort) -> dict[str, Any]:
        """Carry out ``Abort``."""

    @abstractmethod
    def _stop(self) -> dict[str, Any]:
        """Carry out ``Stop``."""


class ControlServer(asyncio.DatagramProtocol):
    """The server's end: carries out one order after another and remembers the latest answers."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._decoder = msgspec.json.Decoder(Envelope)
        self._answers: dict[int, bytes | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._offered: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # a cast: asyncio's own class is no subclass of DatagramTransport before Python 3.12
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Carry out an order; a duplicate gets the answer of the first."""
        try:
            envelope = self._decoder.decode(data)
        except UNDECODABLE:
            return
        if envelope.number in self._answers:
            known = self._answers[envelope.number]
            if known is not None and self._transport is not None:
                self._transport.sendto(known, addr)
            return
        self._answers[envelope.number] = None
        while len(self._answers) > 64:
            del self._answers[next(iter(self._answers))]
        task = asyncio.get_running_loop().create_task(self._obey(envelope, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _obey(self, envelope: Envelope, addr: tuple[str, int]) -> None:
        """Carry out an order, remember its answer and send it."""
        try:
            if self._offered is not None:  # by now it is taken, and a process that has one cannot be dumped
                os.close(self._offered)
                self._offered = None
            if isinstance(envelope.order, Track):
                self._offered = offer()
                answer = Answer(envelope.number, None, {"descriptor": self._offered})
            else:
                answer = Answer(envelope.number, None, await self._handler(envelope.order))
        except Exception as error:  # the agent must hear of every failure: it decides what follows
            answer = Answer(envelope.number, f"{type(error).__name__}: {error}")
        encoded = msgspec.json.encode(answer)
        self._answers[envelope.number] = encoded
        if self._transport is not None:
            self._transport.sendto(encoded, addr)


class ControlClient(asyncio.DatagramProtocol):
    """The agent's end. ``await ControlClient.open(endpoint)``, then ``await client.ask(order, 1.0)``."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, server: Endpoint) -> ControlClient:
        """A client for the server at that endpoint, which need not run yet."""
        _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            cls, local_addr=("127.0.0.1", 0), remote_addr=(server.host, server.port)
        )
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # a cast: asyncio's own class is no subclass of DatagramTransport before Python 3.12
        self._transport = cast(asyncio.DatagramTransport, transport)

    def error_received(self, exc: Exception) -> None:
        """Ignore that nobody listens yet: the order is repeated until its time is over."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Hand an answer to whoever waits for it; what is no answer is left out."""
        try:
            answer = msgspec.json.decode(data, type=Answer)
        except UNDECODABLE:
            return
        future = self._waiting.get(answer.number)
        if future is not None and not future.done():
            future.set_result(answer)

    async def ask(self, order: Order, timeout_s: float, *, repeat_s: float = REPEAT_S) -> dict[str, Any]:
        """Give an order, again every ``repeat_s`` until it is answered, and return the answer's detail.

        Raises ``MigrationError`` when the server refuses or is silent for ``timeout_s``.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        # drawn, not counted: a server that moved must not take another agent's order for a repeated one
        number = secrets.randbits(53)
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting[number] = future
        payload = msgspec.json.encode(Envelope(number, order))
        deadline = loop.time() + timeout_s
        try:
            while not future.done():
                self._transport.sendto(payload)
                left = deadline - loop.time()
                if left <= 0:
                    raise MigrationError(
                        f"the server does not answer the order {type(order).__name__.lower()}",
                        hint="look at the server's log in the run directory",
                    )
                await asyncio.wait([future], timeout=min(repeat_s, left))
            answer = future.result()
        finally:
            del self._waiting[number]
        if answer.error is not None:
            raise MigrationError(f"the server refused {type(order).__name__.lower()}: {answer.error}")
        return answer.detail

    def close(self) -> None:
        """Close the socket."""
        if self._transport is not None:
            self._transport.close()
