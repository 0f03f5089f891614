"""Stands where the machine is, behind the interfaces of the real parts: sockets, UDP ports, containers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quicferry.model import Endpoint
from quicferry.units import now_ns
from simulation.clock import VirtualLoop
from simulation.disk import Disk
from simulation.ownership.adapter import BATCH, Datagram
from simulation.process import Process, State, current
from simulation.rpc import Network

LOOPBACK_S = 0.00005
QUEUE_DATAGRAMS = 512  # of a UDP socket; what comes beyond is dropped


class _Transport:
    """A datagram transport on a host's loopback."""

    def __init__(self, sockets: Sockets, process: Process, protocol: Any, local: tuple[str, int]) -> None:
        self._sockets = sockets
        self.process = process
        self.protocol = protocol
        self.local = local
        self.remote: tuple[str, int] | None = None
        self.closed = False

    def sendto(self, data: bytes, addr: tuple[str, int] | None = None) -> None:
        to = addr or self.remote
        assert to is not None
        if not self.closed and self.process.alive:
            self._sockets.deliver(self, to, data)

    def close(self) -> None:
        self.closed = True
        self._sockets.forget(self)


class Sockets:
    """The kernel's part of all hosts: loopback datagrams, and attempts to connect by TCP."""

    def __init__(self, loop: VirtualLoop, rpc: Network) -> None:
        self._loop = loop
        self._rpc = rpc
        self._bound: dict[tuple[str, int], _Transport] = {}  # (host, port)
        self._next_port = 50_000

    async def datagram_endpoint(
        self,
        factory: Callable[[], Any],
        *,
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
    ) -> tuple[Any, Any]:
        process = current()
        assert process is not None and local_addr is not None
        port = local_addr[1]
        if port == 0:
            self._next_port += 1
            port = self._next_port
        key = (process.host, port)
        if key in self._bound:
            raise OSError(98, "Address already in use")
        transport = _Transport(self, process, factory(), (local_addr[0], port))
        transport.remote = remote_addr
        self._bound[key] = transport
        process.at_death.append(transport.close)
        transport.protocol.connection_made(transport)
        return transport, transport.protocol

    def deliver(self, sender: _Transport, to: tuple[str, int], data: bytes) -> None:
        """Bring a datagram to whoever is bound there; if nobody is, the sender hears of it."""

        def arrive() -> None:
            receiver = self._bound.get((sender.process.host, to[1]))
            if receiver is not None:
                receiver.process.call_soon(receiver.protocol.datagram_received, data, sender.local)
            elif not sender.closed:
                sender.process.call_soon(sender.protocol.error_received, ConnectionRefusedError())

        self._loop.physics(LOOPBACK_S, arrive)

    def forget(self, transport: _Transport) -> None:
        """A socket is closed."""
        key = (transport.process.host, transport.local[1])
        if self._bound.get(key) is transport:
            del self._bound[key]

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        process = current()
        assert process is not None
        path, peer = self._rpc.route(process.host, host)
        if not (path.carries(process.host) and path.carries(peer)):
            await asyncio.sleep(3600)
        await asyncio.sleep(2 * path.latency_s)
        if (peer, port) not in self._rpc.servers:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = factory()
        transport = _Stream(self._loop, protocol)
        protocol.connection_made(transport)
        return transport, protocol


class _Stream(asyncio.Transport):
    """A TCP connection that nobody says anything on."""

    def __init__(self, loop: VirtualLoop, protocol: Any) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._closing = False

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closing


class Ports:
    """The UDP ports of servers, by address; makes what stands for ``apps.udp.UdpPort``."""

    def __init__(self, leave: Callable[[Endpoint, bytes, tuple[str, int]], None]) -> None:
        self.leave = leave
        self.bound: dict[str, SimulatedUdpPort] = {}  # by host

    def make(self, listen: Endpoint, received: Any, *, stamped: bool = False) -> SimulatedUdpPort:
        """As the class's constructor."""
        return SimulatedUdpPort(self, listen, received)


class SimulatedUdpPort:
    """A bound socket that can be muted and drained."""

    def __init__(self, ports: Ports, listen: Endpoint, received: Callable[[list[Datagram]], None]) -> None:
        process = current()
        assert process is not None
        self.process: Process = process
        self._ports = ports
        self._listen = listen
        self._received = received
        self._queue: deque[Datagram] = deque()
        self._reading = False
        self._woken = False
        if process.host in ports.bound:
            raise OSError(98, "Address already in use")
        ports.bound[process.host] = self
        process.at_death.append(self._unbind)

    def _unbind(self) -> None:
        if self._ports.bound.get(self.process.host) is self:
            del self._ports.bound[self.process.host]

    def arrive(self, data: bytes, sender: tuple[str, int]) -> None:
        """A datagram for this socket."""
        if len(self._queue) < QUEUE_DATAGRAMS:
            self._queue.append(Datagram(data, sender, now_ns()))
            self._wake()

    def _wake(self) -> None:
        if self._reading and not self._woken:
            self._woken = True
            self.process.call_soon(self._readable)

    def _readable(self) -> None:
        self._woken = False
        if self._reading:
            batch = self.drain()
            if batch:
                self._received(batch)
            if self._queue:
                self._wake()

    def start(self) -> None:
        self._reading = True
        if self._queue:
            self._wake()

    def mute(self) -> None:
        self._reading = False

    def drain(self) -> list[Datagram]:
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    def send(self, data: bytes, receiver: tuple[str, int], local: str | None = None) -> bool:
        if self.process.alive:
            self._ports.leave(self._listen, data, receiver)
        return True

    def close(self) -> None:
        self.mute()
        self._unbind()


def caller_lives() -> bool:
    """Whether the process whose code runs now still exists.

    One that is killed in the middle of a callback runs on to the callback's end: without any effect.
    """
    process = current()
    return process is None or process.alive


class SimulatedContainer:
    """A place on an edge where the server's process lives; it outlives the agent."""

    def __init__(self, host: str, disk: Disk, launch: Callable[[str, Sequence[str]], Process]) -> None:
        self._host = host
        self._disk = disk
        self._launch = launch
        self.process: Process | None = None
        self.init_pid = 1
        self._pids = 100

    @property
    def service_pid(self) -> int | None:
        return self._pids if self.process is not None and self.process.alive else None

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        self._pids += 1
        if not caller_lives():
            return self._pids
        self.process = self._launch(self._host, argv)
        return self._pids

    def outside_pid(self, pid: int) -> int | None:
        """None: it is no process of this machine."""
        return None

    def adopt(self, pid: int) -> None:
        """Engines that restore processes are not in this world."""

    async def stop_service(self, *, grace_s: float = 1.0) -> None:
        if self.process is not None and caller_lives():
            if self.process.state is State.RUNNING and grace_s:
                await asyncio.sleep(min(grace_s, 0.01))
            self.process.kill()

    async def end_processes(self) -> None:
        await self.stop_service(grace_s=0.0)

    def place_of(self, path: str) -> str:
        return path

    def path(self, inside: str) -> Path:
        return self._disk.path(inside)

    async def close(self) -> None:
        await self.stop_service(grace_s=0.0)
