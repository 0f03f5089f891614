"""A network namespace that can be plugged in at any edge: the server's own, as a container has one.

It is joined to an edge host by a veth pair and has an address there, to which the edge forwards. A
process that lives in it has its sockets in it, so that whoever plugs it in elsewhere has moved
process and sockets without touching either.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute

from quicferry.emulation.sandbox.namespaces import network_id, network_of, set_network_settings
from quicferry.errors import EmulationError
from quicferry.process import Popen

#: The edge's end of every plug, seen from inside: link-local, as it needs no address of its own.
GATEWAY, GATEWAY_IPV6 = "169.254.1.1", "fe80::1"
#: An address works at once, and stays when its interface is down, as one of IPv4 does.
_AS_IPV4 = {
    f"ipv6/conf/{where}/{name}": value
    for where in ("all", "default")
    for name, value in (("accept_dad", 0), ("keep_addr_on_down", 1))
}
READY_S = 5.0
_FIRST_TABLE = 100  # routing tables, one for each plug: what leaves from an address leaves by its plug
_METRIC = 100
_MAIN_TABLE = 254  # RT_TABLE_MAIN, rtnetlink(7)


class Plug(NamedTuple):
    """A place where the namespace can be plugged in."""

    edge: str
    number: int  # 1, 2, …
    address: str  # of the server there

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def bits(self) -> int:
        """The length of the address."""
        return 128 if ":" in self.address else 32

    @property
    def gateway(self) -> str:
        """The edge's end, seen from inside."""
        return GATEWAY_IPV6 if ":" in self.address else GATEWAY

    @property
    def outer(self) -> str:
        """The interface at the edge."""
        return f"pod{self.number}"

    @property
    def inner(self) -> str:
        """The interface in the namespace."""
        return f"eth{self.number - 1}"

    @property
    def table(self) -> int:
        """The routing table for what leaves from this address."""
        return _FIRST_TABLE + self.number

    def mac(self, side: int) -> str:
        """A locally administered address of the inner (0) or the outer (1) end."""
        return f"02:01:00:00:{side:02x}:{self.number:02x}"


def start_argv() -> Sequence[str]:
    """The argument vector of a process that holds the namespace open."""
    return ["unshare", "--net", "sleep", "infinity"]


def wait_for_namespace(holder: Popen[bytes], outside_pid: int) -> None:
    """Wait until the holder is in a namespace of its own. Raises ``EmulationError``."""
    deadline = time.monotonic() + READY_S
    passed = {
        network_id(os.getpid()),
        network_id(outside_pid),
    }  # spawned in ours, then it enters the edge's, then it makes its own
    while network_id(holder.pid) in passed:
        if holder.poll() is not None or time.monotonic() > deadline:
            raise EmulationError("the server's network namespace did not come up")
        time.sleep(0.002)


def netlink_in(pid: int) -> IPRoute:
    """A netlink socket in the network namespace of a process. Raises ``OSError``."""
    with network_of(pid):
        return IPRoute()


class Pod:
    """The namespace of process ``pid`` and its plugs. To be used by one thread.

    Methods raise ``NetlinkError`` when the kernel refuses.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        with network_of(pid):
            if Path("/proc/sys/net/ipv6").exists():
                set_network_settings(_AS_IPV4)
        self._inside = netlink_in(pid)
        self._outside: dict[str, IPRoute] = {}
        self._ends: dict[str, tuple[int, int]] = {}  # edge -> indices of the outer and the inner interface
        self._loopback = _index(self._inside, "lo")
        self._inside.link("set", index=self._loopback, state="up")

    def add(self, plug: Plug, edge_pid: int) -> None:
        """Make the cable of a plug, its address inside and the rules for it. Nothing goes through it yet."""
        with network_of(edge_pid):
            forward = "ipv4/ip_forward" if plug.family == socket.AF_INET else "ipv6/conf/all/forwarding"
            set_network_settings({forward: 1})
        outside = self._outside[plug.edge] = netlink_in(edge_pid)
        outside.link(
            "add",
            ifname=plug.outer,
            kind="veth",
            address=plug.mac(1),
            peer={"ifname": plug.inner, "net_ns_pid": self.pid, "address": plug.mac(0)},
        )
        outer, inner = _index(outside, plug.outer), _index(self._inside, plug.inner)
        self._ends[plug.edge] = (outer, inner)
        self._inside.rule(
            "add",
            family=plug.family,
            src=plug.address,
            src_len=plug.bits,
            table=plug.table,
            priority=plug.table,
        )
        # ahead of ``attach``: it takes the kernel longer than all the rest of it
        self._inside.link("set", index=inner, state="up")
        outside.link("set", index=outer, state="up")

    def attach(self, plug: Plug) -> None:
        """Plug it in: the server's address is reachable there."""
        outside = self._outside[plug.edge]
        outer, inner = self._ends[plug.edge]
        permanent = {"state": "permanent", "family": plug.family}
        self._inside.addr("add", index=inner, address=plug.address, prefixlen=plug.bits)
        self._inside.neigh("replace", dst=plug.gateway, lladdr=plug.mac(1), ifindex=inner, **permanent)
        for table, metric in ((plug.table, 0), (_MAIN_TABLE, _METRIC - plug.number)):
            self._inside.route(
                "replace",
                family=plug.family,
                dst="default",
                gateway=plug.gateway,
                oif=inner,
                table=table,
                flags=["onlink"],
                priority=metric,
            )
        outside.neigh("replace", dst=plug.address, lladdr=plug.mac(0), ifindex=outer, **permanent)
        outside.route(
            "replace", family=plug.family, dst=f"{plug.address}/{plug.bits}", oif=outer, scope="link"
        )

    def detach(self, plug: Plug) -> None:
        """Unplug it: no packet passes there any more."""
        outer, inner = self._ends[plug.edge]
        # with the interfaces go their routes and neighbours, but not the address
        self._outside[plug.edge].link("set", index=outer, state="down")
        self._inside.link("set", index=inner, state="down")
        self._inside.addr("del", index=inner, address=plug.address, prefixlen=plug.bits)

    def keep(self, plug: Plug) -> None:
        """Let the address live on inside, without a plug, so that what has it as its own can still send."""
        self._inside.addr("add", index=self._loopback, address=plug.address, prefixlen=plug.bits)

    def drop(self, plug: Plug) -> None:
        """Remove an address that ``keep`` has kept."""
        self._inside.addr("del", index=self._loopback, address=plug.address, prefixlen=plug.bits)

    def close(self) -> None:
        """Close the netlink sockets; the interfaces stay."""
        for netlink in (self._inside, *self._outside.values()):
            netlink.close()


def _index(netlink: IPRoute, name: str) -> int:
    found = netlink.link_lookup(ifname=name)
    if not found:
        raise EmulationError(f"there is no interface {name}")
    return int(found[0])
