"""The versions of QUIC: their names, and what protects their Initial packets.

Sources: RFC 9000, RFC 9001 §5.2 and §5.8, RFC 9369 §3; for the drafts 22 to 34 of the same documents the
salts and Retry keys of each; mvfst's numbers stand for drafts (RFC 9000's predecessors), gQUIC is the
protocol that QUIC was made of, which is named and not read.
"""

from __future__ import annotations

import enum

VERSION_1 = 0x00000001
VERSION_2 = 0x6B3343CF
_VERSION_2_DRAFT = 0x709A50C4
_SALT_22 = bytes.fromhex("7fbcdb0e7c66bbe9193a96cd21519ebd7a02644a")
_SALT_23 = bytes.fromhex("c3eef712c72ebb5a11a7d2432bb46365bef9f502")
_SALT_29 = bytes.fromhex("afbfec289993d24c9e9786f19c6111e04390a899")
_SALT_1 = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
#: mvfst's number -> the draft that it is an implementation of
MVFST = {0xFACEB001: 22, 0xFACEB002: 27, 0xFACEB00E: 27}


def _salt_of_draft(draft: int) -> bytes:
    if draft < 23:
        return _SALT_22
    if draft < 29:
        return _SALT_23
    return _SALT_29 if draft < 33 else _SALT_1


def _drafts() -> dict[int, int]:
    return {0xFF000000 + draft: draft for draft in range(22, 35)} | MVFST


INITIAL_SALT: dict[int, bytes] = {
    VERSION_1: _SALT_1,
    VERSION_2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
    _VERSION_2_DRAFT: bytes.fromhex("a707c203a59b47184a1d62ca570406ea7ae3e5d3"),
    **{number: _salt_of_draft(draft) for number, draft in _drafts().items()},
}
#: versions with the packet types and key labels of version 2 (RFC 9369 §3.2, §3.3.2)
_LIKE_VERSION_2 = frozenset({VERSION_2, _VERSION_2_DRAFT})

_RETRY_1 = (bytes.fromhex("be0c690b9f66575a1d766b54e368c84e"), bytes.fromhex("461599d35d632bf2239825bb"))
_RETRY_29 = (bytes.fromhex("ccce187ed09a09d05728155a6cb96be1"), bytes.fromhex("e54930f97f2136f0530a8c1c"))
_RETRY_25 = (bytes.fromhex("4d32ecdb2a2133c841e4043df27d4430"), bytes.fromhex("4d1611d05513a552c587d575"))
_RETRY_2 = (bytes.fromhex("8fb4b01b56ac48e260fbcbcead7ccc92"), bytes.fromhex("d86969bc2d7c6d9990efb04a"))


def retry_key(version: int) -> tuple[bytes, bytes] | None:
    """Key and nonce of a Retry's integrity tag (RFC 9001 §5.8); None for versions without, or unknown."""
    if version == VERSION_1:
        return _RETRY_1
    if version == VERSION_2:
        return _RETRY_2
    draft = _drafts().get(version, 0)
    if draft >= 33:
        return _RETRY_1
    if draft >= 29:
        return _RETRY_29
    return _RETRY_25 if draft >= 25 else None


def label_prefix(version: int) -> bytes:
    """What the labels of a version's keys begin with."""
    return b"quicv2" if version in _LIKE_VERSION_2 else b"quic"


class Space(enum.StrEnum):
    """The kind of a packet; apart from 0-RTT, its packet number space too."""

    __hash__ = str.__hash__  # Enum's own is a function in Python, and every packet is looked up by it

    INITIAL = "initial"
    ZERO_RTT = "0-rtt"
    HANDSHAKE = "handshake"
    RETRY = "retry"
    ONE_RTT = "1-rtt"
    VERSION_NEGOTIATION = "version-negotiation"
    UNKNOWN = "unknown"  # a long header of a version that is not read


_TYPES_1 = (Space.INITIAL, Space.ZERO_RTT, Space.HANDSHAKE, Space.RETRY)  # RFC 9000 §17.2
_TYPES_2 = (Space.RETRY, Space.INITIAL, Space.ZERO_RTT, Space.HANDSHAKE)  # RFC 9369 §3.2
LONG_TYPES: dict[int, tuple[Space, ...]] = {
    version: _TYPES_2 if version in _LIKE_VERSION_2 else _TYPES_1 for version in INITIAL_SALT
}


def initial_salts(version: int) -> tuple[bytes, ...]:
    """The salts that a version's Initial keys may be of. Raises ``KeyError`` for an unknown version.

    A client that asks for negotiation by a reserved number protects its packets by another version's salt,
    for want of a rule: version 1's, or that of draft 29 (ngtcp2).
    """
    return (_SALT_1, _SALT_29) if is_reserved(version) else (INITIAL_SALT[version],)


def long_types(version: int) -> tuple[Space, ...] | None:
    """What the two type bits of a long header mean; None for a version that is not read."""
    return _TYPES_1 if is_reserved(version) else LONG_TYPES.get(version)


def is_reserved(version: int) -> bool:
    """Whether a number is one of those that only exercise version negotiation (RFC 9000 §15)."""
    return version & 0x0F0F0F0F == 0x0A0A0A0A


def is_google(version: int) -> bool:
    """Whether a number is one of gQUIC's: Q, or T for those with TLS, and three digits."""
    return version >> 24 in (0x51, 0x54) and all(
        0x30 <= version >> shift & 0xFF <= 0x39 for shift in (16, 8, 0)
    )


def name_of(version: int) -> str:
    """How a version is called: ``1``, ``2``, ``draft-29``, ``mvfst (draft-27)``, ``gQUIC Q046``."""
    if version == VERSION_1:
        return "1"
    if version == VERSION_2:
        return "2"
    if version == 0:
        return "negotiation"
    if version == _VERSION_2_DRAFT:
        return "2 (draft)"
    if version in MVFST:
        return f"mvfst (draft-{MVFST[version]})"
    if version >> 8 == 0xFACEB0:
        return f"mvfst 0x{version:08x}"
    if version >> 8 == 0xFF0000:
        return f"draft-{version & 0xFF:02d}"
    if is_google(version):
        return "gQUIC " + version.to_bytes(4, "big").decode("ascii")
    if is_reserved(version):
        return f"reserved 0x{version:08x}"
    return f"unknown 0x{version:08x}"


def is_known(version: int) -> bool:
    """Whether a number is one that somebody is known to use: others may be no QUIC at all."""
    return (
        version in LONG_TYPES
        or version == 0
        or is_reserved(version)
        or is_google(version)
        or version >> 8 in (0xFF0000, 0xFACEB0)
    )
