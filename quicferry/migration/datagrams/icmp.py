"""No ICMP errors about the service's port while no server has its socket bound.

A server that is on its way is not a closed port: a client with a connected socket would give up at
the first "port unreachable". Binding the port meanwhile would be simpler, but then the restored
server could not bind it.
"""

from __future__ import annotations

from quicferry.process import run

TABLE = "quicferry_agent"


def rules(port: int) -> str:
    """nftables rules that drop this host's "destination unreachable" about UDP ``port``.

    The offset of the destination port, in bits from the ICMP header: 8 bytes of ICMP, then the IP
    header of the datagram that is complained about (20 or 40 bytes), then 2 bytes of UDP.
    """
    what = "type destination-unreachable"
    return "\n".join(
        (
            f"add table inet {TABLE}",
            f"add chain inet {TABLE} out {{ type filter hook output priority 0; }}",
            f"flush chain inet {TABLE} out",
            f"add rule inet {TABLE} out icmp {what} @th,{(8 + 20 + 2) * 8},16 {port} drop",
            f"add rule inet {TABLE} out icmpv6 {what} @th,{(8 + 40 + 2) * 8},16 {port} drop",
            "",
        )
    )


def hold_back_port_unreachable(port: int) -> None:
    """Install the rules in the network namespace of the calling thread; may be repeated.

    Raises ``CommandFailed`` when the kernel has no nftables, ``Unsupported`` without the program.
    """
    run(["nft", "-f", "-"], stdin=rules(port))
