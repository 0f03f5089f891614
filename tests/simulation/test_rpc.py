"""The project's RPC code on simulated paths: what gRPC does to calls when links and processes fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.rpc import channel
from quicferry.migration.rpc.channel import Duplex, RpcClient, RpcServer, TooLate, Unary, Unreachable
from quicferry.model import Endpoint
from simulation.clock import START_S, VirtualLoop
from simulation.ownership.adapter import NamedTls
from simulation.paths import Paths
from simulation.process import Process
from simulation.rpc import Network

ECHO = Unary("Echo", str, str)
COUNT: Duplex[str, str] = Duplex("Count", str, str)
PORT = 4437


class Two:
    """Two processes, a path between them, a server at one."""

    def __init__(self, latency_s: float = 0.005) -> None:
        self.loop = VirtualLoop()
        self.paths = Paths(self.loop)
        self.path = self.paths.add("edge", latency_s)
        self.network = Network(self.loop, self.paths, lambda host, address: (self.path, "b"))
        self.a = Process(self.loop, "caller", "a")
        self.b = Process(self.loop, "server", "b")
        self.cancelled = 0

    async def serve(self) -> None:
        server = RpcServer(NamedTls.of("b").load(), Endpoint("0.0.0.0", PORT))

        async def echo(request: str, caller: str) -> str:
            if request == "refuse":
                raise MigrationError("not here", hint="ask elsewhere")
            if request == "slow":
                try:
                    await asyncio.sleep(5)
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            return f"{caller} said {request}"

        async def count(
            requests: AsyncIterator[str], send: Callable[[str], Awaitable[None]], caller: str
        ) -> None:
            async for request in requests:
                await send(request.upper())

        server.unary(ECHO, echo, ["a"])
        server.duplex(COUNT, count, ["a"])
        await server.start()

    def run(self, work: Callable[[RpcClient], Awaitable[Any]], *, serving: bool = True) -> Any:
        async def call() -> Any:
            client = RpcClient(NamedTls.of("a").load(), "b", Endpoint("10.1.0.2", PORT))
            return await work(client)

        if serving:
            self.loop.run_until_complete(self.b.spawn(self.serve()))
        return self.loop.run_until_complete(self.a.spawn(call()))


@contextmanager
def two(latency_s: float = 0.005) -> Iterator[Two]:
    made = Two(latency_s)
    with mock.patch.object(channel, "grpc", made.network.module()):
        yield made
        for process in (made.a, made.b):
            process.bury()
        for task in asyncio.all_tasks(made.loop):
            task.cancel()
        made.loop.run_until_complete(asyncio.sleep(1))
        made.loop.close()


def test_a_call_takes_its_round_trips_and_knows_its_caller() -> None:
    with two() as t:
        answer = t.run(lambda client: client.call(ECHO, "hello", timeout_s=1))
        assert answer == "a said hello"
        assert t.loop.time() - START_S == pytest.approx(4 * 0.010, abs=0.001)  # three to connect, one to ask


def test_an_error_arrives_as_it_was_raised() -> None:
    with two() as t, pytest.raises(MigrationError, match="not here") as caught:
        t.run(lambda client: client.call(ECHO, "refuse", timeout_s=1))
    assert caught.value.hint == "ask elsewhere"


def test_a_deadline_ends_the_call_at_both_ends() -> None:
    with two() as t:
        with pytest.raises(TooLate):
            t.run(lambda client: client.call(ECHO, "slow", timeout_s=1))
        t.loop.run_until_complete(asyncio.sleep(0.1))
        assert t.cancelled == 1


def test_nobody_listens_is_told_at_once_unless_one_waits() -> None:
    with two() as t:
        with pytest.raises(Unreachable):
            t.run(lambda client: client.call(ECHO, "hello", timeout_s=5), serving=False)
        assert t.loop.time() - START_S < 0.1
        t.loop.physics(2.0, lambda: t.b.spawn(t.serve()))
        assert t.run(lambda c: c.call(ECHO, "hi", timeout_s=5, wait=True), serving=False) == "a said hi"
        assert 2.0 < t.loop.time() - START_S < 3.0


def test_a_short_cut_delays_and_a_long_one_breaks() -> None:
    for seconds, breaks in ((1.0, False), (6.0, True)):
        with two() as t:

            async def work(client: RpcClient, t: Two = t, seconds: float = seconds) -> str:
                await client.call(ECHO, "first", timeout_s=1)
                t.paths.cut("edge", ["a", "b"])
                t.loop.physics(seconds, t.paths.mend, "edge", ["a", "b"])
                return await client.call(ECHO, "second", timeout_s=20)

            if breaks:
                with pytest.raises(Unreachable):
                    t.run(work)
                assert t.loop.time() - START_S == pytest.approx(4.04, abs=0.1)
            else:
                assert t.run(work) == "a said second"


def test_a_killed_server_is_noticed_and_a_stopped_one_by_keepalive() -> None:
    for how, until_s in (("kill", 0.2), ("stop", 4.2)):
        with two() as t:

            async def work(client: RpcClient, t: Two = t, how: str = how) -> None:
                await client.call(ECHO, "first", timeout_s=1)
                getattr(t.b, how)()
                if how == "stop":
                    t.paths.stopped(t.b)
                await client.call(ECHO, "second", timeout_s=20)

            with pytest.raises(Unreachable):
                t.run(work)
            assert t.loop.time() - START_S < until_s


def test_a_connection_takes_three_round_trips_in_one_attempt_or_fails() -> None:
    with two(latency_s=3.5) as t, pytest.raises(Unreachable):  # RTT 7 s: 21 s
        t.run(lambda client: client.ready(60.0))
    for latency_s in (0.07, 0.1, 2.0):  # RTT up to 4 s
        with two(latency_s=latency_s) as t:
            t.run(lambda client: client.ready(15.0))
            assert t.loop.time() - START_S == pytest.approx(6 * latency_s, abs=0.01)


def test_a_stream_carries_both_ways_in_order() -> None:
    with two() as t:

        async def work(client: RpcClient) -> list[str]:
            call = client.open(COUNT, timeout_s=5)
            for word in ("one", "two", "three"):
                await call.write(word)
            answers = [await call.read() for _ in range(3)]
            await call.done_writing()
            with pytest.raises(Unreachable):
                await call.read()
            return answers

        assert t.run(work) == ["ONE", "TWO", "THREE"]
