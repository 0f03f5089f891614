"""The resolver against a name server that is steered: it keeps what it may, and asks when it must."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from baselines.dns.config import ResolverConfig
from baselines.dns.resolver import TIMEOUTS_S, FixedAddress, NameNotFound, Resolver
from quicferry.events import Event, EventLog
from tests.baseline_support import SteeredNames

OLD, NEW = "127.0.0.1", "127.0.0.2"


class Scene:
    def __init__(self, names: SteeredNames, **settings: object) -> None:
        self.names = names
        self.events: list[Event] = []
        self.changes = 0
        config = msgspec.structs.replace(ResolverConfig(server=names.endpoint, warm=False), **settings)
        self.resolver = Resolver(config, EventLog("client", sink=self.events.append), self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def seen(self, name: str) -> int:
        return sum(event.name == name for event in self.events)


def play(action: Callable[[Scene], Awaitable[None]], ttl_s: int, **settings: object) -> None:
    async def run() -> None:
        names = await SteeredNames(OLD, ttl_s).open()
        it = Scene(names, **settings)
        try:
            await action(it)
        finally:
            await it.resolver.close()
            names.close()

    asyncio.run(run())


def test_a_record_is_kept_for_its_ttl_and_no_longer() -> None:
    async def action(it: Scene) -> None:
        assert await it.resolver.resolve() == OLD
        assert 0 < it.resolver.seconds_left() <= 1.0
        it.names.address = NEW
        await asyncio.sleep(0.1)
        assert await it.resolver.resolve() == OLD
        assert it.names.spec == 1
        await asyncio.sleep(0.95)
        assert await it.resolver.resolve() == NEW
        assert (it.names.spec, it.changes) == (2, 1)
        cached = [e.detail["cached"] for e in it.events if e.name == "client.resolved"]
        assert cached == [False, True, False]

    play(action, 1)


def test_a_ttl_of_zero_is_never_kept() -> None:
    async def action(it: Scene) -> None:
        for address in (OLD, NEW):
            it.names.address = address
            assert await it.resolver.resolve() == address
            assert it.resolver.seconds_left() == 0.0
        assert it.names.spec == 2

    play(action, 0, warm=True)


def test_a_warm_cache_begins_in_the_middle_of_a_life_and_renews_itself() -> None:
    async def action(it: Scene) -> None:
        await it.resolver.resolve()
        assert 0 < it.resolver.seconds_left() <= 0.25
        it.names.address = NEW
        await asyncio.sleep(0.4)
        assert it.resolver.address == NEW  # nobody asked us: others did
        assert it.names.spec == 2
        assert 0.25 < it.resolver.seconds_left() <= 1.0  # the full life now
        assert it.changes == 1

    play(action, 1, warm=True, age_share=0.75)


def test_a_question_that_is_lost_is_asked_again() -> None:
    async def action(it: Scene) -> None:
        it.names.deaf = 1
        begun = asyncio.get_running_loop().time()
        assert await it.resolver.resolve() == OLD
        assert asyncio.get_running_loop().time() - begun > TIMEOUTS_S[0] * 0.9
        assert [e.detail["attempt"] for e in it.events if e.name == "client.dns.query"] == [1, 2]

    play(action, 1)


def test_a_name_server_that_is_silent_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.dns.resolver.TIMEOUTS_S", (0.02, 0.02))

    async def action(it: Scene) -> None:
        it.names.deaf = 100
        with pytest.raises(NameNotFound, match="did not answer 2 questions"):
            await it.resolver.resolve()

    play(action, 1)


def test_many_who_ask_at_once_share_one_question() -> None:
    async def action(it: Scene) -> None:
        addresses = await asyncio.gather(*(it.resolver.resolve() for _ in range(6)))
        assert addresses == [OLD] * 6
        assert it.names.spec == 1

    play(action, 1)


def test_a_fixed_address_is_always_the_same() -> None:
    fixed = FixedAddress("10.0.1.2")
    assert asyncio.run(fixed.resolve()) == "10.0.1.2"
    assert fixed.seconds_left() == 0.0
