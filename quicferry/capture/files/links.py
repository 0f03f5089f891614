"""Finds the IP packet in a frame of each link type (https://www.tcpdump.org/linktypes.html)."""

from __future__ import annotations

from collections.abc import Callable

Locate = Callable[[bytes], int]
"""Where the IP header begins in a frame; -1 when the frame carries none."""

NO_IP = -1
_VLAN = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
_IP_TYPES = (b"\x08\x00", b"\x86\xdd")
_PPP_IP = (0x0021, 0x0057)
_FAMILIES = frozenset({2, 10, 24, 28, 30})  # AF_INET and the AF_INET6 of Linux, NetBSD, FreeBSD and Darwin


def _by_ethertype(frame: bytes, at: int) -> int:
    """What follows an Ethernet type at ``at``: IP, or IP behind VLAN tags, PPPoE, MPLS or LLC."""
    kind = frame[at : at + 2]
    while kind in _VLAN:
        at += 4
        kind = frame[at : at + 2]
    if kind in _IP_TYPES:
        return at + 2
    if kind == b"\x88\x64":  # PPPoE session (RFC 2516): six bytes, then PPP's protocol
        return _by_ppp_protocol(frame, at + 8)
    if kind in (b"\x88\x47", b"\x88\x48"):  # MPLS (RFC 3032): labels up to the one at the bottom
        at += 2
        while at + 4 <= len(frame):
            at += 4
            if frame[at - 2] & 1:
                return at
        return NO_IP
    if len(kind) == 2 and int.from_bytes(kind, "big") <= 1500:
        return _by_llc(frame, at + 2)
    return NO_IP


def _by_llc(frame: bytes, at: int) -> int:
    """Behind an 802.2 header, with SNAP or without."""
    if frame[at : at + 6] == b"\xaa\xaa\x03\0\0\0":
        return _by_ethertype(frame, at + 6)
    return at + 3 if frame[at : at + 3] == b"\x06\x06\x03" else NO_IP


def _by_ppp_protocol(frame: bytes, at: int) -> int:
    """PPP's protocol field (RFC 1661 §2), of two bytes or compressed to one."""
    if at >= len(frame):
        return NO_IP
    if frame[at] & 1:
        return at + 1 if frame[at] in _PPP_IP else NO_IP
    return at + 2 if int.from_bytes(frame[at : at + 2], "big") in _PPP_IP else NO_IP


def _ethernet(frame: bytes) -> int:
    return 14 if frame[12:14] in _IP_TYPES else _by_ethertype(frame, 12)


def _raw(_frame: bytes) -> int:
    return 0


def _null(frame: bytes) -> int:
    """The address family in the byte order of the capturing machine."""
    return 4 if _family(frame[:4]) else NO_IP


def _family(field: bytes) -> bool:
    return int.from_bytes(field, "little") in _FAMILIES or int.from_bytes(field, "big") in _FAMILIES


def _ppp(frame: bytes) -> int:
    """PPP with or without the address and control bytes of HDLC (RFC 1662 §3.1)."""
    return _by_ppp_protocol(frame, 2 if frame[:2] in (b"\xff\x03", b"\x0f\x00") else 0)


def _ppp_with_direction(frame: bytes) -> int:
    """One byte that says who sent it comes first; pppd writes it over HDLC's address byte."""
    at = 2 if frame[1:2] == b"\x03" else 1
    return _by_ppp_protocol(frame, at + 2 if frame[at : at + 2] == b"\xff\x03" else at)


def _sll(frame: bytes) -> int:
    return _by_ethertype(frame, 14)


def _sll2(frame: bytes) -> int:
    """What ``tcpdump -i any`` writes now: the type comes first, the header has 20 bytes."""
    kind = frame[:2]
    if kind in _IP_TYPES:
        return 20
    if kind in _VLAN:  # the tag follows the header
        return _by_ethertype(frame, 22)
    return NO_IP


def _c_hdlc(frame: bytes) -> int:
    return _by_ethertype(frame, 2)


def _ieee_802_11(frame: bytes, at: int = 0) -> int:
    """A data frame that is not encrypted (IEEE 802.11 §9.2)."""
    if len(frame) < at + 24 or frame[at] & 0x0C != 0x08 or frame[at + 1] & 0x40 or frame[at] & 0x40:
        return NO_IP
    size = 24
    size += 6 if frame[at + 1] & 0x03 == 0x03 else 0  # between two access points: a fourth address
    size += 2 if frame[at] & 0x80 else 0  # quality of service
    size += 4 if frame[at] & 0x80 and frame[at + 1] & 0x80 else 0  # high throughput control
    return _by_llc(frame, at + size)


def _radiotap(frame: bytes) -> int:
    return _ieee_802_11(frame, int.from_bytes(frame[2:4], "little"))


def _nflog(frame: bytes) -> int:
    """Attributes of the netfilter log; the packet is number 9 (nfnetlink_log.h)."""
    at = 4
    while at + 4 <= len(frame):
        length, kind = int.from_bytes(frame[at : at + 2], "little"), frame[at + 2]
        if kind == 9:
            return at + 4
        if length < 4:
            return NO_IP
        at += length + -length % 4
    return NO_IP


def _pktap(frame: bytes) -> int:
    """Darwin's header: its length and the link type of what follows are in it."""
    length, kind = int.from_bytes(frame[:4], "little"), int.from_bytes(frame[8:12], "little")
    locate = LINKS.get(kind)
    if locate is None or kind == _PKTAP or not 12 <= length <= len(frame):
        return NO_IP
    inner = locate(frame[length:])
    return NO_IP if inner < 0 else length + inner


def _enc(_frame: bytes) -> int:
    return 12


def _pflog(frame: bytes) -> int:
    length = frame[0] if frame else 0
    return length + -length % 4


def _mpacket(frame: bytes) -> int:
    """An Ethernet frame behind its preamble of eight bytes (IEEE 802.3br)."""
    return _by_ethertype(frame, 20)


def _ip_over_fibre_channel(frame: bytes) -> int:
    return _by_llc(frame, 16)


_PKTAP = 258
LINKS: dict[int, Locate] = {
    0: _null,
    1: _ethernet,
    9: _ppp,
    12: _raw,  # what some systems call RAW in files
    14: _raw,
    50: _ppp,
    51: lambda frame: _by_ppp_protocol(frame, 6),
    101: _raw,
    104: _c_hdlc,
    105: _ieee_802_11,
    108: _null,
    109: _enc,
    113: _sll,
    117: _pflog,
    122: _ip_over_fibre_channel,
    127: _radiotap,
    143: _ethernet,
    166: _ppp_with_direction,
    204: _ppp_with_direction,
    228: _raw,
    229: _raw,
    239: _nflog,
    _PKTAP: _pktap,
    274: _mpacket,
    276: _sll2,
}

#: The names of link types, for messages.
NAMES: dict[int, str] = {
    0: "NULL", 1: "ETHERNET", 3: "AX25", 6: "IEEE802_5", 7: "ARCNET_BSD", 8: "SLIP", 9: "PPP", 10: "FDDI",
    50: "PPP_HDLC", 51: "PPP_ETHER", 99: "SYMANTEC_FIREWALL", 100: "ATM_RFC1483", 101: "RAW", 104: "C_HDLC",
    105: "IEEE802_11", 107: "FRELAY", 108: "LOOP", 109: "ENC", 113: "LINUX_SLL", 114: "LTALK", 117: "PFLOG",
    119: "IEEE802_11_PRISM", 122: "IP_OVER_FC", 123: "SUNATM", 127: "IEEE802_11_RADIOTAP",
    129: "ARCNET_LINUX", 138: "APPLE_IP_OVER_IEEE1394", 139: "MTP2_WITH_PHDR", 140: "MTP2", 141: "MTP3",
    142: "SCCP", 143: "DOCSIS", 144: "LINUX_IRDA", 147: "USER0", 163: "IEEE802_11_AVS", 165: "BACNET_MS_TP",
    166: "PPP_PPPD", 169: "GPRS_LLC", 177: "LINUX_LAPD", 182: "MFR", 187: "BLUETOOTH_HCI_H4",
    189: "USB_LINUX", 192: "PPI", 195: "IEEE802_15_4_WITHFCS", 196: "SITA", 197: "ERF",
    201: "BLUETOOTH_HCI_H4_WITH_PHDR", 202: "AX25_KISS", 203: "LAPD", 204: "PPP_WITH_DIR",
    205: "C_HDLC_WITH_DIR", 206: "FRELAY_WITH_DIR", 209: "IPMB_LINUX", 210: "FLEXRAY",
    215: "IEEE802_15_4_NONASK_PHY", 220: "USB_LINUX_MMAPPED", 224: "FC_2", 226: "IPNET",
    227: "CAN_SOCKETCAN", 228: "IPV4", 229: "IPV6", 230: "IEEE802_15_4_NOFCS", 231: "DBUS", 235: "DVB_CI",
    237: "STANAG_5066_D_PDU", 239: "NFLOG", 242: "IPOIB", 243: "MPEG_2_TS", 245: "NFC_LLCP",
    247: "INFINIBAND", 248: "SCTP", 249: "USBPCAP", 251: "BLUETOOTH_LE_LL", 252: "WIRESHARK_UPPER_PDU",
    253: "NETLINK", 254: "BLUETOOTH_LINUX_MONITOR", 257: "PROFIBUS_DL", 258: "PKTAP", 259: "EPON",
    264: "ISO_14443", 266: "USB_DARWIN", 271: "VSOCK", 272: "NORDIC_BLE", 274: "ETHERNET_MPACKET",
    276: "LINUX_SLL2", 278: "OPENVIZSLA", 282: "ETW", 285: "ZWAVE_TAP", 289: "ELEE", 290: "Z_WAVE_SERIAL",
}  # fmt: skip


def name_of(link_type: int) -> str:
    """The name of a link type with its number, as ``LINUX_SLL2 (276)``."""
    return f"{NAMES[link_type]} ({link_type})" if link_type in NAMES else f"number {link_type}"
