"""The kernel's path manager for Multipath TCP (RFC 8684), by netlink.

The in-kernel path manager announces the addresses it is told to (ADD_ADDR), and at the other end
opens a subflow to each address that is announced, up to a limit.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import NamedTuple

from pyroute2 import MPTCP

from quicferry.emulation.sandbox.namespaces import network_of, set_network_settings

#: include/uapi/linux/mptcp_pm.h, MPTCP_PM_ADDR_FLAG_SIGNAL: announce this address to the peers
FLAG_SIGNAL = 1 << 0
INITIAL_ID = 0  # the address of a connection's first subflow, whatever its endpoint's own number
MOST = 8  # subflows and announced addresses of one connection; the kernel allows no more
#: Seconds after which an ADD_ADDR that was not echoed is sent again; the kernel's default is 120.
ADD_ADDR_TIMEOUT_S = 1

#: include/uapi/linux/mptcp_pm.h: who listens hears of every connection and subflow
_EVENTS_GROUP = "mptcp_pm_events"
_CONNECTION_ESTABLISHED, _CONNECTION_CLOSED, _SUBFLOW_ESTABLISHED = 2, 3, 10  # MPTCP_EVENT_…
_TOKEN = 1  # MPTCP_ATTR_TOKEN
_LOCAL_ADDRESSES = {5: socket.AF_INET, 6: socket.AF_INET6}  # MPTCP_ATTR_SADDR4, MPTCP_ATTR_SADDR6
_NETLINK_GENERIC = 16
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr, then genlmsghdr
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without the flags of a nested one


def prepare(pid: int) -> None:
    """Allow subflows and announced addresses in the network namespace of a process. Raises ``OSError``."""
    with network_of(pid):
        set_network_settings({"mptcp/enabled": 1, "mptcp/add_addr_timeout": ADD_ADDR_TIMEOUT_S})
        manager = MPTCP()
    try:
        manager.limits("set", subflows=MOST, rcv_add_addrs=MOST)
    finally:
        manager.close()


def _named(address: str) -> dict[str, str]:
    """An address as pyroute2 wants it."""
    return {"addr6" if ":" in address else "addr4": address}


class PathManager:
    """The path manager in the network namespace of a process. To be used by one thread."""

    def __init__(self, pid: int) -> None:
        with network_of(pid):
            self._netlink = MPTCP()
        self._netlink.endpoint("show")  # the first call looks the family up

    def announce(self, address: str) -> None:
        """Tell the peers of all connections, now and later, that they may open subflows to it."""
        self._netlink.endpoint("add", flags=FLAG_SIGNAL, **_named(address))

    def withdraw(self, address: str) -> None:
        """Tell the peers to forget the address of their first subflow, and close that subflow."""
        self._netlink.endpoint("del", id=INITIAL_ID, **_named(address))

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()


class Change(NamedTuple):
    """A connection, by its token, has a subflow at a local address; with None it is over."""

    token: bytes
    address: str | None


def read_changes(data: bytes) -> list[Change]:
    """What a netlink datagram of the path manager's events says of connections and subflows."""
    found = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, _, _, _, _, command, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            break
        values = _attributes(data[at + _HEADER.size : at + length])
        if command == _CONNECTION_CLOSED and _TOKEN in values:
            found.append(Change(values[_TOKEN], None))
        elif command in (_CONNECTION_ESTABLISHED, _SUBFLOW_ESTABLISHED) and _TOKEN in values:
            for kind, family in _LOCAL_ADDRESSES.items():
                if kind in values:
                    found.append(Change(values[_TOKEN], socket.inet_ntop(family, values[kind])))
        at += (length + 3) & ~3
    return found


def _attributes(data: bytes) -> dict[int, bytes]:
    values = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        values[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return values


class Subflows:
    """The subflows in the network namespace of a process, from now on and heard of at once.

    The table of connections in /proc says the same, but to read it takes 10 to 30 ms: it walks the
    whole hash of the kernel.
    """

    def __init__(self, pid: int) -> None:
        with network_of(pid):
            manager = MPTCP()
            try:
                manager.endpoint("show")  # the first call looks the family up, and its groups
                group = manager.mcast_groups[_EVENTS_GROUP]
            finally:
                manager.close()
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._at: dict[str, set[bytes]] = {}  # local address -> connections with a subflow there

    def count(self, address: str) -> int:
        """How many connections have, or had, a subflow at this local address."""
        while self._hear(0.0):
            pass
        return len(self._at.get(address, ()))

    def wait(self, address: str, wanted: int, timeout_s: float) -> int:
        """As ``count``, as soon as it is ``wanted``, or when the time is up."""
        deadline = time.monotonic() + timeout_s
        while len(self._at.get(address, ())) < wanted:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._hear(left_s):
                break
        return len(self._at.get(address, ()))

    def _hear(self, timeout_s: float) -> bool:
        """Take in one datagram; False when none comes."""
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(65_535)
        except (TimeoutError, BlockingIOError):
            return False
        for change in read_changes(data):
            if change.address is not None:
                self._at.setdefault(change.address, set()).add(change.token)
            else:
                for tokens in self._at.values():
                    tokens.discard(change.token)
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
