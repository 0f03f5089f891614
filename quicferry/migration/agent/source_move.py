"""One move at the source: tells the clients, freezes, sends, and commits or rolls back.

Every step is one of ``states.SOURCE``: the table, not the order of calls, says what may follow a failure.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec

from quicferry.errors import FerryError, MigrationError
from quicferry.migration import control
from quicferry.migration.agent.context import Host, describe, note_step
from quicferry.migration.agent.copying import Copying
from quicferry.migration.agent.transfer import Tally, checked, close, write_chunk
from quicferry.migration.criu.digest import new_key
from quicferry.migration.engines.base import Engine, GivesAtOnce, KeepsSource
from quicferry.migration.engines.registry import implementation_of
from quicferry.migration.order import LEASE_S, MoveOrder, fence_ns
from quicferry.migration.rpc.channel import DuplexCall, RpcClient
from quicferry.migration.rpc.messages import (
    ABORT,
    COMMIT,
    PIECE_BYTES,
    PREPARE_DESTINATION,
    RECEIVE,
    AbortMove,
    Begin,
    Commit,
    Committed,
    End,
    Outcome,
    PrepareDestination,
    Received,
    Renew,
    Resumed,
    Resuming,
    ToDestination,
    ToSource,
)
from quicferry.migration.states import MoveMachine, Signal, Step
from quicferry.model import Endpoint
from quicferry.slowness import longer
from quicferry.strategies import rules_of
from quicferry.units import NS_PER_MS, NS_PER_S, now_ns

ASK_S = 1.0  # one question to a destination that may be cut off
ASK_AGAIN_S = 0.1
LEAST_S = 0.001  # nobody answers within less
#: After the lease, before the server here goes on. By then the kernel has ended a server that did not hold
#: itself back (``serving_lease.KILL_AFTER_NS``, 0.3 s).
FENCE_MARGIN_S = 0.5
BRING_BACK_S = 10.0  # nobody else serves meanwhile, nor ever will in this epoch
RENEWALS = 4  # of a lease before it would end
OWN_SERVER_S = 0.5  # for the server here to say whether it serves
#: steps whose record must stand before they are acted on. What follows is asked of servers and destination.
RECORDED = frozenset({Step.PREPARING, Step.READY, Step.CHECKPOINT, Step.TRANSFER, Step.RESTORE})

M = TypeVar("M", Received, Resumed, Committed)


class SourceMove:
    """One move, from its order to one of its ends."""

    def __init__(self, host: Host, machine: MoveMachine, order: MoveOrder) -> None:
        self._host = host
        self._machine = machine
        self._order = order
        self._engine: Engine = host.engine(implementation_of(order))
        self._peer: RpcClient = host.peer(order.destination)
        self._stream: DuplexCall[ToDestination, ToSource] | None = None
        self._key = new_key()  # of the digests of what this move sends
        self._tally = Tally(self._key)
        self._copies = Copying(host.events, self._engine, order, self._key)
        self._lease_ns = 0
        self._resumed: Resumed | None = None
        self._granted = False  # Commit has been written to the stream
        self._stream_failed = False  # a read that ran out of time ends a stream, too
        self._notice: dict[str, Any] = {}
        self._why_not: str | None = None  # the destination's reason to give up, from its verdict
        self._told = False  # the destination has heard of the abort
        self._touched = False  # the server has heard of the move
        self._steps_ms: dict[str, float] = {}
        self._since_ns = now_ns()

    def _take(self, signal: Signal) -> Step:
        """Advance the state machine, measure the step that ended, and journal the new one.

        Raises ``MigrationError``, in the step before, when a step must be recorded and cannot be.
        """
        before = self._machine.step
        order = msgspec.structs.replace(
            self._order, resume_before_ns=self._lease_ns or self._order.resume_before_ns
        )
        step = note_step(self._host, self._machine, signal, order, "source", RECORDED)
        if step is not before:
            now = now_ns()
            self._steps_ms[before] = (now - self._since_ns) / NS_PER_MS
            self._since_ns = now
        return step

    async def run(self) -> Outcome:
        """Carry the move out, from the order to one of its ends."""
        failure: BaseException | None = None
        self._take(Signal.ORDERED)  # not begun when it cannot be written down
        self._steps_ms.clear()
        try:
            waiting_room = await self._prepare()
            self._take(Signal.PREPARED)
            if not self._copies.after_notice:
                await self._copy_ahead()
            await self._give_notice()
            if self._copies.after_notice:
                await self._copy_ahead()
            try:
                await self._send(waiting_room)
            finally:
                self._host.urgency.end()
        except Exception as error:  # whatever it was: the server must end up at one of the two places
            failure = error
            self._stream_failed = True
            self._take(Signal.FAILED)
        if self._machine.step is Step.RESTORE:
            fence_s = fence_ns(self._lease_ns, self._order) / NS_PER_S
            await self._ask_destination(describe(failure) if failure else "no answer", fence_s)
        return await self._end(failure)

    async def go_on(self) -> Outcome:
        """Carry the move on from the step in which an earlier agent was killed."""
        step = self._machine.step
        failure = MigrationError(f"the agent of {self._host.edge} was killed in the step {step}")
        self._touched = step is not Step.PREPARING
        if step is Step.TRANSFER and self._host.journal.is_damaged:
            # the line that was lost may have said that End was about to leave
            step = self._machine.step = Step.RESTORE
        if step not in (Step.RESTORE, Step.COMMIT, Step.ABORT):
            self._take(Signal.FAILED)
        if step is Step.RESTORE:
            if await self._serves():
                # it was taken back, and that could not be written down
                self._touched = False
                self._take(Signal.ABORTED)
            else:
                await self._ask_destination(str(failure), math.inf)
        return await self._end(failure)

    async def _serves(self) -> bool:
        """Whether the server here says that it serves."""
        try:
            status = await self._host.control.ask(control.Status(), longer(OWN_SERVER_S))
        except MigrationError:
            return False
        return status.get("frozen") is False and status.get("standby") is False

    async def _end(self, failure: BaseException | None) -> Outcome:
        """Commit or roll back, as the state machine says, and report the outcome."""
        if self._machine.step is Step.COMMIT:
            failure = await self._commit() or failure
        if self._machine.step is Step.ABORT:
            failure = await self._roll_back(failure or MigrationError("the destination gave up"))
        return self._finish(failure)

    async def _prepare(self) -> Endpoint | None:
        """Prepare both sides; returns where late datagrams are to be forwarded to."""
        order = self._order
        async with asyncio.timeout(order.deadlines.prepare_s):
            prepared, _ = await asyncio.gather(
                self._peer.call(
                    PREPARE_DESTINATION,
                    PrepareDestination(order=order),
                    timeout_s=order.deadlines.prepare_s,
                    wait=True,
                ),
                self._engine.prepare_source(order),
            )
        # opened now, so that the first byte after the freeze needs no handshake of any kind
        limits = order.deadlines
        lifetime_s = limits.precopy_s if self._copies.ahead else 0.0
        lifetime_s += limits.notice_s + limits.checkpoint_s + limits.transfer_s + limits.restore_s
        self._stream = self._peer.open(RECEIVE, timeout_s=lifetime_s + limits.commit_s + ASK_S)
        if not order.forwarding or self._host.forwarder is None:
            return None
        room = prepared.waiting_room
        if room is not None and ipaddress.ip_address(room.host).is_unspecified:
            room = Endpoint(self._peer.endpoint.host, room.port)
        self._host.forwarder.open()
        return room

    async def _copy_ahead(self) -> None:
        """Send what the engine copies before the freeze, and wait until it has arrived."""
        assert self._stream is not None
        self._touched = self._touched or self._copies.ahead
        await self._copies.send(self._stream)

    async def _give_notice(self) -> None:
        """Have the server prepare itself, and tell its clients when the strategy wants it."""
        order = self._order
        rules = rules_of(order.strategy)
        ask = control.Prepare(
            epoch=order.epoch,
            strategy=order.strategy,
            server_first=order.server_first,
            destination=order.service if rules.carries_address else None,
            downtime_ms=order.downtime_ms,
            deadline_s=order.deadlines.notice_s,
            service=order.service,
        )
        self._touched = True
        if not rules.notice:
            self._notice = await self._host.control.ask(ask, order.deadlines.notice_s + longer(ASK_S))
            return
        with self._host.events.phase("migration.notice", epoch=order.epoch) as detail:
            self._notice = await self._host.control.ask(ask, order.deadlines.notice_s + longer(ASK_S))
            detail.update(self._notice)
        counts = [self._notice.get(answer, 0) for answer in ("ready", "refused", "silent")]
        if counts[1] and not counts[0] and not counts[2]:
            raise MigrationError(
                f"all clients refuse the move ({counts[1]})", hint="they go on with the server where it is"
            )

    async def _send(self, waiting_room: Endpoint | None) -> None:
        """Freeze the server and transfer its state, up to the destination's word that it resumed."""
        assert self._stream is not None
        limits = self._order.deadlines
        ahead_s = min(limits.freeze_s, limits.checkpoint_s + limits.transfer_s + limits.restore_s)
        # The destination has the lease before the server is frozen: if this host falls silent from now on,
        # the destination knows until when it may resume, and this host after which moment it may roll back.
        order = msgspec.structs.replace(self._order, resume_before_ns=now_ns() + round(ahead_s * NS_PER_S))
        self._order = order
        if isinstance(self._engine, GivesAtOnce):
            self._host.urgency.begin()
        begin = Begin(order=order, key=self._key, copies=await self._copies.last())
        await self._stream.write(begin)
        # Forwarding begins before the freeze, not after it: a datagram too many is dropped by QUIC as a
        # duplicate, one that nobody took costs its client a retransmission timeout.
        if waiting_room is not None and self._host.forwarder is not None:
            self._host.forwarder.start(waiting_room)
        # journalled before the engine touches the server: after a crash the next agent must know that the
        # server may be frozen
        self._take(Signal.GO)
        chunks = self._engine.checkpoint(order)
        try:
            async with asyncio.timeout(limits.checkpoint_s):
                first = await anext(aiter(chunks), None)
            if first is None:
                raise MigrationError("the engine gave an empty checkpoint")
            self._take(Signal.TAKEN)
            with self._host.events.phase("migration.transfer", epoch=order.epoch) as detail:
                async with self._freeze_limit(order.resume_before_ns, limits.transfer_s):
                    last = await self._write_all(first, chunks)
                # the restore is all that is left to do: a shorter lease, so that a failure is over sooner
                self._lease_ns = self._next_lease(order.resume_before_ns)
                # Before End leaves, not after: once it is on its way, the destination may resume, and this
                # side must not roll back on its own any more, whatever becomes of the write.
                self._take(Signal.SENT)
                await self._stream.write(
                    End(
                        size_bytes=self._tally.size_bytes,
                        digest=self._tally.digest,
                        resume_before_ns=self._lease_ns,
                        data=last,
                    )
                )
                await self._answer(Received, limits.restore_s)
                detail["bytes"] = self._tally.size_bytes
        finally:
            await close(chunks)
        renewing = asyncio.create_task(self._renew_lease(order.resume_before_ns))
        try:
            answer = await self._read(limits.restore_s)
            if isinstance(answer, Resuming):
                #: wire-format 9.1: MUST NOT go on before the destination says that it never will
                # before it leaves: from here on only the destination's word leads back
                self._take(Signal.ASKED)
                self._granted = True
                await self._stream.write(Commit(epoch=order.epoch))
                self._host.events.emit("migration.granted", epoch=order.epoch)
                answer = await self._read(limits.restore_s)
            self._resumed = checked(answer, Resumed, self._peer.peer)
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
        self._take(Signal.RESUMED)

    @asynccontextmanager
    async def _freeze_limit(self, until_ns: int, most_s: float) -> AsyncIterator[None]:
        """Bound a step of the freeze by its own deadline, and by that of the whole.

        Raises ``MigrationError`` for what does not fit: while there is time to restore as well, the source
        takes its server back at once.
        """
        #: wire-format 9.2: a server SHOULD NOT stand still for longer
        left_s = (until_ns - now_ns()) / NS_PER_S
        try:
            async with asyncio.timeout(max(LEAST_S, min(most_s, left_s))):
                yield
        except TimeoutError:
            raise MigrationError(
                f"the state does not cross in time: {self._tally.size_bytes} bytes in "
                f"{min(most_s, left_s):.1f} s, and a server may stand still for "
                f"{self._order.deadlines.freeze_s:g} s",
                hint="take a faster link between the edges, or an engine that copies memory ahead",
            ) from None

    def _next_lease(self, at_most_ns: int) -> int:
        """When a lease ends that is given now."""
        lease_s = min(self._order.deadlines.restore_s, LEASE_S)
        return min(at_most_ns, now_ns() + round(lease_s * NS_PER_S))

    async def _renew_lease(self, at_most_ns: int) -> None:
        """Lengthen the destination's lease for as long as it can be told so, up to that moment.

        A short lease, as the server here waits for its end when the destination cannot be heard.
        """
        assert self._stream is not None
        until_ns = min(at_most_ns, now_ns() + round(self._order.deadlines.restore_s * NS_PER_S))
        with suppress(FerryError):  # whoever reads the stream hears that it broke
            while now_ns() < until_ns:
                await asyncio.sleep(LEASE_S / RENEWALS)
                # before it leaves: what the destination may have is what counts here
                self._lease_ns = max(self._lease_ns, self._next_lease(until_ns))
                await self._stream.write(Renew(resume_before_ns=self._lease_ns))

    async def _write_all(self, chunk: bytes, following: AsyncIterator[bytes]) -> bytes:
        """Send the checkpoint; what goes with End is returned and counted, not sent."""
        assert self._stream is not None
        if not isinstance(self._engine, GivesAtOnce):
            # the next may take its time: this one does not wait for it
            await write_chunk(self._stream, chunk, self._tally)
            async for chunk in following:
                await write_chunk(self._stream, chunk, self._tally)
            return b""
        async for following_chunk in following:
            await write_chunk(self._stream, chunk, self._tally)
            chunk = following_chunk
        if len(chunk) > PIECE_BYTES:
            await write_chunk(self._stream, chunk, self._tally)
            return b""
        self._tally.add(chunk)
        return chunk

    async def _answer(self, kind: type[M], timeout_s: float) -> M:
        """Read the next message and check its type. Raises ``MigrationError``, ``TimeoutError``."""
        return checked(await self._read(timeout_s), kind, self._peer.peer)

    async def _read(self, timeout_s: float) -> ToSource:
        """Read the next message. Raises ``MigrationError``, ``TimeoutError``."""
        assert self._stream is not None
        async with asyncio.timeout(timeout_s):
            return await self._stream.read()

    async def _ask_destination(self, reason: str, fence_s: float) -> None:
        """Find out what became of a transfer that failed after End: ask, or wait for the fence."""
        loop = asyncio.get_running_loop()
        question = AbortMove(epoch=self._order.epoch, reason=reason)
        while (left_s := fence_s - loop.time()) > LEAST_S:
            try:
                verdict = await self._peer.call(ABORT, question, timeout_s=min(ASK_S, left_s), wait=True)
            except FerryError:
                await asyncio.sleep(min(ASK_AGAIN_S, max(0.0, fence_s - loop.time())))
                continue
            self._told = True
            self._resumed, self._why_not = verdict.resumed, verdict.reason
            self._take(Signal.RESUMED if verdict.resumed is not None else Signal.ABORTED)
            return
        # Both hosts' CLOCK_MONOTONIC is one clock here. The server there holds itself back when the lease is
        # over; the margin is for one that was stopped at that moment, which the kernel ends.
        await asyncio.sleep(FENCE_MARGIN_S)
        self._take(Signal.EXPIRED)

    async def _commit(self) -> BaseException | None:
        """Tell the destination of the commit, and give the server up once it has heard.

        Returns why the service is lost, if it is.
        """
        order = self._order
        lost: BaseException | None = None
        with suppress(Exception), self._host.events.phase("migration.commit", epoch=order.epoch):
            if not await self._tell_commit():
                self._take(Signal.ABORTED)
                raise MigrationError("the destination took its server down before it heard of the commit")
            # the server here is removed last: until the drain is over, its process has pages that exist
            # nowhere else
            lost = await self._drain()
            try:
                async with asyncio.timeout(order.deadlines.commit_s):
                    await self._engine.give_up_source(order)
            except Exception:  # it is frozen and fenced; without the engine's help it is ended by force
                await self._host.container.stop_service(grace_s=0.0)
                raise
        if self._machine.step is Step.ABORT:
            return None
        self._take(Signal.SETTLED if lost is None else Signal.EXPIRED)
        if self._host.forwarder is not None:
            self._host.forwarder.close_later(self._host.linger_s)
        return lost

    async def _drain(self) -> BaseException | None:
        """Serve the memory that stayed here until the destination has it. Returns why it never will."""
        if not isinstance(self._engine, KeepsSource):
            return None
        order = self._order
        try:
            with self._host.events.phase("migration.pages", epoch=order.epoch) as detail:
                async with asyncio.timeout(order.deadlines.pages_s):
                    detail.update(await self._engine.drain_source(order))
        except Exception as error:
            return MigrationError(
                f"the service is lost: not all of its memory got to {order.destination}: {describe(error)}",
                hint="post-copy and hybrid need the link between the edges until all memory has crossed it",
            )
        return None

    async def _tell_commit(self) -> bool:
        """Repeat the commit until it is answered: True when the destination serves for good, else False.

        No deadline: there is nothing else the source may do. What it cannot know is not guessed.
        """
        with suppress(FerryError, TimeoutError):
            if self._stream is None or self._stream_failed:
                raise MigrationError("the stream was an earlier agent's, or has failed")
            if not self._granted:
                await self._stream.write(Commit(epoch=self._order.epoch))
            await self._answer(Committed, ASK_S)
            await self._stream.done_writing()
            return True
        while True:
            try:
                verdict = await self._peer.call(
                    COMMIT, Commit(epoch=self._order.epoch), timeout_s=ASK_S, wait=True
                )
            except FerryError:
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                self._resumed, self._why_not = verdict.resumed, verdict.reason
                return verdict.resumed is not None

    async def _roll_back(self, failure: BaseException) -> BaseException:
        """Bring the source's server back: the destination will not serve. Returns what went wrong."""
        order = self._order
        reason = describe(failure)
        # First nothing more leaves this host for the destination; only then does the server here go on.
        if self._stream is not None:
            self._stream.cancel()
        if self._host.forwarder is not None:
            self._host.forwarder.close()
        # beside the rollback: clients wait for the server, nobody waits for the destination to clean up
        telling = asyncio.get_running_loop().create_task(self._tell_abort(reason))
        try:
            if self._touched:
                if self._host.address is not None:
                    # before the server resumes: its first datagram needs the address, and the routers
                    # heed a larger number only; the destination announced with 2 * epoch
                    async with asyncio.timeout(order.deadlines.restore_s):
                        await self._host.address.take()
                    self._host.address.announce(2 * order.epoch + 1)
                await self._bring_back(reason)
            self._take(Signal.SETTLED)
        except Exception as error:  # it must be told, not hidden: nobody serves
            self._take(Signal.FAILED)
            failure = MigrationError(
                f"{reason}; and the server could not be brought back: {describe(error)}",
                hint="look at the server's log; the service is down",
            )
        await telling
        if self._why_not is not None and self._why_not not in str(failure) and self._why_not != reason:
            # the stream tells at best that it broke; the destination knows why
            peer = self._order.destination
            failure = MigrationError(f"{describe(failure)}; {peer}: {self._why_not}")
        return failure

    async def _bring_back(self, reason: str) -> None:
        """Have the engine bring the server back, again and again if need be.

        What stands in the way may pass: the server cannot lift its fence while its disk is full.
        """
        loop, limit_s = asyncio.get_running_loop(), self._order.deadlines.restore_s
        last_s = loop.time() + max(limit_s, BRING_BACK_S)
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    await self._engine.resume_source(self._order, reason)
                return
            except Exception:  # whatever an engine raises, the server is to be brought back
                # a server that is dead does not come back by being asked again
                if self._host.container.service_pid is None or loop.time() >= last_s:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)

    async def _tell_abort(self, reason: str) -> None:
        """Tell the destination to free what it prepared, which decides nothing any more."""
        if self._told:
            return
        with suppress(FerryError):
            question = AbortMove(epoch=self._order.epoch, reason=reason)
            self._why_not = (await self._peer.call(ABORT, question, timeout_s=ASK_S)).reason

    def _finish(self, failure: BaseException | None) -> Outcome:
        """Emit ``migration.finished`` and return the outcome."""
        step = self._machine.step
        outcome = Outcome(
            epoch=self._order.epoch,
            outcome=step.value,
            serves_at={Step.MOVED: self._order.destination, Step.STAYED: self._order.source}.get(step),
            transferred_bytes=self._tally.size_bytes,
            resumed_t_ns=self._resumed.t_ns if self._resumed is not None else None,
            error=describe(failure) if failure is not None else None,
            hint=getattr(failure, "hint", None),
            notice=self._notice,
            steps_ms={name: round(value, 3) for name, value in self._steps_ms.items()},
            forwarded_datagrams=self._host.forwarder.forwarded if self._host.forwarder is not None else 0,
        )
        self._host.events.emit(
            "migration.finished",
            epoch=outcome.epoch,
            outcome=outcome.outcome,
            transferred_bytes=outcome.transferred_bytes,
            forwarded_datagrams=outcome.forwarded_datagrams,
            error=outcome.error,
            steps_ms=outcome.steps_ms,
        )
        return outcome
