"""Keeps what is known of each connection in a capture: secrets, keys, and the nonces it has used."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from quicferry.capture.quic.frames import Frame
from quicferry.capture.quic.headers import Space
from quicferry.capture.quic.keys import (
    INITIAL_SUITE,
    SUITES,
    KeyLog,
    Opened,
    PacketProtection,
    initial_secrets,
)
from quicferry.capture.quic.packets import Direction, ProtectedPacket, Why
from quicferry.capture.quic.versions import initial_salts, retry_key

#: (space, direction) -> label in the key log
LABELS = {
    (Space.HANDSHAKE, Direction.TO_SERVER): "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    (Space.HANDSHAKE, Direction.TO_CLIENT): "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    (Space.ZERO_RTT, Direction.TO_SERVER): "CLIENT_EARLY_TRAFFIC_SECRET",
    (Space.ONE_RTT, Direction.TO_SERVER): "CLIENT_TRAFFIC_SECRET_0",
    (Space.ONE_RTT, Direction.TO_CLIENT): "SERVER_TRAFFIC_SECRET_0",
}
#: A capture that joins a connection late finds packet numbers by guesses this far apart: half of what a
#: packet number of two bytes spans, so that each number is nearest to a guess (RFC 9000 §A.3).
_HINT_STEP = 1 << 15
_RETRY_TAG_BYTES = 16
_TAG_BYTES = 16  # of every AEAD that QUIC has (RFC 9001 §5.3)
#: Of so many packets of a connection it is remembered, when memory is bounded, which nonces they used.
_NONCES_REMEMBERED = 1 << 16
_LONGEST_HELLO = 1 << 16
_CLIENT_HELLO, _SERVER_HELLO = 1, 2


def suites_for(secret: bytes) -> Iterator[int]:
    """The cipher suites whose secrets are as long as this one."""
    for suite, (algorithm, _, _) in SUITES.items():
        if len(secret) == hashlib.new(algorithm).digest_size:
            yield suite


class CryptoStream:
    """The contiguous beginning of a TLS handshake that comes in CRYPTO frames."""

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}

    def add(self, offset: int, data: bytes) -> bytes:
        """Take in a frame; returns all bytes from the first on that have no hole."""
        if offset < _LONGEST_HELLO and len(data) > len(self._parts.get(offset, b"")):
            self._parts[offset] = data
        joined = b""
        for begin in sorted(self._parts):
            if begin > len(joined):
                break
            joined += self._parts[begin][len(joined) - begin :]
        return joined


class QuicConnection:
    """One connection. ``index`` numbers it in the order of its appearance, ``client`` is its endpoint."""

    def __init__(
        self, index: int, client: str, version: int, keylog: KeyLog, *, bounded: bool = False
    ) -> None:
        """``bounded``: remember the nonces of the newest packets only."""
        self.index = index
        self.client = client
        self.version = version
        self.original_cid = b""  # that the Initial keys come from: after a Retry the one it gave
        self.first_cid = b""  # that the client chose
        self.client_random: bytes | None = None
        self.suite: int | None = None
        self._keylog = keylog
        self._hello = {direction: CryptoStream() for direction in Direction}
        self._protection: dict[tuple[Space, Direction, int], PacketProtection] = {}
        self._retry = b""
        self._bounded = bounded
        #: (space, direction, key generation, packet number) -> digest of the packet that used them, and a
        #: bit for each vantage point that saw it
        self._used: dict[tuple[Space, Direction, int, int], tuple[bytes, int]] = {}
        self.reset_tokens: dict[bytes, None] = {}

    def for_other_vantage(self) -> QuicConnection:
        """The same connection for another capture, which may see it from a later packet on."""
        copy = QuicConnection(self.index, self.client, self.version, self._keylog, bounded=self._bounded)
        copy.original_cid = self.original_cid
        copy.client_random, copy.suite = self.client_random, self.suite
        copy._used = dict(self._used)
        copy.reset_tokens = dict(self.reset_tokens)
        copy.derive_keys()
        for key, protection in copy._protection.items():
            highest = self._protection[key].expected if key in self._protection else 0
            protection.hints = tuple(range(0, highest + _HINT_STEP, _HINT_STEP))
        return copy

    @property
    def knows_secrets(self) -> bool:
        """Whether both hellos were read: the key log's entry and the suite are known."""
        return self.client_random is not None and self.suite is not None

    def read_hello(self, direction: Direction, frame: Frame) -> None:
        """Take the client's random and the cipher suite out of the two hellos (RFC 8446 §4.1)."""
        hello = self._hello[direction].add(frame.offset or 0, frame.data)
        if direction is Direction.TO_SERVER and len(hello) >= 38 and hello[0] == _CLIENT_HELLO:
            self.client_random = hello[6:38]
        elif direction is Direction.TO_CLIENT and len(hello) >= 39 and hello[0] == _SERVER_HELLO:
            at = 39 + hello[38]  # after the session ID
            suite = int.from_bytes(hello[at : at + 2], "big")
            if suite in SUITES:
                self.suite = suite
        self.derive_keys()

    def derive_keys(self, *, late: bool = False) -> None:
        """Derive the packet protection from every secret that the key log has for this connection.

        ``late``: the capture joins the connection when its packet numbers may be anywhere.
        """
        if self.client_random is None or self.suite is None:
            return
        secrets = self._secrets()
        for (space, direction), label in LABELS.items():
            key = (space, direction, self.version)
            if label in secrets and key not in self._protection:
                protection = PacketProtection(self.suite, secrets[label], self.version)
                if late:
                    protection.join_late()
                self._protection[key] = protection

    def derive_initial_keys(self, packet: ProtectedPacket, direction: Direction) -> None:
        """Initial keys come from the client's first ID; after a Retry from the one it was given."""
        key = (Space.INITIAL, direction, packet.version)
        known = self._protection.get(key)
        if known is not None and direction is Direction.TO_CLIENT:
            return
        if known is not None and known.open(packet.data, packet.number_offset) is not None:
            return
        for candidate in (self.original_cid, packet.destination_cid):
            for salt in initial_salts(packet.version):
                secret = initial_secrets(packet.version, candidate, salt)[direction is Direction.TO_CLIENT]
                fresh = PacketProtection(INITIAL_SUITE, secret, packet.version)
                if fresh.open(packet.data, packet.number_offset) is not None:
                    self.original_cid = candidate
                    self._protection[key] = fresh
                    return

    def open(self, packet: ProtectedPacket, direction: Direction) -> Opened | None:
        """Remove a packet's protection; None when no key of this connection opens it."""
        if packet.space is Space.ZERO_RTT:
            self._derive_early_keys(packet)
        protection = self._protection.get((packet.space, direction, packet.version))
        opened = protection.open(packet.data, packet.number_offset) if protection is not None else None
        if opened is None and packet.space is Space.INITIAL:
            return self._open_by_other_version(packet, direction)
        return opened

    def _open_by_other_version(self, packet: ProtectedPacket, direction: Direction) -> Opened | None:
        """A stack that changes the version may keep the first one's Initial keys: aioquic 1.7 does."""
        for (space, way, version), protection in self._protection.items():
            if space is Space.INITIAL and way is direction and version != packet.version:
                opened = protection.open(packet.data, packet.number_offset)
                if opened is not None:
                    return opened
        return None

    def take_retry(self, packet: ProtectedPacket) -> Why:
        """Start again with the connection ID that a Retry gives (RFC 9000 §17.2.5, RFC 9001 §5.8).

        The ClientHello that follows may be the same or another one.
        """
        if packet.data == self._retry or self.suite is not None:
            return Why.OPENED  # the same once more, or too late to be meant
        if not self._retry_is_genuine(packet):
            return Why.WRONG_TAG
        self._retry = packet.data
        self.original_cid = packet.source_cid
        self.restart(packet.version)
        return Why.OPENED

    def restart(self, version: int) -> None:
        """Forget the first flight: the client begins again, after a Retry or with another version."""
        if self.suite is not None:
            return  # the server has answered: this comes too late to be meant
        self.client_random = None
        self._hello = {direction: CryptoStream() for direction in Direction}
        for direction in Direction:
            self._protection.pop((Space.INITIAL, direction, version), None)

    def _retry_is_genuine(self, packet: ProtectedPacket) -> bool:
        key = retry_key(packet.version)
        if key is None:  # the drafts before 25 have no tag
            return True
        if len(packet.data) < packet.number_offset + _RETRY_TAG_BYTES:
            return False
        body, tag = packet.data[:-_RETRY_TAG_BYTES], packet.data[-_RETRY_TAG_BYTES:]
        pseudo = bytes([len(self.original_cid)]) + self.original_cid + body
        try:
            AESGCM(key[0]).decrypt(key[1], tag, pseudo)
        except InvalidTag:
            return False
        return True

    def is_stateless_reset(self, packet: ProtectedPacket) -> bool:
        """Whether a packet ends with a token that this connection was given (RFC 9000 §10.3.1)."""
        end = packet.data[-_RETRY_TAG_BYTES:]
        return any(hmac.compare_digest(end, token) for token in self.reset_tokens)

    def why_not(self, packet: ProtectedPacket, direction: Direction) -> Why:
        """Why no key of this connection opens a packet."""
        if packet.missing_bytes:
            return Why.CUT_OFF
        if packet.space is Space.ONE_RTT and self.is_stateless_reset(packet):
            return Why.STATELESS_RESET
        if (packet.space, direction, packet.version) in self._protection:
            return Why.WRONG_KEYS
        if packet.space is Space.INITIAL:
            return Why.NO_INITIAL
        if self.client_random is not None and not self._secrets():
            return Why.NO_SECRETS
        if packet.space is Space.ZERO_RTT:
            return Why.NO_EARLY if self.client_random is not None else Why.NO_HELLO
        return Why.NO_SECRETS if self.knows_secrets else Why.NO_HELLO

    def note_nonce(
        self, packet: ProtectedPacket, direction: Direction, opened: Opened, vantage: int = 0
    ) -> tuple[bool, bool]:
        """Whether this vantage point saw the same packet before, and whether another used its nonce."""
        # its authentication tag tells a packet from any other under the same key and number
        digest = packet.data[-_TAG_BYTES:]
        key = (packet.space, direction, opened.generation, opened.packet_number)
        used, bit = self._used, 1 << vantage
        before = used.get(key)
        if before is None:
            if self._bounded and len(used) >= _NONCES_REMEMBERED:
                del used[next(iter(used))]
            used[key] = (digest, bit)
            return False, False
        if before[0] != digest:
            return False, True
        if before[1] & bit:
            return True, False
        used[key] = (digest, before[1] | bit)
        return False, False

    def _derive_early_keys(self, packet: ProtectedPacket) -> None:
        """0-RTT comes before ServerHello: its suite is the ticket's, and the packet itself tells which."""
        key = (Space.ZERO_RTT, Direction.TO_SERVER, packet.version)
        secret = self._secrets().get(LABELS[Space.ZERO_RTT, Direction.TO_SERVER])
        if secret is None or key in self._protection:
            return
        for suite in suites_for(secret):
            protection = PacketProtection(suite, secret, packet.version)
            if protection.open(packet.data, packet.number_offset) is not None:
                self._protection[key] = protection
                return

    def _secrets(self) -> dict[str, bytes]:
        return self._keylog.get(self.client_random or b"", {})
