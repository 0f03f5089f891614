"""What each kind of fault does to the world of ownership, as a table. How it is drawn: ``fault_kinds``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from simulation.disk import Disk
from simulation.ownership.machinery import SimulatedContainer
from simulation.ownership.story import Fault
from simulation.paths import Paths
from simulation.process import Process

End = Callable[[], None]


class FaultTarget(Protocol):
    """What the faults use of the world that they act on. A host is named as in ``Fault.at``."""

    @property
    def hosts(self) -> list[str]:
        """All hosts: the edges and the orchestrator's."""
        ...

    @property
    def agents(self) -> Mapping[str, Process]:
        """The agent's process by host, and the orchestrator's; of those that were ever started."""
        ...

    @property
    def containers(self) -> Mapping[str, SimulatedContainer]:
        """The server's place by edge."""
        ...

    @property
    def disks(self) -> Mapping[str, Disk]:
        """The disk by host."""
        ...

    @property
    def paths(self) -> Paths:
        """The links between the hosts."""
        ...

    def start_agent(self, name: str) -> None:
        """Start a host's agent, or the orchestrator."""
        ...

    def kill_agent(self, name: str) -> None:
        """SIGKILL."""
        ...

    def tear_journal(self, name: str) -> None:
        """Cut the last line of a host's journal in half."""
        ...

    def pause(self, process: Process | None) -> End | None:
        """SIGSTOP; what is returned is SIGCONT."""
        ...

    def server_killed(self, process: Process) -> None:
        """SIGKILL for a server."""
        ...


#: does a fault and returns what mends it, if anything does
Action = Callable[[FaultTarget, Fault], End | None]


def _kill_agent(world: FaultTarget, fault: Fault) -> End:
    world.kill_agent(fault.at)
    return lambda: world.start_agent(fault.at)


def _tear_journal(world: FaultTarget, fault: Fault) -> End:
    world.kill_agent(fault.at)
    world.tear_journal(fault.at)
    return lambda: world.start_agent(fault.at)


def _stop_agent(world: FaultTarget, fault: Fault) -> End | None:
    return world.pause(world.agents.get(fault.at))


def _stop_server(world: FaultTarget, fault: Fault) -> End | None:
    return world.pause(world.containers[fault.at].process) if fault.at in world.containers else None


def _kill_server(world: FaultTarget, fault: Fault) -> None:
    container = world.containers.get(fault.at)
    if container is not None and container.process is not None:
        world.server_killed(container.process)


def _cut(*names: str, one_way: bool = False) -> Action:
    def begin(world: FaultTarget, fault: Fault) -> End:
        hosts = [fault.at] if one_way else world.hosts
        for name in names:
            world.paths.cut(name, hosts)

        def mend() -> None:
            for name in names:
                world.paths.mend(name, hosts)

        return mend

    return begin


def _full_disk(world: FaultTarget, fault: Fault) -> End:
    world.disks[fault.at].full = True

    def mend() -> None:
        world.disks[fault.at].full = False

    return mend


def _short_write(world: FaultTarget, fault: Fault) -> None:
    world.disks[fault.at].short_writes = 1


def _lose_power(*, sync_lost: bool) -> Action:
    def begin(world: FaultTarget, fault: Fault) -> End:
        world.kill_agent(fault.at)
        _kill_server(world, fault)
        world.disks[fault.at].lose_power(sync_lost=sync_lost)
        return lambda: world.start_agent(fault.at)

    return begin


#: kind -> what it does; the names are those of ``fault_kinds.KINDS``
ACTIONS: dict[str, Action] = {
    "agent-killed": _kill_agent,
    "agent-stopped": _stop_agent,
    "server-stopped": _stop_server,
    "server-killed": _kill_server,
    "edge-link-cut": _cut("edge"),
    "edge-link-cut-one-way": _cut("edge", one_way=True),
    "core-cut": _cut("detour", "core"),
    "all-cut": _cut("edge", "detour", "core"),
    "disk-full": _full_disk,
    "short-write": _short_write,
    "power-lost": _lose_power(sync_lost=False),
    "sync-lost": _lose_power(sync_lost=True),
    "torn-journal": _tear_journal,
}
