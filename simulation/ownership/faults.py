"""What goes wrong in the world of ownership, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.ownership.story import Fault

if TYPE_CHECKING:
    from simulation.ownership.world import OwnershipWorld

End = Callable[[], None]


@dataclass(frozen=True)
class Kind:
    """One kind of fault. ``begin`` does it and returns what mends it, if anything does."""

    title: str
    weight: int
    begin: Callable[[OwnershipWorld, Fault], End | None]
    seconds: tuple[float, ...] = (0.0,)
    orchestrator_too: bool = False


def _kill_agent(world: OwnershipWorld, fault: Fault) -> End:
    world.kill_agent(fault.at)
    return lambda: world.start_agent(fault.at)


def _tear_journal(world: OwnershipWorld, fault: Fault) -> End:
    world.kill_agent(fault.at)
    world.tear_journal(fault.at)
    return lambda: world.start_agent(fault.at)


def _stop_agent(world: OwnershipWorld, fault: Fault) -> End | None:
    return world.pause(world.agents.get(fault.at))


def _stop_server(world: OwnershipWorld, fault: Fault) -> End | None:
    return world.pause(world.containers[fault.at].process) if fault.at in world.containers else None


def _kill_server(world: OwnershipWorld, fault: Fault) -> None:
    container = world.containers.get(fault.at)
    if container is not None and container.process is not None:
        world.server_killed(container.process)


def _cut(*names: str, one_way: bool = False) -> Callable[[OwnershipWorld, Fault], End]:
    def begin(world: OwnershipWorld, fault: Fault) -> End:
        hosts = [fault.at] if one_way else world.hosts
        for name in names:
            world.paths.cut(name, hosts)

        def mend() -> None:
            for name in names:
                world.paths.mend(name, hosts)

        return mend

    return begin


def _full_disk(world: OwnershipWorld, fault: Fault) -> End:
    world.disks[fault.at].full = True

    def mend() -> None:
        world.disks[fault.at].full = False

    return mend


def _short_write(world: OwnershipWorld, fault: Fault) -> None:
    world.disks[fault.at].short_writes = 1


_WHILE = (0.05, 0.3, 1.0, 3.0, 8.0)

KINDS: dict[str, Kind] = {
    "agent-killed": Kind("SIGKILL; started again later", 8, _kill_agent, _WHILE, orchestrator_too=True),
    "agent-stopped": Kind("SIGSTOP, SIGCONT later", 5, _stop_agent, _WHILE, orchestrator_too=True),
    "server-stopped": Kind("the server's process is paused", 2, _stop_server, (0.05, 0.3, 1.0)),
    "server-killed": Kind("the server's process is killed", 1, _kill_server),
    "edge-link-cut": Kind("the link between the edges, both ways", 6, _cut("edge"), _WHILE),
    "edge-link-cut-one-way": Kind("what one edge sends there", 3, _cut("edge", one_way=True), _WHILE),
    "core-cut": Kind("the detour and the orchestrator's links", 3, _cut("detour", "core"), _WHILE),
    "all-cut": Kind("no agent reaches another", 5, _cut("edge", "detour", "core"), _WHILE),
    "disk-full": Kind("nothing can be written", 3, _full_disk, _WHILE, orchestrator_too=True),
    "short-write": Kind("one write is cut in half, without an error", 2, _short_write),
    "torn-journal": Kind("SIGKILL in the middle of a write; started again", 3, _tear_journal, _WHILE),
}
