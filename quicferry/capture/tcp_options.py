"""The options of a TCP segment, those of MPTCP v0 and v1 among them (RFC 9293 §3.2, RFC 6824, RFC 8684)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

_END, _NO_OPERATION, _MSS, _WINDOW_SCALE, _SACK_PERMITTED, _SACK, _TIMESTAMPS, _MPTCP = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    30,
)
_NAMES = {28: "USER_TIMEOUT", 34: "FAST_OPEN", 29: "AUTHENTICATION", 19: "MD5"}
_SUBTYPES = {
    0: "MP_CAPABLE",
    1: "MP_JOIN",
    2: "DSS",
    3: "ADD_ADDR",
    4: "REMOVE_ADDR",
    5: "MP_PRIO",
    6: "MP_FAIL",
    7: "MP_FASTCLOSE",
    8: "MP_TCPRST",
    15: "MP_EXPERIMENTAL",
}
_DATA_FIN = 0x10


class MptcpOption(NamedTuple):
    """One option of MPTCP. Fields that its subtype does not have are None or empty."""

    name: str
    version: int | None = None
    sender_key: bytes = b""
    receiver_key: bytes = b""
    token: bytes = b""
    data_ack: int | None = None
    data_sequence: int | None = None
    subflow_sequence: int | None = None
    #: of the mapping: it may reach over several segments, beyond the one that carries it
    data_length: int | None = None
    data_fin: bool = False
    address: str = ""
    address_id: int | None = None
    echo: bool = False


class Options(NamedTuple):
    """All options of a segment."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    timestamps: tuple[int, int] | None = None
    mptcp: tuple[MptcpOption, ...] = ()
    others: tuple[str, ...] = ()


NONE = Options()


def read_options(data: bytes) -> Options:
    """Read what stands between a TCP header's fixed part and its payload; what is cut off is left out."""
    if not data:
        return NONE
    mss, scale, permitted, stamps = None, None, False, None
    sack: list[tuple[int, int]] = []
    mptcp: list[MptcpOption] = []
    others: list[str] = []
    at, end = 0, len(data)
    while at < end:
        kind = data[at]
        if kind == _END:
            break
        if kind == _NO_OPERATION:
            at += 1
            continue
        length = data[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            break
        value = data[at + 2 : at + length]
        at += length
        if kind == _TIMESTAMPS and len(value) == 8:
            stamps = (int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big"))
        elif kind == _MPTCP and value:
            mptcp.append(_mptcp(value))
        elif kind == _MSS and len(value) == 2:
            mss = int.from_bytes(value, "big")
        elif kind == _WINDOW_SCALE and len(value) == 1:
            scale = value[0]
        elif kind == _SACK_PERMITTED:
            permitted = True
        elif kind == _SACK:
            sack += [
                (int.from_bytes(value[i : i + 4], "big"), int.from_bytes(value[i + 4 : i + 8], "big"))
                for i in range(0, len(value) - 7, 8)
            ]
        else:
            others.append(_NAMES.get(kind, f"OPTION_{kind}"))
    return Options(mss, scale, permitted, tuple(sack), stamps, tuple(mptcp), tuple(others))


def _mptcp(value: bytes) -> MptcpOption:
    """An option without kind and length: subtype and flags are in the first byte."""
    name = _SUBTYPES.get(value[0] >> 4, f"MPTCP_{value[0] >> 4}")
    if name == "MP_CAPABLE":
        # version 0 has the sender's key in the SYN already, version 1 sends an empty one (RFC 8684 §3.1)
        length = None
        if len(value) >= 20 and len(value) in (20, 22):
            length = int.from_bytes(value[18:20], "big")
        return MptcpOption(
            name,
            value[0] & 0x0F,
            value[2:10] if len(value) >= 10 else b"",
            value[10:18] if len(value) >= 18 else b"",
            data_length=length,
        )
    if name == "MP_JOIN":
        # the SYN has 12 bytes with a token, the SYN-ACK 16, the ACK 24
        token = value[2:6] if len(value) == 10 else b""
        return MptcpOption(name, token=token, address_id=value[1] if len(value) in (10, 14) else None)
    if name == "DSS":
        return _dss(value)
    if name == "ADD_ADDR":
        return _add_addr(value)
    if name == "REMOVE_ADDR" and len(value) >= 2:
        return MptcpOption(name, address_id=value[1])
    return MptcpOption(name)


def _dss(value: bytes) -> MptcpOption:
    """Data acknowledgement and mapping (RFC 8684 §3.3); cut-off fields are None."""
    flags = value[1] if len(value) > 1 else 0
    at = 2
    data_ack = data_sequence = subflow_sequence = data_length = None
    if flags & 0x01:
        size = 8 if flags & 0x02 else 4
        if at + size <= len(value):
            data_ack = int.from_bytes(value[at : at + size], "big")
        at += size
    if flags & 0x04:
        size = 8 if flags & 0x08 else 4
        if at + size + 6 <= len(value):
            data_sequence = int.from_bytes(value[at : at + size], "big")
            subflow_sequence = int.from_bytes(value[at + size : at + size + 4], "big")
            data_length = int.from_bytes(value[at + size + 4 : at + size + 6], "big")
    return MptcpOption(
        "DSS",
        data_ack=data_ack,
        data_sequence=data_sequence,
        subflow_sequence=subflow_sequence,
        data_length=data_length,
        data_fin=bool(flags & _DATA_FIN),
    )


def _add_addr(value: bytes) -> MptcpOption:
    """ADD_ADDR of version 1, or of version 0, where the low bits are the IP version (RFC 6824 §3.4.1)."""
    low = value[0] & 0x0F
    echo = low == 1
    rest = len(value) - 2
    size = 0
    if low in (4, 6):
        size = 4 if low == 4 else 16
    else:
        without_hmac = rest if echo else rest - 8
        size = 16 if without_hmac >= 16 else 4
    if rest < size:
        return MptcpOption("ADD_ADDR", address_id=value[1] if rest >= 0 else None, echo=echo)
    address = str(ip_address(value[2 : 2 + size]))
    port_at = 2 + size
    has_port = (rest - size - (8 if not echo and low not in (4, 6) else 0)) >= 2
    if has_port:
        port = int.from_bytes(value[port_at : port_at + 2], "big")
        address = f"[{address}]:{port}" if size == 16 else f"{address}:{port}"
    return MptcpOption("ADD_ADDR", address=address, address_id=value[1], echo=echo)
