"""Injects the faults of a run: at an exact point of the move, from outside, into real processes.

Theory of operation. Every point has an event and the agent that tells of it (``faults.TRIGGERS``). That
agent is configured to stop itself (SIGSTOP) directly after the event, so the move stands still at that
point; the injector does what the kind says (``fault_kinds.KINDS``) and lets the agent go on. All of it is
done to real processes, links and files; the exceptions are bytes that the sending agent itself changes,
and a client that is told to refuse. At the point ``dump``, and where CRIU is to be killed, the agent goes
on first: what is wanted there is a moment in the work of CRIU.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable

import psutil

from quicferry.errors import FerryError
from quicferry.events import Event
from quicferry.experiment.context import RunContext
from quicferry.experiment.fault_kinds import (
    DESTINATION,
    KINDS,
    SOURCE,
    Injection,
    Mend,
    RunProcesses,
    count_criu,
)
from quicferry.experiment.faults import TRIGGERS
from quicferry.migration.agent.failpoints import Failpoints
from quicferry.spec import Fault, FaultPoint

STOP_S = 5.0  # for an agent that has told of its event to stop itself
CRIU_S = 5.0  # for CRIU to begin
DUMP_S = 0.06  # about as long as a dump; one with a base image may be over earlier, and restored
RESTORE_S = 0.005  # a restore, from when CRIU has made the first process


class FaultInjector:
    """Injects the faults of one run. ``heard`` takes events; ``stop`` ends the faults that still last."""

    def __init__(self, context: RunContext, processes: RunProcesses) -> None:
        self._context = context
        self._processes = processes
        self.faults = context.spec.faults
        self._left = list(self.faults)
        self._mending: list[threading.Thread] = []
        self._over = threading.Event()
        if self.faults:
            context.listeners.append(self.heard)

    def failpoints(self, edge: str) -> Failpoints:
        """The faults that the agent of an edge is configured to cause itself."""
        parts = {part for part in (SOURCE, DESTINATION) if self._context.part(part) == edge}
        triggers = [TRIGGERS[fault.point] for fault in self.faults]
        damaged = [fault.point for fault in self.faults if KINDS[fault.kind].source_damages]
        return Failpoints(
            stop_at=sorted({trigger.event for trigger in triggers if trigger.part in parts}),
            damage=sorted(damaged) if SOURCE in parts else [],
            state_in_files=bool(self.faults),
        )

    @property
    def client_refuses(self) -> bool:
        """Whether the client is configured to refuse every move."""
        return any(KINDS[fault.kind].client_refuses for fault in self.faults)

    def heard(self, event: Event) -> None:
        """Inject the faults that are due at an event; its agent has stopped itself there."""
        here = [fault for fault in self._left if self._is_due(fault, event)]
        if not here:
            return
        program = self._processes.program(TRIGGERS[here[0].point].part)
        program.is_held, held = True, program.process
        try:
            # it tells first and stops then: what is done too early would be undone by its stop
            _await_stop(held.pid)
            for fault in here:
                self._left.remove(fault)
                if fault.point is FaultPoint.DUMP or KINDS[fault.kind].within_criu:
                    self._in_the_background(fault, self._inject_within)
                else:
                    self._inject(fault)
        except (FerryError, OSError) as error:
            self._context.warnings.append(f"the fault {here[0].name} could not be injected: {error}")
        finally:
            held.send_signal(signal.SIGCONT)  # nothing happens when it was killed
            program.is_held = False

    def _is_due(self, fault: Fault, event: Event) -> bool:
        trigger = TRIGGERS[fault.point]
        return event.name == trigger.event and event.vantage == self._context.part(trigger.part)

    # a ``Service``: it ends, with all that lasts, before the processes that it does something to

    name = "faults"

    def start(self) -> None:
        """Nothing: it only listens."""

    def wait_ready(self, timeout_s: float) -> None:
        """Nothing to wait for."""

    def stop(self) -> None:
        """Mend the faults that still last, and wait until they are mended."""
        self._over.set()
        for thread in self._mending:
            thread.join()

    def _mend_later(self, fault: Fault, mend: Mend) -> None:
        """Mend what a fault did when its time is over, or the run."""

        def wait_and_mend(fault: Fault) -> None:
            self._over.wait(fault.seconds)
            try:
                mend.act()
                self._context.events.emit("fault.mended", fault=fault.name, what=mend.what)
            except (FerryError, OSError) as error:
                self._context.warnings.append(f"{fault.name}: {mend.what}: {error}")

        self._in_the_background(fault, wait_and_mend)

    def _in_the_background(self, fault: Fault, work: Callable[[Fault], None]) -> None:
        thread = threading.Thread(target=work, args=(fault,), name=fault.name, daemon=True)
        thread.start()
        self._mending.append(thread)

    def _inject_within(self, fault: Fault) -> None:
        """Inject a fault at a moment within the work of CRIU, drawn by the seed of the run."""
        within_s = DUMP_S if fault.point is FaultPoint.DUMP else RESTORE_S
        drawn_s = random.Random(f"{self._context.spec.seed} {fault.name}").uniform(0, within_s)
        try:
            # one may wait since before the downtime; when it restores, it forks what becomes the server
            least = 1 if fault.point is FaultPoint.DUMP else 2
            self._await_criu(TRIGGERS[fault.point].part, least)
            time.sleep(drawn_s)
            self._inject(fault)
        except (FerryError, OSError) as error:
            self._context.warnings.append(f"the fault {fault.name} could not be injected: {error}")

    def _inject(self, fault: Fault) -> None:
        part = TRIGGERS[fault.point].part
        mend = KINDS[fault.kind].act(Injection(fault, part, self._context, self._processes))
        if mend is not None and fault.seconds is not None:
            self._mend_later(fault, mend)
        self._context.events.emit("fault.injected", fault=fault.name, seconds=fault.seconds)

    def _await_criu(self, part: str, least: int) -> None:
        deadline = time.monotonic() + CRIU_S
        while time.monotonic() < deadline:
            if count_criu(self._processes, part) >= least:
                return
            time.sleep(0.0002)
        raise FerryError(f"CRIU did not run at the {part}")


def _await_stop(pid: int) -> None:
    """Wait until a process has stopped. Raises ``FerryError`` when it does not."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return
        except psutil.Error as error:
            raise FerryError(f"process {pid} is gone: {error}") from error
        time.sleep(0.0005)
    raise FerryError(f"process {pid} did not stop within {STOP_S:g} s")
