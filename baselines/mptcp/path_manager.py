"""The kernel's path manager for Multipath TCP (RFC 8684), by netlink.

The in-kernel path manager announces the addresses it is told to (ADD_ADDR), and at the other end
opens a subflow to each address that is announced, up to a limit.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import MPTCP

from quicferry.emulation.namespaces import network_of, set_network_settings

#: include/uapi/linux/mptcp_pm.h, MPTCP_PM_ADDR_FLAG_SIGNAL: announce this address to the peers
FLAG_SIGNAL = 1 << 0
INITIAL_ID = 0  # the address of a connection's first subflow, whatever its endpoint's own number
MOST = 8  # subflows and announced addresses of one connection; the kernel allows no more
#: Seconds after which an ADD_ADDR that was not echoed is sent again; the kernel's default is 120.
ADD_ADDR_TIMEOUT_S = 1
_ESTABLISHED = "01"  # include/net/tcp_states.h


def prepare(pid: int) -> None:
    """Allow subflows and announced addresses in the network namespace of a process. Raises ``OSError``."""
    with network_of(pid):
        set_network_settings({"mptcp/enabled": 1, "mptcp/add_addr_timeout": ADD_ADDR_TIMEOUT_S})
        manager = MPTCP()
    try:
        manager.limits("set", subflows=MOST, rcv_add_addrs=MOST)
    finally:
        manager.close()


class PathManager:
    """The path manager in the network namespace of a process. To be used by one thread."""

    def __init__(self, pid: int) -> None:
        with network_of(pid):
            self._netlink = MPTCP()
        self._netlink.endpoint("show")  # the first call looks the family up

    def announce(self, address: str) -> None:
        """Tell the peers of all connections, now and later, that they may open subflows to it."""
        self._netlink.endpoint("add", addr=address, flags=FLAG_SIGNAL)

    def withdraw(self, address: str) -> None:
        """Tell the peers to forget the address of their first subflow, and close that subflow."""
        self._netlink.endpoint("del", id=INITIAL_ID, addr=address)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()


def subflows(pid: int, address: str, port: int) -> int:
    """How many established TCP connections have this local address in that process's network."""
    return count_established(Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:], address, port)


def count_established(lines: Iterable[str], address: str, port: int) -> int:
    """As ``subflows``, of the lines of a table as in proc(5), /proc/net/tcp."""
    # the address is printed as a number of this machine's byte order
    (number,) = struct.unpack("=I", socket.inet_aton(address))
    wanted = f"{number:08X}:{port:04X}"
    return sum(1 for line in lines if line.split()[1] == wanted and line.split()[3] == _ESTABLISHED)
