"""A network that is kept for the next run: deployed once, given back clean, or built anew.

What costs time is to start the process that plays, and to build nodes and links. What could carry something
from one run into the next is all the rest, so it is not kept: every process in the nodes is ended, and the
cable with whatever is on its way in it; the next run has a cable of its own, with its own seed. After
that, each node's state (``node_state``) must be that of the deployment. Otherwise, and after any failure, the
network is destroyed, and the next run builds one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from quicferry.emulation.mininet import node_state
from quicferry.emulation.mininet.emulator import AT_ONCE, END_TIMEOUT_S, MininetEmulator, require_private_root
from quicferry.emulation.sandbox.namespaces import processes_in_networks
from quicferry.errors import EmulationError, FerryError
from quicferry.fork_server import ForkServer
from quicferry.model import Topology
from quicferry.process import TimeoutExpired, children_of, stat_fields

#: Settings of a node's network that something in a run changes: baselines with Multipath TCP.
SETTINGS = tuple(
    f"mptcp/{name}" for name in ("enabled", "add_addr_timeout", "pm_type", "scheduler", "checksum_enabled")
)


class KeptEmulator(MininetEmulator):
    """A ``MininetEmulator`` whose network stays after the ``with`` block, for a run of an equal topology.

    ``next_run`` comes before each ``with`` block, ``tidy_up`` after it, when nothing is in a hurry, and
    ``destroy`` at the very end. ``why`` says why the last network was not kept, or None.
    """

    def __init__(self, *, forks: ForkServer | None = None) -> None:
        super().__init__(Path(), forks=forks)
        self._number = 0
        self.why: str | None = None
        self._deployed: tuple[Topology, str | None] | None = None
        self._states: dict[str, tuple[str, ...]] = {}
        self._mounts: dict[str, frozenset[str]] = {}
        self._may_stay = True

    def next_run(
        self, topology: Topology, work_dir: Path, *, seed: int, backend: str | None, may_stay: bool = True
    ) -> int:
        """What the next run asks for, as in ``MininetEmulator``; a network that it cannot use is destroyed.

        Without ``may_stay`` its network is not kept: it is going to be harmed on purpose. Returns of how many
        runs of its network it is going to be, from 1.
        """
        self._work_dir, self._seed, self._backend, self._may_stay = work_dir, seed, backend, may_stay
        if self._deployed != (topology, backend):
            self.destroy()
            self._number = 0
        self._number += 1
        return self._number

    @property
    def is_kept(self) -> bool:
        """Whether a network is there for the next run."""
        return self._deployed is not None

    def deploy(self, topology: Topology) -> None:
        """As ``MininetEmulator``; the network that is there is used if it is equal."""
        require_private_root()
        if self._deployed == (topology, self._backend):
            try:
                self._work_dir.mkdir(parents=True, exist_ok=True)
                self._link_layer().start_again(self._seed, self._work_dir)
            except BaseException:
                self.destroy()
                raise
            return
        self.destroy()
        super().deploy(topology)
        names = [node.name for node in topology.nodes]
        self._mounts = {name: node_state.mounts_of(self.pid(name)) for name in names}
        self._states = self._read_states(names)
        self._deployed = (topology, self._backend)

    def destroy(self) -> None:
        self._deployed, self._states, self._mounts = None, {}, {}
        super().destroy()
        _reap()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what runs in the network: nothing of this run writes a file or sends a packet any more."""
        self.why = self._why_not(error)
        if self.why is None:
            try:
                self._link_layer().halt()  # first: what a dying program still sends goes nowhere
                self._end_programs()
            except (FerryError, OSError) as problem:
                self.why = str(problem)
        if self.why is not None:
            self.destroy()

    def _why_not(self, error: BaseException | None) -> str | None:
        if error is not None:
            return f"the run failed: {error}"
        if not self._may_stay:
            return "the run had faults"
        if self._deployed is None or self._topology != self._deployed[0]:
            return "a host has changed its place"
        return None

    def tidy_up(self) -> None:
        """After the ``with`` block: make the network as it was, or destroy it and say ``why``."""
        if self._deployed is None:
            return
        try:
            self.why = self._tidied_up()
        except (FerryError, OSError) as problem:
            self.why = f"it could not be tidied up: {problem}"
        if self.why is not None:
            self.destroy()

    def _tidied_up(self) -> str | None:
        """Take away what the run left; returns what is not as it was, None when all is."""
        names = list(self._states)

        def tidy(name: str) -> tuple[str, ...]:
            return node_state.tidied(self.pid(name), self._mounts[name], SETTINGS)

        # the cable, which carries nothing any more, closes its sockets meanwhile: the next one waits for that
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tidy") as pool:
            now = dict(zip(names, pool.map(tidy, names), strict=True))
        changed = [name for name in names if now[name] != self._states[name]]
        return f"the run has changed {', '.join(changed)}" if changed else None

    def _end_programs(self) -> None:
        """End all processes in the nodes but those that hold them. Raises ``EmulationError``."""
        _end_all_but({self.pid(node.name) for node in self.topology.nodes}, self._networks)
        for process in self._children:
            if process.poll() is None:
                process.kill()  # it may have gone to a network of its own
                try:
                    process.wait(END_TIMEOUT_S)
                except TimeoutExpired as late:
                    raise EmulationError(f"process {process.pid} does not end") from late
            if process.stdin is not None:
                process.stdin.close()
        self._children, self._measured = [], {}
        _reap()

    def _read_states(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        asked = list(names)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="state") as pool:
            return dict(
                zip(
                    asked,
                    pool.map(lambda name: node_state.state_of(self.pid(name), SETTINGS), asked),
                    strict=True,
                )
            )


def _end_all_but(holders: set[int], networks: set[int]) -> None:
    """End every process in these networks but those that hold them. Raises ``EmulationError``."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while pids := set(processes_in_networks(networks)) - holders:
        if time.monotonic() > deadline:
            raise EmulationError(f"processes {sorted(pids)} do not end")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.001)  # again, as a process may have forked meanwhile


def _reap() -> None:
    """Collect the orphans of a run that this process has inherited as the subreaper (``fork_server``)."""
    for pid in children_of(os.getpid()):
        try:
            if stat_fields(Path(f"/proc/{pid}"))[0] == "Z":
                os.waitpid(pid, os.WNOHANG)
        except (OSError, ChildProcessError):
            continue  # somebody who knew it was faster
