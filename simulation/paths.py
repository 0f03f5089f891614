"""Paths between hosts for what is no datagram of a client: RPC connections and attempts to connect.

A path has a latency and can be cut, both ways or one way. TCP hides a short cut (what was sent comes late);
one that lasts longer than keepalive allows breaks the connections on it, at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simulation.clock import VirtualLoop
from simulation.process import Process, State

KEEPALIVE_S = 4.0  # a ping every 2 s that must be answered within 2 s, as rpc/channel.py asks gRPC to do
RETRANSMIT_S = 0.2  # TCP's first retransmission timeout


@dataclass
class Path:
    """One network between hosts. ``down`` has the hosts that cannot send on it."""

    name: str
    latency_s: float
    down: dict[str, float] = field(default_factory=dict)  # host -> since when

    def carries(self, sender: str) -> bool:
        """Whether what that host sends gets through."""
        return sender not in self.down


class Connection:
    """One TCP connection between two processes: ordered, reliable, until it breaks."""

    def __init__(self, loop: VirtualLoop, path: Path, client: Process, server: Process) -> None:
        self._loop = loop
        self.path = path
        self.client = client
        self.server = server
        self.broken = False
        self._held: list[tuple[Process, Process, Callable[[], None]]] = []
        self._last: dict[Process, float] = {}
        self.on_break: list[tuple[Process, Callable[[], None]]] = []

    def send(self, sender: Process, arrive: Callable[[], None]) -> None:
        """Let ``arrive`` be called in the other process when the message has come."""
        if self.broken or not sender.alive:
            return
        receiver = self.server if sender is self.client else self.client
        if self.path.carries(sender.host) and not any(held[0] is sender for held in self._held):
            self._deliver(sender, receiver, arrive, 0.0)
        else:
            self._held.append((sender, receiver, arrive))

    def _deliver(self, sender: Process, receiver: Process, arrive: Callable[[], None], late_s: float) -> None:
        at = max(self._last.get(receiver, 0.0), self._loop.time() + self.path.latency_s + late_s)
        self._last[receiver] = at

        def come() -> None:
            if not self.broken:
                receiver.call_soon(arrive)

        self._loop.physics(at - self._loop.time(), come)

    def flush(self) -> None:
        """The path works again: what was held comes, late."""
        held, self._held = self._held, []
        for sender, receiver, arrive in held:
            if self.path.carries(sender.host):
                self._deliver(sender, receiver, arrive, RETRANSMIT_S)
            else:
                self._held.append((sender, receiver, arrive))

    def break_off(self) -> None:
        """Both ends find out, each as soon as it can."""
        if self.broken:
            return
        self.broken = True
        for process, tell in self.on_break:
            process.call_soon(tell)

    def check_alive(self) -> None:
        """Keepalive: called when its time is over."""
        since = [self.path.down[end.host] for end in (self.client, self.server) if end.host in self.path.down]
        now = self._loop.time()
        stopped = State.STOPPED in (self.client.state, self.server.state)
        if stopped or (since and now - min(since) >= KEEPALIVE_S - 1e-6):
            self.break_off()


class Paths:
    """All paths and the connections on them."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.paths: dict[str, Path] = {}
        self.connections: list[Connection] = []

    def add(self, name: str, latency_s: float) -> Path:
        """A new path."""
        path = self.paths[name] = Path(name, latency_s)
        return path

    def connect(self, path: Path, client: Process, server: Process) -> Connection:
        """A connection that stands."""
        connection = Connection(self._loop, path, client, server)
        self.connections.append(connection)
        for end in (client, server):
            end.at_death.append(lambda: self._died(connection))
        return connection

    def _died(self, connection: Connection) -> None:
        """The kernel closes a dead process's connections, and the peer hears of it if the path works."""
        path = connection.path
        if path.carries(connection.client.host) and path.carries(connection.server.host):
            self._loop.physics(path.latency_s, connection.break_off)
        else:
            self._loop.physics(KEEPALIVE_S, connection.break_off)

    def cut(self, name: str, hosts: list[str]) -> None:
        """What these hosts send on the path is lost from now on."""
        path = self.paths[name]
        for host in hosts:
            path.down.setdefault(host, self._loop.time())
        self._check_later(lambda connection: connection.path is path)

    def mend(self, name: str, hosts: list[str]) -> None:
        """They can send again."""
        path = self.paths[name]
        for host in hosts:
            path.down.pop(host, None)
        for connection in self.connections:
            if connection.path is path and not connection.broken:
                connection.flush()

    def stopped(self, process: Process) -> None:
        """A process was stopped: keepalive pings to it are not answered."""
        self._check_later(lambda connection: process in (connection.client, connection.server))

    def _check_later(self, meant: Callable[[Connection], bool]) -> None:
        for connection in self.connections:
            if not connection.broken and meant(connection):
                self._loop.physics(KEEPALIVE_S, connection.check_alive)
