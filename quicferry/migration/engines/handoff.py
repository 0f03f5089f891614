"""Hand-off: a warm server at the destination takes over connections and service state.

Nothing of the process moves. Copies of the connections cross while the server serves. Then the frozen
server writes what has changed of its live connections, and its state, to a file in its container's ``/run``
(mode 0600: it holds traffic secrets); the agents carry the bytes; the warm server reads them there. The
files live as short as they can.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.migration.container.beneath import open_beneath, read_beneath, remove_beneath
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.order import CHUNK_BYTES, MoveOrder, check_lease
from quicferry.slowness import longer

#: The state of a thousand connections with full buffers is far less; of one that was made to be too long, no
#: more is taken into memory and file.
MAX_STATE_BYTES = 1 << 30
LENGTH = struct.Struct("!Q")  # before each file of copies


class HandoffEngine:
    """The engine ``handoff``; see ``base.Engine`` for what the methods promise."""

    name = "handoff"
    needs_standby = True
    copies_after_notice = True
    gives_at_once = True

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._round = (0, 0)  # the move, and the round of copies

    def _state(self, order: MoveOrder) -> PurePosixPath:
        """The state file of a move: its path inside the container."""
        return PurePosixPath(self._context.state_dir) / f"handoff-{order.epoch}"

    def _remove_state(self, order: MoveOrder) -> None:
        """Remove the state file, if there is one. A link that something has put there is not followed."""
        for inside in (self._state(order), self._ahead(order)):
            remove_beneath(self._context.container.path("/"), inside)

    async def prepare_source(self, order: MoveOrder) -> None:
        """Check that the server serves, and is no standby itself."""
        status = await self._context.control.ask(control.Status(), longer(order.deadlines.notice_s))
        if status.get("standby"):
            raise MigrationError(f"the server at {order.source} only waits for a hand-off itself")

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Start the standby server."""
        await self._context.standby.start_standby(order.deadlines.prepare_s)

    def _ahead(self, order: MoveOrder) -> PurePosixPath:
        """The file of copies: its path inside the container."""
        return PurePosixPath(self._context.state_dir) / f"handoff-{order.epoch}-ahead"

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Have the server write copies of its connections, a few at a time, and yield what it wrote.

        The length of each goes before it.
        """
        copies = self._next_round(order)
        while True:
            answer = await self._context.control.ask(copies, order.deadlines.precopy_s)
            if not answer.get("connections", 0):
                return
            state = self._written(copies, answer)
            framed = LENGTH.pack(len(state)) + state
            for start in range(0, len(framed), CHUNK_BYTES):
                yield framed[start : start + CHUNK_BYTES]

    async def copy_last(self, order: MoveOrder) -> bytes:
        """Have the server copy what has changed since, at most as many connections as are in one answer."""
        copies = self._next_round(order, last=True)
        answer = await self._context.control.ask(copies, order.deadlines.precopy_s)
        return self._written(copies, answer) if "sha256" in answer else b""

    def _next_round(self, order: MoveOrder, *, last: bool = False) -> control.CopyAhead:
        epoch, round_ = self._round
        self._round = order.epoch, round_ + 1 if epoch == order.epoch else 1
        return control.CopyAhead(
            epoch=order.epoch,
            round=self._round[1],
            state_path=str(self._ahead(order)),
            last=last,
            inline_bytes=self._context.inline_bytes,
        )

    def _written(self, order: control.CopyAhead | control.Freeze, answer: dict[str, Any]) -> bytes:
        """What the server wrote, or has in its answer; the file is removed, as it holds traffic secrets.

        Raises ``MigrationError`` when it is not what the server says.
        """
        if "state" in answer:
            state = base64.b64decode(answer["state"])
        else:
            assert order.state_path is not None
            root, inside = self._context.container.path("/"), PurePosixPath(order.state_path)
            state = read_beneath(root, inside, MAX_STATE_BYTES)
            remove_beneath(root, inside)
        if hashlib.sha256(state).hexdigest() != answer.get("sha256"):
            raise MigrationError("the state is not what the server says it wrote")
        return state

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """Have the standby server make the connections of each file, while the next is on its way."""
        waiting = bytearray()
        async for chunk in chunks:
            waiting += chunk
            while len(waiting) >= LENGTH.size:
                (size_bytes,) = LENGTH.unpack_from(waiting)
                if size_bytes > MAX_STATE_BYTES:
                    raise MigrationError(f"the copies are longer than {MAX_STATE_BYTES} bytes")
                end = LENGTH.size + size_bytes
                if len(waiting) < end:
                    break
                state = bytes(waiting[LENGTH.size : end])
                del waiting[:end]
                await self._take_ahead(order, state)

    async def accept_last(self, order: MoveOrder, copies: bytes) -> None:
        """Have the standby server bring its connections up to date, and get ready to take over."""
        await self._take_ahead(order, copies)

    async def _take_ahead(self, order: MoveOrder, state: bytes) -> None:
        """Have the server take copies in; they are in the order when they are short, else in a file."""
        inside, root = self._ahead(order), self._context.container.path("/")
        short = len(state) <= self._context.inline_bytes
        taking = control.TakeAhead(
            epoch=order.epoch,
            state_path=str(inside),
            sha256=hashlib.sha256(state).hexdigest(),
            state=state if short else None,
        )
        remove_beneath(root, inside)
        try:
            if not short:
                descriptor = open_beneath(root, inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(state)
            await self._context.control.ask(taking, order.deadlines.precopy_s)
        finally:
            remove_beneath(root, inside)

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Have the server freeze and write its state, and yield that."""
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            freezing = control.Freeze(
                epoch=order.epoch,
                strategy=order.strategy,
                server_first=order.server_first,
                state_path=str(self._state(order)),
                inline_bytes=self._context.inline_bytes,
            )
            answer = await self._context.control.ask(freezing, order.deadlines.checkpoint_s)
            await self._context.after_freeze()
            state = self._written(freezing, answer)
            detail["bytes"] = len(state)
        for start in range(0, len(state), CHUNK_BYTES):
            yield state[start : start + CHUNK_BYTES]

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Have the standby server import the state, which is in a file when it is long."""
        inside = self._state(order)
        digest = hashlib.sha256()
        size_bytes = 0
        state: bytes | None = b""  # None: in the file
        self._remove_state(order)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = open_beneath(self._context.container.path("/"), inside, flags)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in chunks:
                    size_bytes += len(chunk)
                    if size_bytes > MAX_STATE_BYTES:
                        raise MigrationError(
                            f"the state is longer than {MAX_STATE_BYTES} bytes", hint="it is not taken in"
                        )
                    digest.update(chunk)
                    if state is not None and size_bytes <= self._context.inline_bytes:
                        state += chunk
                        continue
                    file.write((state or b"") + chunk)
                    state = None
            with self._context.events.phase("migration.restore", epoch=order.epoch):
                check_lease(self._context.lease_of(order), order.destination)
                taking_over = control.Import(
                    epoch=order.epoch,
                    edge=order.destination,
                    strategy=order.strategy,
                    server_first=order.server_first,
                    state_path=str(inside),
                    sha256=digest.hexdigest(),
                    state=state,
                    service=order.service,
                    lease=self._context.lease_of(order),
                )
                return await self._import(taking_over, order.deadlines.restore_s)
        finally:
            self._remove_state(order)

    async def _import(self, order: control.Import, timeout_s: float) -> dict[str, Any]:
        """Give the order, and let in what waits while the server reads its state: its socket is there."""
        asking = asyncio.ensure_future(self._context.control.ask(order, timeout_s))
        try:
            await asyncio.sleep(0)  # the order leaves
            self._context.before_resume()
            return await asking
        finally:
            asking.cancel()

    async def give_up_source(self, order: MoveOrder) -> None:
        """Have the server dismiss connections that did not move, and kill it."""
        self._remove_state(order)
        with suppress(MigrationError):  # it may have died; then nobody can be told
            dismiss = control.Dismiss(epoch=order.epoch)
            await self._context.control.ask(dismiss, order.deadlines.commit_s / 4)
        # it is frozen and has nothing more to tell: its closing words would be the destination's
        await self._context.container.stop_service(grace_s=0.0)

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """Give the frozen server Abort, and remove its state."""
        answer = await self._context.control.ask(
            control.Abort(epoch=order.epoch, reason=reason), order.deadlines.restore_s
        )
        # a freeze that was too slow for us may have written it after all
        self._remove_state(order)
        return answer

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Kill the standby server and remove the state."""
        # whether the import was carried out cannot be known after a silence: the whole process goes
        await self._context.container.stop_service(grace_s=0.0)
        self._remove_state(order)
