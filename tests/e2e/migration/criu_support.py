"""Two edge hosts with a container and an engine each, for scripts that run in a private root."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.events import Event, EventLog
from quicferry.migration.container.container import Container
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.container.podman_container import PodmanContainer
from quicferry.migration.container.volumes import ContainerFiles, Volume  # noqa: F401 - for scripts
from quicferry.migration.control import ControlClient
from quicferry.migration.engines.base import (
    CopiesAhead,
    EngineContext,
    KeepsSource,
)
from quicferry.migration.engines.registry import BY_CRIU, create, is_by_podman, runs_in_oci
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.channel import Unreachable
from quicferry.model import Endpoint
from quicferry.strategies import Strategy

SERVER = Path(__file__).with_name("criu_server.py")
OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


class NoStandby:
    async def start_standby(self, timeout_s: float) -> None:
        raise AssertionError("this engine needs no standby")


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Sockets made in this block belong to the network namespace of that process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open() as home, Path(f"/proc/{pid}/ns/net").open() as away:
        assert libc.setns(away.fileno(), 0) == 0
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0) == 0


class PageStream:
    """What the agents' stream for pages is, without agents: straight to the engine at the source."""

    method = "serve_pages"

    opened = 0
    broken = False  # for tests: nothing gets through

    def __init__(self, source: Edge) -> None:
        type(self).opened += 1
        self._requests: asyncio.Queue = asyncio.Queue()
        self._answers: asyncio.Queue = asyncio.Queue(4)
        self._serving = asyncio.create_task(self._serve(source))

    async def _serve(self, source: Edge) -> None:
        async def requests():
            while True:
                yield await self._requests.get()

        try:
            serve = getattr(source.engine, self.method)
            await serve(source.served_epoch, requests(), self._answers.put)
        except MigrationError as error:
            await self._answers.put(error)

    async def write(self, message) -> None:
        if self.broken:
            raise Unreachable("the link is cut")
        await self._requests.put(message)

    async def read(self):
        answer = await self._answers.get()
        if self.broken or isinstance(answer, MigrationError):
            self._serving.cancel()
            raise answer if isinstance(answer, MigrationError) else Unreachable("the link is cut")
        return answer

    def cancel(self) -> None:
        self._serving.cancel()


class TunnelStream(PageStream):
    """The same for the bytes of CRIU's page server."""

    method = "serve_tunnel"


class Edge:
    """One edge host: its own network namespace, its container, its engine."""

    def __init__(self, name: str, container: Container) -> None:
        self.name = name
        self.container = container
        self.seen: list[Event] = []

    async def open(self, engine: str) -> None:
        with network_of(self.container.init_pid):
            self.control = await ControlClient.open(Endpoint("127.0.0.1", 4434))
        self.served_epoch = 0  # of the move away from here; pages of it may be fetched
        self.engine = create(
            engine,
            EngineContext(
                edge=self.name,
                container=self.container,
                control=self.control,
                events=EventLog(self.name, sink=self.seen.append),
                state_dir=Path("/run/state"),
                standby=NoStandby(),
                open_pages=lambda edge, timeout_s, detour: PageStream(self.others[edge]),
                open_tunnel=lambda edge, timeout_s: TunnelStream(self.others[edge]),
            ),
        )

    async def ask(self, timeout_s: float = 60.0) -> dict | None:
        """What the service on this host says of itself; None when it is silent."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        class Asker(asyncio.DatagramProtocol):
            def datagram_received(self, data, addr):
                if not answer.done():
                    answer.set_result(data)

        with network_of(self.container.init_pid):
            transport, _ = await loop.create_datagram_endpoint(Asker, remote_addr=("127.0.0.1", 4433))
        deadline = time.monotonic() + timeout_s
        question = os.urandom(8)
        try:
            while not answer.done() and time.monotonic() < deadline:
                transport.sendto(question)
                await asyncio.wait([answer], timeout=0.05)
            return json.loads(answer.result()) if answer.done() else None
        finally:
            transport.close()
            answer.cancel()

    async def start_server(self, *arguments: str) -> int:
        pid = await self.container.start([sys.executable, str(SERVER), *arguments])
        assert await self.ask() is not None, self.container.path(self.container.log_path(pid)).read_text()
        return pid

    def details(self, phase: str) -> list[dict]:
        """What the engine here has said of each phase of that name that it has completed."""
        return [event.detail for event in self.seen if event.name == f"{phase}.complete"]

    def files(self) -> list[str]:
        """What the engine keeps here."""
        return [str(path) for path in self.container.path("/run/state").rglob("*")]

    def running(self) -> list[list[str]]:
        """The programs that run here, as their command lines."""
        return [process.argv for process in self.container.processes()]


@contextlib.asynccontextmanager
async def edges(
    *names: str, engine: str = "criu-cold", given: ContainerFiles | None = None
) -> AsyncIterator[list[Edge]]:
    kind = PodmanContainer if is_by_podman(engine) else OciContainer
    make = (
        functools.partial(kind.make, given=given)
        if runs_in_oci(engine.removesuffix(BY_CRIU))
        else Container.create
    )
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for name in names:
            edge = Edge(name, await stack.enter_async_context(await make(name, enter=OWN_NETWORK)))
            await edge.open(engine)
            stack.callback(edge.control.close)
            made.append(edge)
        for edge in made:
            edge.others = {other.name: other for other in made}
        yield made


def order(epoch: int, source: Edge, destination: Edge, **changes) -> MoveOrder:
    return MoveOrder(
        epoch=epoch,
        strategy=Strategy.SYMMETRIC,
        server_first=False,
        engine=source.engine.name,
        source=source.name,
        destination=destination.name,
        service=Endpoint("10.0.2.2", 4433),
        **changes,
    )


async def prepare(move: MoveOrder, source: Edge, destination: Edge) -> None:
    await source.engine.prepare_source(move)
    await destination.engine.prepare_destination(move)
    source.served_epoch = move.epoch
    if isinstance(source.engine, CopiesAhead):
        await destination.engine.accept_ahead(move, source.engine.copy_ahead(move))


async def carry(move: MoveOrder, source: Edge, destination: Edge) -> dict:
    """A whole move but for the commit."""
    await prepare(move, source, destination)
    return await destination.engine.restore(move, source.engine.checkpoint(move))


async def settle(move: MoveOrder, source: Edge) -> dict:
    """The rest of a move: the source gives up when it is no longer needed."""
    drained = {}
    if isinstance(source.engine, KeepsSource):
        drained = await asyncio.wait_for(source.engine.drain_source(move), 30)
    await source.engine.give_up_source(move)
    return drained


async def whole_move(epoch: int, source: Edge, destination: Edge) -> dict:
    move = order(epoch, source, destination)
    await carry(move, source, destination)
    return await settle(move, source)


async def hops(source: Edge, destination: Edge, moves: int) -> dict:
    """There and back, again and again; see ``criu_scripts.check_hops``."""
    a, b = source, destination
    seen, drained = [await a.ask()], []
    for epoch in range(1, moves + 1):
        drained.append(await whole_move(epoch, a, b))
        seen.append(await b.ask())
        a, b = b, a
    await asyncio.sleep(0.3)  # the destination need not wait until its images are gone
    return {
        "seen": seen,
        "drained": drained,
        "processes": {edge.name: len(edge.running()) for edge in (a, b)},
        "files": b.files(),
        "rounds": a.details("migration.precopy.round") + b.details("migration.precopy.round"),
        "taken": a.details("migration.checkpoint") + b.details("migration.checkpoint"),
        "restored": a.details("migration.restore") + b.details("migration.restore"),
    }


async def broken_off(move: MoveOrder, source: Edge, destination: Edge, chunks: Iterable[bytes]) -> str:
    """A transfer that ends after these chunks, and the way back. What the destination said of it."""

    async def stream():
        for chunk in chunks:
            yield chunk

    try:
        await destination.engine.restore(move, stream())
    except MigrationError as error:
        said = str(error)
    else:
        raise AssertionError("half a transfer made a server")
    await destination.engine.abandon_destination(move, "cut off")
    await source.engine.resume_source(move, "cut off")
    return said


async def end_in_doubt(move: MoveOrder, source: Edge, destination: Edge) -> dict:
    """The rest of a move whose memory may never come: ``error`` says why it has not.

    ``after`` is what the server says then at the destination; ``stopped``: it did not go on at the source.
    """
    pid = source.container.service_pid
    drained = error = None
    try:
        drained = await asyncio.wait_for(source.engine.drain_source(move), move.deadlines.pages_s)
    except (MigrationError, TimeoutError) as failure:
        error = str(failure)
    stopped = source.container.is_stopped(pid)
    await source.engine.give_up_source(move)
    return {"drained": drained, "error": error, "stopped": stopped, "after": await destination.ask(2.0)}
