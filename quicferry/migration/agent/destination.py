"""The destination's side of a move: prepares, receives, resumes, and decides by ``states.DESTINATION``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from quicferry.errors import FerryError, MigrationError
from quicferry.migration import control
from quicferry.migration.agent.context import Host, describe, note_step
from quicferry.migration.agent.transfer import Inbox
from quicferry.migration.engines.base import CopiesAfterNotice, CopiesAhead, GivesAtOnce, TakesOver
from quicferry.migration.engines.registry import implementation_of
from quicferry.migration.order import Lease, MoveOrder, fence_ns, lease_of
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
    Renew,
    Resumed,
    Resuming,
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
ASKS_WITHIN_LEASE = 8
ASK_AGAIN_S = 0.5  # at most so long between two questions
GONE_S = 0.5  # for one connection attempt to a source that may be gone
KEEP_S = 1.0  # for the server to hear that it may stay
#: steps whose record must stand before they are acted on. The server's own word stands for the others.
RECORDED = frozenset({Step.PREPARING, Step.READY, Step.TRANSFER, Step.RESTORE})
#: steps of a source that serves again, or tries to, and never commits in this epoch
TAKEN_BACK = frozenset({Step.ABORT, Step.STAYED, Step.LOST})

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
        self._awaiting: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._keeping = asyncio.Lock()
        self._about_to_resume = asyncio.Event()  # in the present move
        self._granted = False  # the source has committed the present move
        self._lease_ns = 0
        self._why_not: dict[int, str] = {}
        self._timeout: asyncio.Timeout | None = None

    def _take(self, signal: Signal) -> Step:
        """Advance the state machine, and journal the new step with the lease in force.

        Raises ``MigrationError``, in the step before, when a step must be recorded and cannot be.
        """
        if self.order is None:
            return self.machine.take(signal)
        order = self._with_lease(self.order)
        return note_step(self._host, self.machine, signal, order, "destination", RECORDED)

    def _with_lease(self, order: MoveOrder) -> MoveOrder:
        """The order with the lease in force."""
        return msgspec.structs.replace(order, resume_before_ns=self._lease_ns or order.resume_before_ns)

    def source_of(self, epoch: int) -> str | None:
        """The source of that move, None when this host has not heard of it."""
        entry = self._host.journal.last.get((epoch, "destination"))
        return entry.order.source if entry is not None and entry.order is not None else None

    def lease_of(self, order: MoveOrder) -> Lease | None:
        """The server's lease in the present move, as it was renewed last."""
        mine = self.order is not None and order.epoch == self.order.epoch
        return lease_of(self._with_lease(order) if mine else order)

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
        if latest.step is Step.RESTORE or latest.step in SERVES_AT_DESTINATION or journal.is_damaged:
            await self._take_over(order)
        if self.machine.is_over:
            return
        self._lease_ns = order.resume_before_ns
        if journal.is_damaged and latest.step is Step.TRANSFER:
            # the line that was lost may have said that all of the state was here
            self.machine.step = Step.RESTORE
        if self.machine.step is Step.RESTORE and await self._serves(order):
            self._verdicts[order.epoch] = Resumed(epoch=order.epoch, t_ns=now_ns())
            self._take(Signal.RESUMED)
        if self.machine.step is Step.COMMIT:
            self._begin_to_await_commit(order)
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
        epoch = status.get("lease", {}).get("epoch", order.epoch)
        return not status.get("standby") and not status.get("frozen") and epoch == order.epoch

    # --- prepare -----------------------------------------------------------------------------

    async def prepare(self, order: MoveOrder) -> Prepared:
        """Get ready for a move; a duplicate order gets the same answer. Raises ``MigrationError``."""
        if order.destination != self._host.edge:
            raise MigrationError(f"{self._host.edge} is asked to be the destination {order.destination}")
        # opened here, so that questions to the source need no handshake later
        self._host.peer(order.source)
        if self.order is None or self.order.epoch != order.epoch:
            if order.epoch in self._verdicts or self._host.journal.knows(order.epoch, "destination"):
                raise MigrationError(f"epoch {order.epoch} is over at {order.destination}")
            if self.machine.step in (Step.PREPARING, Step.READY) and self.order is not None:
                # nobody came for what was prepared; a newer order takes its place
                await self.abort(self.order.epoch, f"epoch {order.epoch} takes its place")
            if self.machine.step is Step.COMMIT and self.order is not None:
                await self._ask_source(self.order)  # it may be over long since, and nobody has said so
            if not self.machine.is_over:
                raise MigrationError(f"a move is in progress: step {self.machine.step}")
            before, self.order, self._lease_ns = self.order, order, 0
            try:
                self._take(Signal.ORDERED)
            except MigrationError:
                self.order = before
                raise
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
            if self._host.forwarder is not None:
                # before the room opens, which is before the resume is answered: that may take long where
                # the server lacks memory
                self._host.forwarder.server_returns()
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
        while isinstance(begin, Ahead):
            await self._accept_ahead(begin, requests, send, caller)
            begin = await anext(requests, None)
        if begin is None:  # opened in advance, not needed
            return
        if not isinstance(begin, Begin):
            raise MigrationError(f"the transfer begins with {type(begin).__name__}")
        order = begin.order
        self._check_prepared(order, caller)
        if isinstance(self._host.engine(implementation_of(order)), GivesAtOnce):
            self._host.urgency.begin()
        inbox = Inbox(begin.key)
        try:
            self._take(Signal.GO)
        except FerryError as error:
            # the stream may tell only that it broke; whoever asks for the verdict hears why
            self._why_not.setdefault(order.epoch, describe(error))
            raise
        self.order = order
        self._lease_ns = order.resume_before_ns
        self._about_to_resume.clear()
        self._granted = False
        restoring = self._restoring = asyncio.get_running_loop().create_task(
            self._restore(order, begin.copies, inbox)
        )
        # its error is told by whoever awaits it; when nobody does, that is no warning
        restoring.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            end = await self._fill(inbox, requests, restoring)
            inbox.check(end)
            self._take(Signal.SENT)
            self._lease_ns = min(self._lease_ns, end.resume_before_ns)
            self._restore_until_lease_ends()  # End may shorten it while the restore already runs
            await inbox.close()
            await asyncio.sleep(0)  # first the engine, which has all now
            await send(Received(size_bytes=inbox.size_bytes, t_ns=now_ns()))
            answering = asyncio.create_task(self._tell_resumed(order, restoring, send))
        except FerryError as error:
            if not isinstance(error, Unreachable):
                self._why_not.setdefault(order.epoch, describe(error))
            inbox.break_off(error)
            raise
        finally:
            inbox.break_off(Unreachable(f"the transfer from {order.source} broke off"))
        try:
            await self._hear_out(requests, send, order, answering)
        finally:
            answering.cancel()

    def ask_for_commit(self) -> None:
        """The server is about to resume: the source's commit may cross meanwhile."""
        if self.machine.step is Step.RESTORE:
            self._about_to_resume.set()

    async def _tell_resumed(self, order: MoveOrder, restoring: asyncio.Task[Resumed], send: Send) -> None:
        """Ask the source for the commit as soon as that makes sense, and tell it how the restore ended."""
        resuming = asyncio.ensure_future(self._about_to_resume.wait())
        try:
            await asyncio.wait([resuming, restoring], return_when=asyncio.FIRST_COMPLETED)
        finally:
            resuming.cancel()
        if not restoring.done():
            #: wire-format 9.1: a destination SHOULD ask for it as soon as
            await send(Resuming(epoch=order.epoch))
        await send(await self._outcome_of(restoring))

    async def _hear_out(
        self,
        requests: AsyncIterator[ToDestination],
        send: Send,
        order: MoveOrder,
        answering: asyncio.Task[None],
    ) -> None:
        """Obey what comes after the state: a longer lease, and the commit."""
        hearing: asyncio.Future[ToDestination | None] | None = asyncio.ensure_future(anext(requests, None))
        working: set[asyncio.Future[None]] = {answering}
        try:
            while hearing is not None or working:
                waiting: list[asyncio.Future[Any]] = [*working, *([] if hearing is None else [hearing])]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in working if task.done()]:
                    working.remove(task)
                    task.result()  # the source hears of a failure
                if hearing is None or not hearing.done():
                    continue
                message = hearing.result()
                if isinstance(message, Renew):
                    self._renew(message)
                elif isinstance(message, Commit) and not self._granted:
                    # beside the restore, which may have to hear of a longer lease yet
                    self._granted = True
                    working.add(asyncio.create_task(self._confirm_commit(send, order, answering)))
                hearing = asyncio.ensure_future(anext(requests, None)) if message is not None else None
        finally:
            for future in (hearing, *working):
                if future is not None:
                    future.cancel()

    async def _confirm_commit(self, send: Send, order: MoveOrder, answering: asyncio.Task[None]) -> None:
        """Carry out the commit once the server has resumed, and answer it after the word Resumed."""
        await answering
        verdict = await self.commit(order.epoch)
        if verdict.resumed is None:
            raise MigrationError(f"{order.destination} serves no more in epoch {order.epoch}")
        await send(Committed(epoch=order.epoch))

    def _renew(self, message: Renew) -> None:
        """Take a longer lease; also the restore that is at work may take as long."""
        self._lease_ns = max(self._lease_ns, message.resume_before_ns)
        self._restore_until_lease_ends()

    def _restore_until_lease_ends(self) -> None:
        """Let the restore that is at work last as long as the lease; one whose time is over ends as it is."""
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self._lease_ns / NS_PER_S)

    def _check_prepared(self, order: MoveOrder, caller: str) -> None:
        """Raise ``MigrationError`` unless ``caller`` may begin the transfer of this order."""
        if self.order is None or order.epoch != self.order.epoch or caller != order.source:
            raise MigrationError(f"epoch {order.epoch} from {caller} was not prepared at {self._host.edge}")

    async def _accept_ahead(
        self, ahead: Ahead, requests: AsyncIterator[ToDestination], send: Send, caller: str
    ) -> None:
        """Receive memory that is copied while the server still serves at the source."""
        order = ahead.order
        self._check_prepared(order, caller)
        engine = self._host.engine(implementation_of(order))
        if not isinstance(engine, CopiesAhead):
            raise MigrationError(f"the engine {order.engine} takes in nothing before the freeze")
        inbox = Inbox(ahead.key)
        accepting = asyncio.get_running_loop().create_task(engine.accept_ahead(order, inbox.chunks()))
        accepting.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            inbox.check(await self._fill(inbox, requests, accepting))
            await inbox.close()
            await accepting
            if isinstance(engine, GivesAtOnce):
                # the freeze is next: to hasten everybody takes a moment that is not there later
                self._host.urgency.begin()
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
        await send(Received(size_bytes=inbox.size_bytes, t_ns=now_ns()))

    async def _fill(
        self, inbox: Inbox, requests: AsyncIterator[ToDestination], working: asyncio.Task[Any]
    ) -> End:
        """Put pieces into the inbox until End, which is returned. Raises when the engine has failed."""
        async for message in requests:
            if isinstance(message, End) and not message.data:
                return message
            if not isinstance(message, Piece | End):
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
            if isinstance(message, End):
                return message
        raise Unreachable("the transfer broke off before its end")

    async def _outcome_of(self, restoring: asyncio.Task[R]) -> R:
        """The result of a restore; one that was aborted raises ``MigrationError``, not a cancellation."""
        await asyncio.wait([restoring])
        if restoring.cancelled():
            raise MigrationError(f"{self._host.edge} was told to abort")
        return restoring.result()

    async def _restore(self, order: MoveOrder, copies: bytes, inbox: Inbox) -> Resumed:
        """Take in what was copied last, restore and resume the server.

        Runs in a task of its own: a broken stream must not cancel a restore that has all it needs.
        """
        try:
            async with asyncio.timeout_at(self._lease_ns / NS_PER_S) as self._timeout:
                engine = self._host.engine(implementation_of(order))
                if copies and isinstance(engine, CopiesAfterNotice):
                    await engine.accept_last(order, copies)
                answer = await engine.restore(order, inbox.chunks())
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
            self._host.urgency.end()
        # an engine that could not let in what waits before the server ran does it here
        if self._host.room is not None:
            self._host.room.open()
        resumed = Resumed(epoch=order.epoch, t_ns=int(answer.get("t_ns", now_ns())), answer=answer)
        self._verdicts[order.epoch] = resumed
        self._take(Signal.RESUMED)
        if self._host.forwarder is not None:
            # a server that was here before may have left it running: what comes now is for this host
            self._host.forwarder.close()
        self._begin_to_await_commit(order)
        if self._granted:
            #: wire-format 9.1: server MUST NOT be told of the commit before it has resumed
            # at once: what the server has to say waits for it, and the source can wait for its answer
            self._settling = asyncio.get_running_loop().create_task(self._settle(order))
            self._settling.add_done_callback(lambda task: task.cancelled() or task.exception())
        return resumed

    # --- the two ends ------------------------------------------------------------------------

    async def commit(self, epoch: int) -> Verdict:
        """Answer the source's commit: after ``resumed`` the source never serves this epoch again.

        Raises ``MigrationError`` when this epoch has come to no verdict here.
        """
        if epoch not in self._verdicts:
            raise MigrationError(f"epoch {epoch} cannot be committed at {self._host.edge}: nothing resumed")
        if self.order is not None and epoch == self.order.epoch:
            await self._settle(self.order)
        return self._verdict(epoch)

    async def _settle(self, order: MoveOrder) -> None:
        """The source has committed: the server is this host's for good, and its process must know so.

        Raises ``MigrationError`` when the server does not hear of it: nobody is told then that it stays.
        """
        async with self._keeping:
            if self.machine.step is not Step.COMMIT or self.order is not order:
                return
            try:
                await self._host.control.ask(control.Commit(epoch=order.epoch), KEEP_S)
            except MigrationError:
                if self._host.container.service_pid is not None:
                    raise
                # it has died meanwhile, as a server may: the move is over all the same
            self._take(Signal.SETTLED)
        if self._awaiting is not None and self._awaiting is not asyncio.current_task():
            self._awaiting.cancel()
        if self._host.room is not None:
            self._host.room.close_later(self._host.linger_s)

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

    async def _throw_away(self, signal: Signal, reason: str) -> None:
        """Make sure that nothing of this order serves here or ever will; then record that verdict."""
        order = self.order
        assert order is not None
        # Journalled first: an agent that is killed in the middle of this throws away again. The verdict
        # comes last, as "never will" may be told only when it is true.
        self._take(signal)
        self._why_not.setdefault(order.epoch, reason)
        self._host.urgency.end()
        if self._host.room is not None:
            self._host.room.close()
        try:
            async with asyncio.timeout(order.deadlines.commit_s):
                await self._host.engine(implementation_of(order)).abandon_destination(order, reason)
                if self._host.address is not None:
                    await self._host.address.leave()
        except Exception:  # the engine cannot: what runs in the container is ended by force
            await self._host.container.stop_service(grace_s=0.0)
        self._verdicts[order.epoch] = None
        self._take(Signal.SETTLED)

    # --- the commit --------------------------------------------------------------------------

    def _begin_to_await_commit(self, order: MoveOrder) -> None:
        self._awaiting = asyncio.get_running_loop().create_task(self._await_commit(order))

    async def _await_commit(self, order: MoveOrder) -> None:
        """Find out whether the source has committed, for as long as it takes.

        That takes no clock here: the server's process holds itself back when its lease is over, and
        serves again when it hears of the commit.
        """
        pause_s = min(order.deadlines.commit_s / ASKS_WITHIN_LEASE, ASK_AGAIN_S)
        while True:
            await asyncio.sleep(pause_s)
            if self.machine.step is not Step.COMMIT or self.order is not order:
                return
            with suppress(FerryError):
                await self._ask_source(order)

    async def _ask_source(self, order: MoveOrder) -> None:
        """Ask the source once how it decided, and act on it. Raises as ``_settle`` does."""
        step = await self._source_step(order)
        if self.machine.step is not Step.COMMIT:
            return
        if step in (Step.COMMIT, Step.MOVED):
            await self._settle(order)
        elif step in TAKEN_BACK:
            await self._throw_away(Signal.EXPIRED, "the source did not commit before the lease was over")
            return
        # Gone, and before the lease was over: it has not taken its server back, and whoever is started in
        # its place asks this host before it does anything. Late in the lease: one may just be starting again.
        late = step is None and self._ends_within(order, order.deadlines.commit_s / 2)
        if late and await self._source_is_gone(order) and not self._ends_within(order, 0.0):
            await self._settle(order)

    def _ends_within(self, order: MoveOrder, seconds: float) -> bool:
        """Whether the lease ends within that time; once it has, the source may have taken its server back."""
        return now_ns() + seconds * NS_PER_S >= fence_ns(self._lease_ns, order)

    async def _source_step(self, order: MoveOrder) -> Step | None:
        """The source's step in this move; None when it does not answer, or has not heard of the move.

        One that has not, and has no server, has lost both (its power): it will never serve in this epoch,
        which is all that a commit says.
        """
        question = StatusQuery(epoch=order.epoch)
        try:
            status = await self._host.peer(order.source).call(STATUS, question, timeout_s=ASK_S)
        except FerryError:
            return None
        step = Step(status.as_source)
        if step is Step.IDLE and status.service_pid is None:
            return Step.COMMIT
        return step if step is not Step.IDLE else None

    async def _source_is_gone(self, order: MoveOrder) -> bool:
        """Whether the source's host is up but its agent is not."""
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
        for task in (self._preparing, self._restoring, self._settling, self._awaiting):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
