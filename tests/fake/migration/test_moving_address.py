"""An address that moves with the server is where the server is, however the move ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.datagrams.moving_address import MovingAddress, MovingAddressConfig
from tests.migration_support import Injected, World, world


class NotedAddress(MovingAddress):
    """Notes what is done instead of doing it; ``holders`` are the hosts that have the address."""

    def __init__(self, world: World, edge: str, holders: set[str], said: list[str]) -> None:
        super().__init__(edge, MovingAddressConfig(address="192.0.2.1"), world.agents[edge].events)
        self._at = edge
        self._holders = holders
        self._said = said

    async def take(self) -> None:
        self._holders.add(self._at)
        self._said.append(f"{self._at} takes")

    async def leave(self) -> None:
        self._holders.discard(self._at)
        self._said.append(f"{self._at} leaves")

    def announce(self, number: int) -> None:
        self._said.append(f"{self._at} announces {number}")


PHASES = ["prepare_destination", "notice", "checkpoint", "frozen", "chunk 1", "restore", "restored"]


@pytest.mark.parametrize("phase", [None, *PHASES])
def test_it_is_where_the_server_is(tmp_path: Path, phase: str | None) -> None:
    async def play() -> None:
        async with world(tmp_path) as w:
            holders, said = {"edge-1"}, list[str]()
            for edge, agent in w.agents.items():
                agent.host.address = NotedAddress(w, edge, holders, said)

            def trouble(now: str) -> None:
                if now == phase:
                    raise Injected(f"no {now}")

            w.trouble = trouble
            outcome = await w.agents["edge-1"].source.move(w.order())
            where = "edge-2" if phase is None else "edge-1"
            assert outcome.serves_at == where, outcome
            async with asyncio.timeout(10):
                while holders != {where}:  # noqa: ASYNC110 - the destination clears up in the background
                    await asyncio.sleep(0.01)
            if phase is None:
                # the new host has it before the old one lets go: the restored sockets need it
                assert said == ["edge-2 takes", "edge-1 leaves"]
            elif "edge-1 leaves" in said:
                # and the routers hear of it, with a number above whatever the destination said
                assert "edge-1 announces 3" in said
                assert said.index("edge-1 leaves") < said.index("edge-1 takes")

    asyncio.run(asyncio.wait_for(play(), 40))


def test_a_host_that_cannot_take_it_is_no_destination(tmp_path: Path) -> None:
    async def play() -> None:
        async with world(tmp_path) as w:
            holders, said = {"edge-1"}, list[str]()
            for edge, agent in w.agents.items():
                agent.host.address = NotedAddress(w, edge, holders, said)

            async def refuse() -> None:
                raise MigrationError("192.0.2.1 at edge-2: no room")

            w.agents["edge-2"].host.address.take = refuse  # type: ignore[method-assign,union-attr] # one host's
            outcome = await w.agents["edge-1"].source.move(w.order())
            assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
            assert "no room" in str(outcome.error)
            assert holders == {"edge-1"}

    asyncio.run(asyncio.wait_for(play(), 40))
