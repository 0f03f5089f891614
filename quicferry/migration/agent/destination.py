"""The destination's side of a move: prepares, receives, resumes, and decides by ``states.DESTINATION``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from quicferry.errors import FerryError, MigrationError
from quicferry.migration import control
from quicferry.migration.agent.context import Host, describe, fence_ns
from quicferry.migration.agent.transfer import Inbox
from quicferry.migration.engines.base import CopiesAhead, TakesOver
from quicferry.migration.engines.registry import implementation_of
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.channel import Unreachable
from quicferry.migration.rpc.messages import (
    STATUS,
    Ahead,
    Begin,
    Commit,
    Committed,
    End,
    Piece,
    Prepared,
    Received,
    Resumed,
    StatusQuery,
    ToDestination,
    ToSource,
    Verdict,
)
from quicferry.migration.states import DESTINATION, SERVES_AT_DESTINATION, MoveMachine, Signal, Step
from quicferry.model import Endpoint
from quicferry.strategies import speaks_first
from quicferry.units import NS_PER_S, now_ns

ASK_S = 1.0
ASKS_BEFORE_FENCE = 4
GONE_S = 0.5  # for one connection attempt to a source that may be gone

R = TypeVar("R")
Send = Callable[[ToSource], Awaitable[None]]


class DestinationSide:
    """The destination's part of the agent: takes a server in, one move at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.machine = MoveMachine(DESTINATION, f"destination {host.edge}")
        self.order: MoveOrder | None = None
        self._verdicts: dict[int, Resumed | None] = {}  # None is final, see states
        self._preparing: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[Resumed] | None = None
        self._fencing: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._inbox = Inbox()
        self._lease_ns = 0
        self._why_not: dict[int, str] = {}
        self._timeout: asyncio.Timeout | None = None

    def _take(self, signal: Signal) -> Step:
        """Advance the state machine, and journal the new step with the lease in force."""
        before = self.machine.step
        step = self.machine.take(signal)
        if step is not before and self.order is not None:
            order = msgspec.structs.replace(
                self.order, resume_before_ns=self._lease_ns or self.order.resume_before_ns
            )
            self._host.journal.note(order.epoch, "destination", step, order)
        return step

    async def recover(self) -> None:
        """Continue after this agent was killed and started again, before any caller is answered.

        What had resumed serves on; what had not never will, as parts of it are gone.
        """
        journal = self._host.journal
        for (epoch, part), entry in journal.last.items():
            if part == "destination" and entry.step in SERVES_AT_DESTINATION:
                self._verdicts[epoch] = Resumed(epoch=epoch, t_ns=entry.t_ns)
            elif part == "destination" and entry.step is Step.STAYED:
                self._verdicts[epoch] = None
        latest = journal.latest
        if latest is None or latest.part != "destination":
            return
        self.machine.step, self.order = latest.step, latest.order
        order = latest.order
        if order is None:
            return
        if latest.step is Step.RESTORE or latest.step in SERVES_AT_DESTINATION:
            await self._take_over(order)
        if self.machine.step is Step.MOVED:  # the server may not have heard of the commit
            self._tell_commit()
        if self.machine.is_over:
            return
        self._lease_ns = order.resume_before_ns
        if latest.step is Step.RESTORE and await self._serves(order):
            self._verdicts[order.epoch] = Resumed(epoch=order.epoch, t_ns=now_ns())
            self._take(Signal.RESUMED)
        if self.machine.step is Step.COMMIT:
            self._fencing = asyncio.get_running_loop().create_task(self._fence(order))
            return
        signal = Signal.SETTLED if latest.step is Step.ABORT else Signal.ABORTED
        if signal is Signal.ABORTED:
            await self._throw_away(signal, f"the agent of {self._host.edge} was killed in {latest.step}")
        await self._host.container.end_processes()
        if signal is Signal.SETTLED:
            self._verdicts[order.epoch] = None
            self._take(signal)

    async def _take_over(self, order: MoveOrder) -> None:
        """Let the engine continue to serve page faults; a server that waits for memory answers nobody."""
        engine = self._host.engine(implementation_of(order))
        if isinstance(engine, TakesOver):
            with suppress(FerryError):  # of a server that had not resumed, nothing is left: no matter
                await engine.take_over(order)

    async def _serves(self, order: MoveOrder) -> bool:
        """Whether the server had resumed before the agent could journal it."""
        if self._host.container.service_pid is None:
            return False
        try:
            status = await self._host.control.ask(control.Status(), order.deadlines.commit_s / 4)
        except FerryError:
            return False
        return not status.get("standby") and not status.get("frozen")

    # --- prepare -----------------------------------------------------------------------------

    async def prepare(self, order: MoveOrder) -> Prepared:
        """Get ready for a move; a duplicate order gets the same answer. Raises ``MigrationError``."""
        if order.destination != self._host.edge:
            raise MigrationError(f"{self._host.edge} is asked to be the destination {order.destination}")
        # opened here, so that the fence's questions to the source need no handshake later
        self._host.peer(order.source)
        if self.order is None or self.order.epoch != order.epoch:
            if order.epoch in self._verdicts or self._host.journal.knows(order.epoch, "destination"):
                raise MigrationError(f"epoch {order.epoch} is over at {order.destination}")
            if self.machine.step in (Step.PREPARING, Step.READY) and self.order is not None:
                # nobody came for what was prepared; a newer order takes its place
                await self.abort(self.order.epoch, f"epoch {order.epoch} takes its place")
            if not self.machine.is_over:
                raise MigrationError(f"a move is in progress: step {self.machine.step}")
            self.order = order
            self._lease_ns = 0
            self._take(Signal.ORDERED)
            self._preparing = asyncio.get_running_loop().create_task(self._prepare(order))
        if self._preparing is not None:
            await asyncio.shield(self._preparing)
        if self.machine.step is not Step.READY:
            raise MigrationError(f"epoch {order.epoch} is past its preparation: step {self.machine.step}")
        room = self._host.room
        return Prepared(waiting_room=room.address if room is not None else None)

    async def _prepare(self, order: MoveOrder) -> None:
        """Prepare address, engine and waiting room; on failure clean up and raise."""
        try:
            with self._host.events.phase("migration.prepare", epoch=order.epoch):
                async with asyncio.timeout(order.deadlines.prepare_s):
                    if self._host.address is not None:
                        await self._host.address.take()  # nobody sends to it here before it is announced
                    await self._host.engine(implementation_of(order)).prepare_destination(order)
            if self._host.room is not None:
                await_client = not speaks_first(order.strategy, order.server_first)
                self._host.room.prepare(await_client=await_client)
            self._take(Signal.PREPARED)
        except BaseException as error:
            await self._throw_away(Signal.FAILED, describe(error))
            raise

    # --- receive -----------------------------------------------------------------------------

    async def receive(self, requests: AsyncIterator[ToDestination], send: Send, caller: str) -> None:
        """Serve the stream of one move from the source. Raises ``MigrationError`` to the source."""
        begin = await anext(requests, None)
        if isinstance(begin, Ahead):
            await self._accept_ahead(begin.order, requests, send, caller)
            begin = await anext(requests, None)
        if begin is None:  # opened in advance, not needed
            return
        if not isinstance(begin, Begin):
            raise MigrationError(f"the transfer begins with {type(begin).__name__}")
        order = begin.order
        self._check_prepared(order, caller)
        self._take(Signal.GO)
        self.order = order
        self._lease_ns = order.resume_before_ns
        inbox = self._inbox = Inbox()
        restoring = self._restoring = asyncio.get_running_loop().create_task(self._restore(order, inbox))
        # its error is told by whoever awaits it; when nobody does, that is no warning
        restoring.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            end = await self._fill(inbox, requests, restoring)
            inbox.check(end)
            self._take(Signal.SENT)
            self._lease_ns = min(self._lease_ns, end.resume_before_ns)
            # End may shorten the lease while the restore already runs
            if self._timeout is not None:
                self._timeout.reschedule(self._lease_ns / NS_PER_S)
            await inbox.close()
            await send(Received(size_bytes=inbox.size_bytes, t_ns=now_ns()))
            await send(await self._outcome_of(restoring))
        except FerryError as error:
            inbox.break_off(error)
            raise
        finally:
            inbox.break_off(Unreachable(f"the transfer from {order.source} broke off"))
        async for message in requests:
            if isinstance(message, Commit):
                verdict = await self.commit(message.epoch)
                if verdict.resumed is None:
                    raise MigrationError(f"{order.destination} serves no more in epoch {order.epoch}")
                await send(Committed(epoch=message.epoch))

    def _check_prepared(self, order: MoveOrder, caller: str) -> None:
        """Raise ``MigrationError`` unless ``caller`` may begin the transfer of this order."""
        if self.order is None or order.epoch != self.order.epoch or caller != order.source:
            raise MigrationError(f"epoch {order.epoch} from {caller} was not prepared at {self._host.edge}")

    async def _accept_ahead(
        self, order: MoveOrder, requests: AsyncIterator[ToDestination], send: Send, caller: str
    ) -> None:
        """Receive memory that is copied while the server still serves at the source."""
        self._check_prepared(order, caller)
        engine = self._host.engine(implementation_of(order))
        if not isinstance(engine, CopiesAhead):
            raise MigrationError(f"the engine {order.engine} takes in nothing before the freeze")
        inbox = Inbox()
        accepting = asyncio.get_running_loop().create_task(engine.accept_ahead(order, inbox.chunks()))
        accepting.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            inbox.check(await self._fill(inbox, requests, accepting))
            await inbox.close()
            await accepting
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
        await send(Received(size_bytes=inbox.size_bytes, t_ns=now_ns()))

    async def _fill(
        self, inbox: Inbox, requests: AsyncIterator[ToDestination], working: asyncio.Task[Any]
    ) -> End:
        """Put pieces into the inbox until End, which is returned. Raises when the engine has failed."""
        async for message in requests:
            if isinstance(message, End):
                return message
            if not isinstance(message, Piece):
                raise MigrationError(f"{type(message).__name__} in the middle of a transfer")
            if not inbox.has_room:
                # an engine that has failed does not read on: do not wait for it
                putting = asyncio.ensure_future(inbox.put(message))
                await asyncio.wait([putting, working], return_when=asyncio.FIRST_COMPLETED)
                if not putting.done():
                    putting.cancel()
            else:
                await inbox.put(message)
            if working.done():
                await self._outcome_of(working)
        raise Unreachable("the transfer broke off before its end")

    async def _outcome_of(self, restoring: asyncio.Task[R]) -> R:
        """The result of a restore; one that was aborted raises ``MigrationError``, not a cancellation."""
        await asyncio.wait([restoring])
        if restoring.cancelled():
            raise MigrationError(f"{self._host.edge} was told to abort")
        return restoring.result()

    async def _restore(self, order: MoveOrder, inbox: Inbox) -> Resumed:
        """Restore and resume the server.

        Runs in a task of its own: a broken stream must not cancel a restore that has all it needs.
        """
        try:
            async with asyncio.timeout_at(self._lease_ns / NS_PER_S) as self._timeout:
                answer = await self._host.engine(implementation_of(order)).restore(order, inbox.chunks())
            if not inbox.complete:
                raise MigrationError("the engine resumed the server before it had all of its state")
        except BaseException as error:
            expired = isinstance(error, TimeoutError)
            await self._throw_away(Signal.EXPIRED if expired else Signal.FAILED, describe(error))
            if isinstance(error, (FerryError, asyncio.CancelledError)):
                raise
            raise MigrationError(f"the restore at {order.destination} failed: {describe(error)}") from error
        finally:
            self._timeout = None
        # an engine that could not let in what waits before the server ran does it here
        if self._host.room is not None:
            self._host.room.open()
        resumed = Resumed(epoch=order.epoch, t_ns=int(answer.get("t_ns", now_ns())), answer=answer)
        self._verdicts[order.epoch] = resumed
        self._take(Signal.RESUMED)
        if self._host.forwarder is not None:
            # a server that was here before may have left it running: what comes now is for this host
            self._host.forwarder.close()
        self._fencing = asyncio.get_running_loop().create_task(self._fence(order))
        return resumed

    # --- the two ends ------------------------------------------------------------------------

    async def commit(self, epoch: int) -> Verdict:
        """Answer the source's commit: after ``resumed`` the source never serves this epoch again.

        Raises ``MigrationError`` when this epoch has come to no verdict here.
        """
        if epoch not in self._verdicts:
            raise MigrationError(f"epoch {epoch} cannot be committed at {self._host.edge}: nothing resumed")
        if self.order is not None and epoch == self.order.epoch and self.machine.step is Step.COMMIT:
            self._settle()
        return self._verdict(epoch)

    def _settle(self) -> None:
        """The source has committed: the server is this host's for good, and the fence is off."""
        self._take(Signal.SETTLED)
        if self._fencing is not None and self._fencing is not asyncio.current_task():
            self._fencing.cancel()
        if self._host.room is not None:
            self._host.room.close_later(self._host.linger_s)
        self._tell_commit()

    def _tell_commit(self) -> None:
        """Lets the server have all packet numbers; in a task, as it may wait for memory just now."""
        if self.order is not None:
            self._telling = asyncio.get_running_loop().create_task(self._commit_server(self.order))

    async def _commit_server(self, order: MoveOrder) -> None:
        while self.order is order and self.machine.step is Step.MOVED:
            try:
                await self._host.control.ask(control.Commit(epoch=order.epoch), order.deadlines.commit_s)
            except FerryError:
                if self._host.container.service_pid is None:
                    return
                await asyncio.sleep(ASK_S)
            else:
                return

    async def abort(self, epoch: int, reason: str) -> Verdict:
        """Do not resume in this epoch, unless the server has resumed already; the verdict is final."""
        if epoch in self._verdicts:
            return self._verdict(epoch)
        if self.order is None or epoch != self.order.epoch:
            # the order itself may still be on its way: it will be refused
            self._verdicts[epoch] = None
            return self._verdict(epoch)
        # A restore or preparation that is cancelled cleans up by itself and comes to its own verdict, so the
        # step is looked at only after its end.
        if self._restoring is not None and not self._restoring.done():
            self._why_not[epoch] = reason
            self._restoring.cancel()
            await asyncio.wait([self._restoring])
        elif self._preparing is not None and not self._preparing.done():
            self._why_not[epoch] = reason
            self._preparing.cancel()
            await asyncio.wait([self._preparing])
        if self.machine.step not in (Step.COMMIT, Step.MOVED, Step.STAYED):
            await self._throw_away(Signal.ABORTED, reason)
        return self._verdict(epoch)

    def _verdict(self, epoch: int) -> Verdict:
        """The answer to Abort and Commit in this epoch."""
        return Verdict(epoch=epoch, resumed=self._verdicts[epoch], reason=self._why_not.get(epoch))

    async def _throw_away(self, signal: Signal, reason: str, within_s: float | None = None) -> None:
        """Make sure that nothing of this order serves here or ever will; then record that verdict."""
        order = self.order
        assert order is not None
        # Journalled first: an agent that is killed in the middle of this throws away again. The verdict
        # comes last, as "never will" may be told only when it is true.
        self._take(signal)
        self._why_not.setdefault(order.epoch, reason)
        if self._host.room is not None:
            self._host.room.close()
        try:
            async with asyncio.timeout(within_s or order.deadlines.commit_s):
                await self._host.engine(implementation_of(order)).abandon_destination(order, reason)
                if self._host.address is not None:
                    await self._host.address.leave()
        except Exception:  # the engine cannot: what runs in the container is ended by force
            await self._host.container.stop_service(grace_s=0.0)
        self._verdicts[order.epoch] = None
        self._take(Signal.SETTLED)

    # --- the fence ---------------------------------------------------------------------------

    async def _fence(self, order: MoveOrder) -> None:
        """Wait for the source's commit; take the server down before the fence if none can be had."""
        loop = asyncio.get_running_loop()
        fence_s = fence_ns(self._lease_ns, order) / NS_PER_S
        # The source may serve from the fence on: the server here must be down by then, so the decision falls
        # twice the time earlier that taking it down may take.
        taking_down_s = order.deadlines.commit_s / 4
        fence_s -= 2 * taking_down_s
        while self.machine.step is Step.COMMIT and loop.time() < fence_s:
            await asyncio.sleep(min(order.deadlines.commit_s / ASKS_BEFORE_FENCE, fence_s - loop.time()))
            if self.machine.step is Step.COMMIT and await self._source_has_committed(order):
                self._settle()
        if self.machine.step is not Step.COMMIT:
            return
        if await self._source_is_gone(order):
            self._settle()
            return
        await self._throw_away(Signal.EXPIRED, "the source did not commit before the fence", taking_down_s)

    async def _source_has_committed(self, order: MoveOrder) -> bool:
        """Ask the source's agent whether it has committed; False when it does not answer."""
        try:
            status = await self._host.peer(order.source).call(STATUS, StatusQuery(), timeout_s=ASK_S)
        except FerryError:
            return False
        mine = status.part == "source" and status.epoch == order.epoch
        return mine and status.step in (Step.COMMIT, Step.MOVED)

    async def _source_is_gone(self, order: MoveOrder) -> bool:
        """Whether the source's host is up but its agent is not: then nobody there resumes the server.

        Whoever starts it again asks this host before it lets its server go on.
        """
        endpoints = self._host.peer(order.source).endpoints
        return any(await asyncio.gather(*map(self._is_port_closed, endpoints)))

    async def _is_port_closed(self, endpoint: Endpoint) -> bool:
        """Whether a host answers that nothing listens at that endpoint."""
        try:
            async with asyncio.timeout(GONE_S):
                _, writer = await asyncio.open_connection(*endpoint)
        except ConnectionRefusedError:
            return True
        except OSError:  # a timeout is an OSError, too: cut off, not gone
            return False
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return False

    async def close(self) -> None:
        """Cancel the background tasks; called when the agent ends."""
        for task in (self._preparing, self._restoring, self._fencing):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
