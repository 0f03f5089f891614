"""A topology as stock Mininet knows it: ``.venv/bin/mn --custom topologies/two_edges.py --topo two_edges``.

Each topology module offers ``topos`` (``Family.mininet_topos``). Delay, jitter, rate, loss and queue
become parameters of Mininet's ``TCLink``, which needs netem and sets it on the hosts' own interfaces: a
capture there sees packets before their delay. Routes are set by the node itself, as stock Mininet has none.
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # Mininet imports distutils, which warns on every Python that still has it
    warnings.simplefilter("ignore", DeprecationWarning)
    from mininet.link import Link as PlainLink
    from mininet.link import TCIntf, TCLink
    from mininet.node import Node as MininetNode
    from mininet.topo import Topo

from quicferry.emulation import routing
from quicferry.errors import InvalidInput
from quicferry.model import NodeKind, Shape, Topology


class RoutedNode(MininetNode):  # type: ignore[misc]  # Mininet has no types
    """A Mininet node with static routes; ``forward`` makes it a router."""

    def config(
        self,
        *,
        routes: tuple[tuple[str, str], ...] = (),
        forward: bool = False,
        six: tuple[tuple[int, str], ...] = (),
        **params: Any,
    ) -> Any:
        """Set addresses as every node does, then IPv6 addresses by interface, forwarding and routes."""
        result = super().config(**params)
        if forward:
            self.cmd("sysctl -w net.ipv4.ip_forward=1")
            self.cmd("sysctl -w net.ipv6.conf.all.forwarding=1")
        for number, address in six:
            self.cmd("ip address add", address, "dev", self.intfList()[number].name, "nodad")
        for network, gateway in routes:
            self.cmd("ip route replace", network, "via", gateway)
        return result


def to_mininet(topology: Topology, *, shaped: bool = True) -> Topo:
    """The topology as a ``mininet.topo.Topo``.

    Without ``shaped`` every link is a plain one: the same network for kernels that have no netem.
    """
    topo = Topo()
    routes: dict[str, list[tuple[str, str]]] = {}
    for route in routing.routes(topology):
        routes.setdefault(route.node, []).append((route.network, route.gateway))
    for node in topology.nodes:
        if node.kind is NodeKind.SWITCH:
            # without a class: `mn --switch` says of which kind it is
            topo.addSwitch(node.name, dpid=f"{len(topo.switches()) + 1:x}")
        else:
            own = [end for end in routing.attachments(topology) if end.node == node.name]
            topo.addHost(
                node.name,
                cls=RoutedNode,
                ip=next(filter(None, map(_four, topology.addresses_of(node.name))), None),
                six=tuple(
                    (number, address)
                    for number, end in enumerate(own)
                    for address in (end.address, end.other_address)
                    if address is not None and ":" in address
                ),
                routes=tuple(routes.get(node.name, ())),
                forward=node.kind is NodeKind.ROUTER,
            )
    for link in topology.links:
        a_params, b_params = (
            {
                **({"ip": four} if (four := _four(address) or _four(other)) is not None else {}),
                **(tc_parameters(shape, link.mtu_bytes) if shaped else {}),
            }
            for address, other, shape in (
                (link.a_address, link.a_other_address, link.a_to_b),
                (link.b_address, link.b_other_address, link.b_to_a),
            )
        )
        cls = PlainLink if link.is_plain or not shaped else TCLink
        topo.addLink(link.a, link.b, cls=cls, params1=a_params, params2=b_params)
    return topo


def _four(address: str | None) -> str | None:
    """The address if it is one of IPv4, which is what Mininet itself can set."""
    return None if address is None or ":" in address else address


def tc_parameters(shape: Shape, mtu_bytes: int = 1500) -> dict[str, float | int | str]:
    """One direction's shape in the words of ``TCIntf``: bw in Mbit/s, delay and jitter in ms, loss in %."""
    if shape.does_nothing:
        return {}
    found: dict[str, float | int | str] = {"max_queue_size": shape.queue_limit(mtu_bytes)}
    if shape.rate_mbps is not None:
        if shape.rate_mbps > TCIntf.bwParamMax:  # Mininet would log it and leave the link unlimited
            raise InvalidInput(
                f"stock Mininet cannot limit a link to {shape.rate_mbps:g} Mbit/s",
                hint=f"give at most {TCIntf.bwParamMax} Mbit/s, or no rate",
            )
        found["bw"] = shape.rate_mbps
    if shape.delay_ms:
        found["delay"] = f"{shape.delay_ms:g}ms"
    if shape.jitter_ms:
        found["jitter"] = f"{shape.jitter_ms:g}ms"
    if shape.loss_percent:
        found["loss"] = shape.loss_percent
    return found
