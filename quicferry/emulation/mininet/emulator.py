"""The emulator on Mininet: nodes by Mininet, links by the link layer, routes from ``routing``.

It works inside a private root only (``sandbox.private_root``), so that it can never touch the machine's
own network; there, ``destroy`` ends the processes and lets the kernel take the namespaces down, which
is faster than taking interface after interface away.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from quicferry.emulation import routing
from quicferry.emulation.emulator import DeployPhase, Progress
from quicferry.emulation.links.calibrate import calibrate
from quicferry.emulation.links.layer import LinkLayer, choose_backend
from quicferry.emulation.mininet.nodes import (
    FerryBridge,
    FerryEdge,
    FerryHost,
    FerryRouter,
    ip_batch,
    new_network,
)
from quicferry.emulation.sandbox.namespaces import (
    network_id,
    network_of,
    processes_in_networks,
    set_network_settings,
    without_carrier,
)
from quicferry.emulation.sandbox.ownership import RUN_TAG, TOOL_TAG
from quicferry.emulation.sandbox.private_root import INIT
from quicferry.errors import EmulationError, InvalidInput, Unsupported
from quicferry.fork_server import ForkServer
from quicferry.model import LinkReading, NodeKind, Topology
from quicferry.process import DEVNULL, Popen, Result, TimeoutExpired, run, spawn
from quicferry.slowness import longer

_CLASSES = {
    NodeKind.HOST: FerryHost,
    NodeKind.EDGE: FerryEdge,
    NodeKind.ROUTER: FerryRouter,
    NodeKind.SWITCH: FerryBridge,
}

CARRIER_TIMEOUT_S = 5.0
AT_ONCE = 4  # programs that set nodes up
END_TIMEOUT_S = 5.0

#: In every node. The addresses that move with a server must not look forged (rp_filter,
#: accept_local), and nobody may tell a host of another way (send_redirects).
_EVERYWHERE = {
    f"ipv4/conf/{where}/{name}": value
    for where in ("all", "default")
    for name, value in (("rp_filter", 0), ("accept_local", 1), ("send_redirects", 0), ("accept_redirects", 0))
}
_ROUTER = {"ipv4/ip_forward": 1}
_NO_IPV6 = {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1}
#: An address works at once and stays when its link is cut for a while; nobody asks for routers.
_IPV6 = {
    f"ipv6/conf/{where}/{name}": value
    for where in ("all", "default")
    for name, value in (
        ("accept_dad", 0),
        ("keep_addr_on_down", 1),
        ("accept_ra", 0),
        ("router_solicitations", 0),
    )
}
_IPV6_ROUTER = {"ipv6/conf/all/forwarding": 1}


class MininetEmulator:
    """An emulated network on Mininet. Needs root and a private root.

    ``work_dir`` is where the link layer keeps its files, ``seed`` seeds losses and jitter. ``backend``
    is ``netem`` or ``cable``; None takes what this kernel can do. ``progress`` is told each phase of
    the deployment when it is complete. Programs that ``forks`` has loaded are started by it.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        seed: int = 1,
        backend: str | None = None,
        progress: Progress | None = None,
        forks: ForkServer | None = None,
    ) -> None:
        self._work_dir = work_dir
        self._seed = seed
        self._backend = backend
        self._forks = forks
        self._progress: Progress = progress if progress is not None else lambda _: None
        self._topology: Topology | None = None
        self._network: Any = None
        self._links: LinkLayer | None = None
        self._ends: dict[tuple[str, str], routing.Attachment] = {}
        self._networks: set[int] = set()
        self._children: list[Popen[bytes]] = []
        self._measured: dict[tuple[str, str], LinkReading] = {}

    # -- deployment -------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        if self._topology is None:
            raise EmulationError("no topology is deployed")
        return self._topology

    def deploy(self, topology: Topology) -> None:
        if self._topology is not None:
            raise EmulationError(f"topology {self._topology.name} is deployed already")
        require_private_root()
        require_programs()
        self._topology = topology
        self._ends = {(end.node, end.link): end for end in routing.attachments(topology)}
        steps = (
            (DeployPhase.NODES, self._make_nodes),
            (DeployPhase.LINKS, self._make_links),
            (DeployPhase.ADDRESSES, self._set_addresses),
            (DeployPhase.ROUTES, self._set_routes),
            (DeployPhase.READY, self._await_carriers),
        )
        try:
            for phase, step in steps:
                try:
                    step()
                except OSError as error:
                    raise EmulationError(f"deploying {topology.name}, {phase}: {error}") from error
                self._progress(phase)
        except BaseException:
            self.destroy()
            raise

    def _make_nodes(self) -> None:
        self._network = new_network()
        has_ipv6 = any(":" in network for network in self.topology.networks())
        for number, node in enumerate(self.topology.nodes, 1):
            if node.kind is NodeKind.SWITCH:
                self._network.addSwitch(node.name, dpid=f"{number:x}")
            else:
                self._network.addHost(node.name, cls=_CLASSES[node.kind])
        for node in self.topology.nodes:
            made = self._network[node.name]
            made.until_made()
            network = network_id(made.pid)
            if network == network_id(os.getpid()):
                raise EmulationError(f"node {node.name} did not get a network of its own")
            self._networks.add(network)
            router = node.kind is NodeKind.ROUTER
            with network_of(made.pid):
                set_network_settings(_EVERYWHERE)
                set_network_settings(_ROUTER if router else {})
                if Path("/proc/sys/net/ipv6").exists():
                    set_network_settings(_IPV6 if has_ipv6 else _NO_IPV6)
                    set_network_settings(_IPV6_ROUTER if router and has_ipv6 else {})
        self._network.built = True  # build() would look for interfaces that are not there yet, and warn

    def _make_links(self) -> None:
        backend = choose_backend(self._backend or "auto", self.topology.links)
        self._work_dir.mkdir(parents=True, exist_ok=True)
        self._links = LinkLayer(backend, self._seed, self._work_dir, forks=self._forks)
        for link in self.topology.links:
            a, b = self._ends[link.a, link.name], self._ends[link.b, link.name]
            self._links.add(link, self.pid(link.a), self.pid(link.b), a.interface, b.interface)
        self._links.start()
        for link in self.topology.links:
            a, b = self._ends[link.a, link.name], self._ends[link.b, link.name]
            self._network.addLink(
                self._network[link.a], self._network[link.b],
                intfName1=a.interface, intfName2=b.interface, addr1=a.mac, addr2=b.mac,
            )  # fmt: skip

    def _set_addresses(self) -> None:
        lines: dict[str, list[str]] = {}
        for end in self._ends.values():
            own = lines.setdefault(end.node, ["link set dev lo up"])
            own.append(f"link set dev {end.interface} address {end.mac}")
            if end.address is not None:
                own.append(f"address add {end.address} dev {end.interface}")
                interface = self._network[end.node].nameToIntf[end.interface]
                interface.ip, _, interface.prefixLen = end.address.partition("/")
            if end.other_address is not None:
                own.append(f"address add {end.other_address} dev {end.interface}")
            # also where the link waits for a mobile host: it is captured and calibrated before its use
            own.append(f"link set dev {end.interface} up")
        self._in_nodes(lines)
        self._network.start()  # the bridges

    def _set_routes(self, *, only: frozenset[str] | None = None, then: Sequence[str] = ()) -> None:
        """Set neighbours and routes, of these nodes only; ``then`` are further lines for ``ip`` there."""
        lines: dict[str, list[str]] = {}
        for neighbour in routing.neighbours(self.topology):
            lines.setdefault(neighbour.node, []).append(
                f"neighbour replace {neighbour.address} lladdr {neighbour.mac} "
                f"dev {neighbour.interface} nud permanent"
            )
        for route in routing.routes(self.topology):
            lines.setdefault(route.node, []).append(f"route replace {route.network} via {route.gateway}")
        self._in_nodes({name: [*own, *then] for name, own in lines.items() if only is None or name in only})

    def _in_nodes(self, lines: Mapping[str, list[str]]) -> None:
        """Give these lines to ``ip`` in each node: in several at once, as what takes time is to start it."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ip") as pool:
            list(pool.map(ip_batch, map(self.pid, lines), lines.values()))  # raises what one has raised

    def _await_carriers(self, *, only: frozenset[str] | None = None) -> None:
        timeout_s = longer(CARRIER_TIMEOUT_S)
        deadline = time.monotonic() + timeout_s
        for node in self.topology.nodes:
            if only is not None and node.name not in only:
                continue
            own = [end.interface for end in self._ends.values() if end.node == node.name and end.up]
            with network_of(self.pid(node.name)):
                while missing := without_carrier(own):
                    if time.monotonic() > deadline:
                        raise EmulationError(f"no carrier at {', '.join(missing)} after {timeout_s:g} s")
                    time.sleep(0.002)

    # -- programs ---------------------------------------------------------------------------------

    def spawn(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        cwd: Path | None = None,
    ) -> Popen[bytes]:
        stdin, stdout, stderr = (DEVNULL if given is None else given for given in (stdin, stdout, stderr))
        words = [str(word) for word in argv]
        module = words[2] if words[:2] == [sys.executable, "-m"] else None
        if self._forks is not None and module in self._forks.modules:
            process = self._forks.spawn(
                module,
                words[3:],
                namespaces_of=self.pid(host),
                env=_tagged(env) or os.environ,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
            )
        else:
            process = spawn(
                self._on_host(host, argv),
                env=_tagged(env),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
            )
        self._children = [child for child in self._children if child.returncode is None]
        self._children.append(process)
        return process

    def execute(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        timeout_s: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        return run(self._on_host(host, argv), timeout_s=timeout_s, check=check, env=_tagged(env))

    def _on_host(self, host: str, argv: Sequence[str | Path]) -> list[str | Path]:
        return ["mnexec", "-a", str(self.pid(host)), *argv]

    # -- what is there ----------------------------------------------------------------------------

    def pid(self, host: str) -> int:
        self.topology.node(host)
        return int(self._network[host].pid)

    def interface(self, host: str, link_name: str) -> str:
        self.topology.node(host)
        link = routing.link_between(self.topology, link_name)
        if host not in (link.a, link.b):
            raise InvalidInput(f"{host} is not at link {link_name}")
        return self._ends[host, link_name].interface

    def address(self, host: str) -> str:
        return routing.first_address(self.topology, host)

    def link_readings(self) -> list[LinkReading]:
        return [
            reading if seen is None else _with_measured(reading, seen)
            for reading in self._link_layer().readings()
            for seen in [self._measured.get((reading.link, reading.sender))]
        ]

    def calibrate(self) -> list[LinkReading]:
        measured = calibrate(self._link_layer())
        self._measured = {(reading.link, reading.sender): reading for reading in measured}
        return measured

    def begin(self) -> None:
        self._link_layer().begin()

    def ended(self) -> EmulationError | None:
        for node in self._topology.nodes if self._topology is not None else ():
            if (how := self._network[node.name].ended()) is not None:
                return EmulationError(f"the process that holds the node {node.name} {how}")
        return self._links.ended() if self._links is not None else None

    def set_link(self, link_name: str, *, up: bool) -> None:
        link = routing.link_between(self.topology, link_name)
        for end in (link.a, link.b):
            interface = self._ends[end, link_name].interface
            ip_batch(self.pid(end), [f"link set dev {interface} {'up' if up else 'down'}"])
        if up:  # the kernel has dropped what went through the interfaces
            both = frozenset((link.a, link.b))
            self._await_carriers(only=both)
            self._set_routes(only=both)

    def hand_over(self, host: str, link_name: str) -> None:
        before, self._topology = self.topology, routing.handed_over(self.topology, host, link_name)
        self._ends = {(end.node, end.link): end for end in routing.attachments(self._topology)}
        here = self._ends[host, link_name]
        others = [end.node for end in self._ends.values() if end.link == link_name and end.node != host]
        # all that takes time is done before the old way is lost: a link that comes up can take 100 ms
        for node in (host, *others):
            end = self._ends[node, link_name]
            addresses = filter(None, (end.address, end.other_address))
            lines = [f"address replace {address} dev {end.interface}" for address in addresses]
            ip_batch(self.pid(node), [f"link set dev {end.interface} up", *lines])
        self._await_carriers(only=frozenset((host, *others)))
        self._set_routes(only=frozenset(others))
        lost = [
            end
            for end in routing.attachments(before)
            if end.node == host and end.up and end.link != here.link
        ]
        self._set_routes(
            only=frozenset({host}),
            then=[
                f"address del {address} dev {end.interface}"
                for end in lost
                for address in filter(None, (end.address, end.other_address))
            ],
        )

    def _link_layer(self) -> LinkLayer:
        if self._links is None:
            raise EmulationError("no topology is deployed")
        return self._links

    # -- the end ----------------------------------------------------------------------------------

    def destroy(self) -> None:
        layer, network, networks = self._links, self._network, self._networks
        children = self._children
        self._links, self._network, self._networks, self._topology = None, None, set(), None
        self._children, self._ends, self._measured = [], {}, {}
        try:
            if layer is not None:
                layer.stop(remove_interfaces=False)  # they go with the namespaces
        finally:
            _end_all(networks, children)
            for node in network.values() if network is not None else ():
                node.cleanup()  # closes the pty and collects the shell

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.destroy()


def _end_all(networks: set[int], children: list[Popen[bytes]]) -> None:
    """End every process in the nodes' networks, also what programs left behind, and reap our children.

    Only the private root's processes can be seen here. A process that cannot even be killed now ends
    with the private root.
    """
    deadline = time.monotonic() + longer(END_TIMEOUT_S)
    while (pids := processes_in_networks(networks)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.001)  # again, as a process may have forked meanwhile
    for process in children:
        if process.poll() is None:
            process.kill()  # it may have gone to a network of its own
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutExpired:
                continue


def require_programs() -> None:
    """Raise ``Unsupported`` when a program that Mininet or this module runs is not installed."""
    missing = [name for name in ("mnexec", "ifconfig", "ip", "bash") if shutil.which(name) is None]
    if missing:
        raise Unsupported(
            f"Mininet needs {', '.join(missing)}, not installed here",
            hint="run `make setup` (it installs them)",
        )


def require_private_root() -> None:
    """Raise ``Unsupported`` when this process is not in a private root."""
    try:
        first = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    except OSError:
        first = []
    if os.fsencode(INIT) not in first:
        raise Unsupported(
            "the emulation runs in a private root only, so that it cannot touch this machine's network",
            hint="start it by quicferry.emulation.sandbox.private_root, as `quicferry run` does",
        )


def _with_measured(now: LinkReading, seen: LinkReading) -> LinkReading:
    """The reading as of now, with the values that calibration measured earlier."""
    return msgspec.structs.replace(
        now,
        read_back={**seen.read_back, **now.read_back},
        measured_delay_ms=seen.measured_delay_ms,
        measured_loss_percent=seen.measured_loss_percent,
        measured_rate_mbps=seen.measured_rate_mbps,
    )


def _tagged(env: Mapping[str, str] | None) -> dict[str, str] | None:
    if env is None:
        return None
    tags = {name: os.environ[name] for name in (RUN_TAG, TOOL_TAG) if name in os.environ}
    return {**env, **tags}
