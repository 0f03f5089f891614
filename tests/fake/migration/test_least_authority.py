"""Who may call what, and read what: a test for each line of docs/security.md that needs no namespaces."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from apps.config import SERVER_NAME
from apps.deployment.quic import Credentials
from quicferry.errors import FerryError, MigrationError
from quicferry.events import EventLog
from quicferry.migration import control
from quicferry.migration.container.init import is_from_outside
from quicferry.migration.engines.base import INLINE_BYTES
from quicferry.migration.engines.handoff import HandoffEngine
from quicferry.migration.rpc.channel import CONNECTIONS_AT_ONCE, REQUEST_BYTES, RpcClient, Unary, Unreachable
from quicferry.migration.rpc.credentials import Identity
from quicferry.migration.rpc.messages import (
    ABORT,
    COLLECT_FILES,
    COMMIT,
    MOVE,
    PREPARE_DESTINATION,
    START_SERVICE,
    STATUS,
    STOP_SERVICE,
    AbortMove,
    CollectFiles,
    Commit,
    MoveRequest,
    PrepareDestination,
    StartService,
    StatusQuery,
    StopService,
)
from quicferry.model import Endpoint
from tests.migration_support import World, go


def client(w: World, name: str, edge: str = "edge-2", identity: Identity | None = None) -> RpcClient:
    return RpcClient(identity or w.authority.issue(name), edge, Endpoint("127.0.0.1", w.ports[edge]))


ORCHESTRATOR_ONLY = {"StartService", "StopService", "Move", "CollectFiles"}
EDGES_ONLY = {"Commit"}


@pytest.mark.parametrize("caller", ["orch", "edge-1", "edge-7", "client", "service.edge.test", ""])
def test_who_may_call_what(tmp_path: Path, caller: str) -> None:
    """Every method that has one answer, by every kind of party that the authority could have named."""

    async def story(w: World) -> None:
        calls: list[tuple[Unary[Any, Any], Any]] = [
            (STATUS, StatusQuery()),
            (START_SERVICE, StartService()),
            (STOP_SERVICE, StopService()),
            (COLLECT_FILES, CollectFiles()),
            (PREPARE_DESTINATION, PrepareDestination(order=w.order(3))),
            (ABORT, AbortMove(epoch=3, reason="a test")),
            (COMMIT, Commit(epoch=9)),
            (MOVE, MoveRequest(order=w.order(4))),
        ]
        # an empty name cannot be had from the authority: another is as unknown
        async with client(w, caller or "nobody") as called:
            for method, request in calls:
                heard = caller in ("orch", "edge-1")
                heard &= not (caller == "edge-1" and method.name in ORCHESTRATOR_ONLY)
                heard &= not (caller == "orch" and method.name in EDGES_ONLY)
                error: FerryError | None = None
                try:
                    await called.call(method, request, timeout_s=10)
                except FerryError as failure:
                    error = failure
                refused = error is not None and f"may not call {method.name}" in str(error)
                assert refused is not heard, (caller, method.name, error)
        if caller not in ("orch", "edge-1"):
            assert w.service.log == [], "a stranger has done something"

    go(tmp_path, story)


def test_an_edge_has_no_say_in_the_moves_of_others(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.kill_agent("edge-2")
        peers = {name: Endpoint("127.0.0.1", w.ports["edge-1"]) for name in ("edge-1", "edge-3")}
        await w.start_agent("edge-2", peers=peers)
        await w.agents["edge-2"].destination.prepare(w.order())
        async with client(w, "edge-3") as other:
            for method, request in (
                (ABORT, AbortMove(epoch=1, reason="mischief")),
                (COMMIT, Commit(epoch=1)),
                (PREPARE_DESTINATION, PrepareDestination(order=w.order(2))),
            ):
                with pytest.raises(MigrationError, match="edge-3 has no say in a move away from edge-1"):
                    await other.call(cast("Unary[Any, Any]", method), request, timeout_s=10)
        assert w.agents["edge-2"].destination.machine.step == "ready"

    go(tmp_path, story)


def credentials(folder: Path) -> Credentials:
    return Credentials(cast(Any, SimpleNamespace(credentials=folder)))


def test_the_servers_certificate_calls_nothing(tmp_path: Path) -> None:
    """Not even with the agents' own names checked: it is of another authority."""

    async def story(w: World) -> None:
        made = credentials(tmp_path / "credentials")
        server, edge = made.issue(SERVER_NAME).load(), made.issue("edge-2")
        await w.kill_agent("edge-2")
        await w.start_agent("edge-2", tls=edge)
        own = made.issue("orch").load()
        async with client(w, "orch", identity=own) as called:
            assert (await called.call(STATUS, StatusQuery(), timeout_s=10)).edge == "edge-2"
        trusting = Identity(authority=own.authority, certificate=server.certificate, key=server.key)
        async with client(w, "", identity=trusting) as called:
            with pytest.raises(Unreachable):
                await called.call(STATUS, StatusQuery(), timeout_s=5)

    go(tmp_path, story)


def test_a_box_gets_its_own_key_only(tmp_path: Path) -> None:
    made = credentials(tmp_path / "credentials")
    server = made.issue(SERVER_NAME)
    made.issue("edge-1")
    made.issue("orch")
    folder = Path(server.key).parent
    assert [path.name for path in folder.glob("*.key.pem")] == [f"{SERVER_NAME}.key.pem"]
    assert sorted(path.name for path in folder.parent.glob("*.key.pem")) == [
        "edge-1.key.pem",
        "orch.key.pem",
    ]


def test_a_request_that_is_too_long(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        async with client(w, "orch") as called:
            long = AbortMove(epoch=1, reason="x" * (REQUEST_BYTES + 1))
            with pytest.raises(FerryError):
                await called.call(ABORT, long, timeout_s=20)
            # and the agent is there as before
            assert (await called.call(STATUS, StatusQuery(), timeout_s=10)).edge == "edge-2"

    go(tmp_path, story)


def test_init_hears_nobody_from_within() -> None:
    """Both ends in one PID namespace: the kernel shows the PID of the other, so it is within."""
    one, other = socket.socketpair()
    with one, other:
        assert not is_from_outside(one)


def test_an_agent_collects_no_file_of_the_host(tmp_path: Path) -> None:
    """A server that was taken over puts a link where its events were."""

    async def story(w: World) -> None:
        secret = tmp_path / "secret"
        secret.write_text("of the host")
        events = w.agents["edge-2"].container.path("/run/events.jsonl")
        events.parent.mkdir(parents=True, exist_ok=True)
        events.write_text("{}")
        async with client(w, "orch") as called:
            files = (await called.call(COLLECT_FILES, CollectFiles(), timeout_s=10)).files
            assert files == {"/run/events.jsonl": b"{}"}
            events.unlink()
            events.symlink_to(secret)
            assert (await called.call(COLLECT_FILES, CollectFiles(), timeout_s=10)).files == {}

    go(tmp_path, story)


def test_a_state_file_is_no_way_to_the_hosts_files(tmp_path: Path) -> None:
    """The hand-off engine reads and writes its state below the container's root, through no link."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "run" / "state").mkdir(parents=True)
    secret.write_text("of the host")
    trap = root / "run" / "state" / "handoff-1"
    obeyed: list[str] = []
    state = bytes(range(256)) * (INLINE_BYTES // 256) + b"longer than what goes without a file"

    async def ask(order: Any, timeout_s: float) -> dict[str, Any]:
        obeyed.append(type(order).__name__)
        if isinstance(order, control.Freeze):
            trap.symlink_to(secret)  # instead of the state
            return {"sha256": hashlib.sha256(secret.read_bytes()).hexdigest()}
        assert trap.read_bytes() == state
        return {}

    context = SimpleNamespace(
        container=SimpleNamespace(path=lambda inside: root / inside.lstrip("/")),
        control=SimpleNamespace(ask=ask),
        events=EventLog("edge-1", None, lambda event: None),
        state_dir=Path("/run/state"),
        after_freeze=AsyncMock(),
        before_resume=lambda: None,
        lease_of=lambda order: None,
        inline_bytes=INLINE_BYTES,
    )
    engine = HandoffEngine(cast(Any, context))
    order = World(tmp_path).order(1)

    async def play() -> None:
        with pytest.raises(MigrationError, match="is not followed"):
            async for _ in engine.checkpoint(order):
                pass

        async def chunks() -> AsyncIterator[bytes]:
            yield state

        await engine.restore(order, chunks())

    asyncio.run(play())
    assert obeyed == ["Freeze", "Import"]
    assert secret.read_text() == "of the host"
    assert not trap.exists()


def test_an_agent_bears_connections_of_strangers(tmp_path: Path) -> None:
    """A hundred that say nothing: most are closed at once, and who has one already is heard."""

    async def story(w: World) -> None:
        async with client(w, "orch") as called:
            await called.call(STATUS, StatusQuery(), timeout_s=10)
            strangers = [socket.create_connection(("127.0.0.1", w.ports["edge-2"])) for _ in range(100)]
            try:
                await asyncio.sleep(0.5)
                closed = 0
                for stranger in strangers:
                    stranger.setblocking(False)
                    try:
                        closed += stranger.recv(1) == b""
                    except BlockingIOError:
                        continue
                    except ConnectionResetError:
                        closed += 1
                assert closed >= 100 - CONNECTIONS_AT_ONCE
                assert (await called.call(STATUS, StatusQuery(), timeout_s=10)).edge == "edge-2"
            finally:
                for stranger in strangers:
                    stranger.close()

    go(tmp_path, story)
