"""Derives packet protection from traffic secrets (RFC 9001 §5 and §6; RFC 9369 for version 2).

Reads the NSS key log format that every QUIC stack writes (``SSLKEYLOGFILE``): a label, the
client's random and the secret, in hexadecimal, one per line.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from quicferry.capture.quic.versions import VERSION_1, VERSION_2, initial_salts, label_prefix
from quicferry.errors import CaptureError

__all__ = [
    "INITIAL_SUITE",
    "SUITES",
    "VERSION_1",
    "VERSION_2",
    "KeyLog",
    "Opened",
    "PacketProtection",
    "add_secrets",
    "aead_of",
    "decode_packet_number",
    "expand_label",
    "initial_secrets",
    "read_keylog",
    "read_keylog_into",
]

#: TLS cipher suite -> hash, AEAD key length in bytes, and whether it is ChaCha20 (RFC 8446 §B.4)
SUITES: dict[int, tuple[str, int, bool]] = {
    0x1301: ("sha256", 16, False),  # TLS_AES_128_GCM_SHA256
    0x1302: ("sha384", 32, False),  # TLS_AES_256_GCM_SHA384
    0x1303: ("sha256", 32, True),  # TLS_CHACHA20_POLY1305_SHA256
    0x1304: ("sha256", 16, False),  # TLS_AES_128_CCM_SHA256
}
_CCM = 0x1304
Aead = AESGCM | AESCCM | ChaCha20Poly1305
_HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}
INITIAL_SUITE = 0x1301  # RFC 9001 §5.2

KeyLog = dict[bytes, dict[str, bytes]]
"""Client random -> label (``CLIENT_TRAFFIC_SECRET_0`` …) -> secret."""


#: The labels of TLS 1.3 and QUIC in a key log; others are of older versions of TLS, or of no use here.
_LABELS = frozenset(
    {
        "CLIENT_EARLY_TRAFFIC_SECRET",
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "EARLY_EXPORTER_SECRET",
        "EXPORTER_SECRET",
    }
)
_LONGEST_LINE_BYTES = 4096
#: A file of which so much was read without a secret is something else.
_HOPELESS_BYTES = 1 << 20


def read_keylog(path: Path) -> KeyLog:
    """Read an NSS key log; comments and lines that are cut off are left out.

    Raises ``CaptureError`` when there is no such file.
    """
    found: KeyLog = {}
    read_keylog_into(found, path)
    return found


def read_keylog_into(found: KeyLog, path: Path) -> int:
    """As ``read_keylog``, added to ``found``; returns how many lines are neither secrets nor comments."""
    broken = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE_BYTES):
                broken += not _add_line(found, line)
                if not found and file.tell() > _HOPELESS_BYTES:
                    break
    except OSError as error:
        raise CaptureError(
            f"no key log at {path}", hint="without the run's secrets its captures cannot be decrypted"
        ) from error
    return broken


def add_secrets(found: KeyLog, log: bytes) -> int:
    """Add the lines of a key log; returns how many of them are neither secrets nor comments."""
    return sum(not _add_line(found, line) for line in log.splitlines())


def _add_line(found: KeyLog, line: bytes) -> bool:
    """Take in one line, with whatever end of line; False when it is broken."""
    words = line.decode("ascii", errors="replace").split()
    if not words or words[0].startswith("#"):
        return True
    if len(words) != 3:
        return False
    try:
        random, secret = bytes.fromhex(words[1]), bytes.fromhex(words[2])
    except ValueError:
        return False
    label = words[0].removeprefix("QUIC_")  # as some stacks called them before RFC 9001
    if label not in _LABELS:
        return label.replace("_", "").isalnum()
    if len(random) != 32 or len(secret) not in (32, 48):
        return False
    found.setdefault(random, {})[label] = secret
    return True


def expand_label(algorithm: str, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 §7.1)."""
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0"
    return HKDFExpand(_HASHES[algorithm], length, info).derive(secret)


def aead_of(suite: int, key: bytes) -> Aead:
    """The AEAD of a cipher suite, with its key."""
    if SUITES[suite][2]:
        return ChaCha20Poly1305(key)
    return AESCCM(key, tag_length=16) if suite == _CCM else AESGCM(key)


def initial_secrets(version: int, destination_cid: bytes, salt: bytes | None = None) -> tuple[bytes, bytes]:
    """The client's and the server's Initial secrets. Raises ``KeyError`` for an unknown version."""
    common = hmac.new(salt or initial_salts(version)[0], destination_cid, hashlib.sha256).digest()
    return (
        expand_label("sha256", common, b"client in", 32),
        expand_label("sha256", common, b"server in", 32),
    )


#: Where packet numbers may be when a capture begins late, by the bytes that they are written with.
_LATE_HINTS: dict[int, tuple[int, ...]] = {
    1: tuple(range(256, 1 << 14, 256)),
    2: tuple(range(1 << 16, 1 << 22, 1 << 16)),
    3: (),
    4: (),
}
_RESERVED_BITS = 0x18  # of a short header: zero once protection is removed (RFC 9000 §17.3.1)


class Opened(NamedTuple):
    """A packet with its protection removed."""

    packet_number: int
    generation: int  # 0 before the first key update
    payload: bytes


def decode_packet_number(truncated: int, length_bytes: int, expected: int) -> int:
    """The full packet number that is nearest to ``expected`` (RFC 9000 §A.3)."""
    window = 1 << (8 * length_bytes)
    candidate = (expected & ~(window - 1)) | truncated
    if candidate <= expected - window // 2 and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + window // 2 and candidate >= window:
        return candidate - window
    return candidate


class PacketProtection:
    """Removes the protection of the packets of one direction and one packet number space.

    Header protection keys stay for the connection's life; AEAD keys change with each key update
    (RFC 9001 §6). All generations are kept, so that packets that come late open too.
    """

    def __init__(self, suite: int, secret: bytes, version: int) -> None:
        self._suite = suite
        self._hash, self._key_length, self._is_chacha = SUITES[suite]
        self._prefix = label_prefix(version)
        self._next_secret = secret
        self._generations: list[tuple[Aead, int]] = []
        self._add_generation()
        self._header_key = expand_label(self._hash, secret, self._prefix + b" hp", self._key_length)
        # ECB of one block is what RFC 9001 §5.4.3 asks for; nothing is kept secret by it here
        self._header_cipher = (
            None if self._is_chacha else Cipher(algorithms.AES(self._header_key), modes.ECB()).encryptor()  # noqa: S305 - RFC 9001
        )
        self.expected = 0  # largest packet number seen, plus one
        self.current = 0  # generation of the newest packet
        #: other places where numbers may begin, for a capture that joins the connection late
        self.hints: tuple[int, ...] = ()
        self._is_late = False

    def join_late(self) -> None:
        """Expect packet numbers anywhere, as short as they are written, until the first one is found."""
        self._is_late = True

    def _add_generation(self) -> None:
        secret = self._next_secret
        key = expand_label(self._hash, secret, self._prefix + b" key", self._key_length)
        iv = expand_label(self._hash, secret, self._prefix + b" iv", 12)
        aead = aead_of(self._suite, key)
        self._generations.append((aead, int.from_bytes(iv, "big")))
        self._next_secret = expand_label(self._hash, secret, self._prefix + b" ku", len(secret))

    def _mask(self, sample: bytes) -> bytes:
        if self._header_cipher is not None:
            return self._header_cipher.update(sample)
        cipher = Cipher(algorithms.ChaCha20(self._header_key, sample), mode=None)
        return cipher.encryptor().update(bytes(5))

    def open(self, packet: bytes, number_offset: int) -> Opened | None:
        """Open one packet; None when it does not belong to these keys.

        ``number_offset`` is where the packet number begins; ``packet`` ends with its AEAD tag.
        """
        sample = packet[number_offset + 4 : number_offset + 20]
        if len(sample) < 16:
            return None
        mask = self._mask(sample) if self._header_cipher is None else self._header_cipher.update(sample)
        is_long = packet[0] & 0x80
        first = packet[0] ^ (mask[0] & (0x0F if is_long else 0x1F))
        if self._is_late and first & _RESERVED_BITS:
            return None  # most packets that these keys do not belong to
        length = (first & 0x03) + 1
        end = number_offset + length
        protected = int.from_bytes(packet[number_offset:end], "big")
        truncated = protected ^ int.from_bytes(mask[1 : 1 + length], "big")
        header = bytes([first]) + packet[1:number_offset] + truncated.to_bytes(length, "big")
        sealed = packet[end:]
        # the commonest case first: the next number, the current keys
        expected = self.expected
        window = 1 << (8 * length)
        number = (expected & ~(window - 1)) | truncated
        if abs(number - expected) << 1 >= window:  # the nearest one is of another window
            number = decode_packet_number(truncated, length, expected)
        current = self.current
        if not is_long and (first >> 2) & 1 == current & 1:
            aead, iv = self._generations[current]
            try:
                payload = aead.decrypt((iv ^ number).to_bytes(12, "big"), sealed, header)
            except InvalidTag:
                pass  # another number, or other keys
            else:
                if number >= expected:
                    self.expected = number + 1
                self._is_late = False
                return Opened(number, current, payload)
        tried: set[int] = set()
        hints = _LATE_HINTS[length] if self._is_late else self.hints
        for expected in (self.expected, *hints):
            number = decode_packet_number(truncated, length, expected)
            if number in tried:
                continue
            tried.add(number)
            candidates = self._candidates(first, bool(is_long))
            for generation in candidates[:1] if self._is_late and tried != {number} else candidates:
                while generation >= len(self._generations):
                    self._add_generation()
                aead, iv = self._generations[generation]
                try:
                    payload = aead.decrypt((iv ^ number).to_bytes(12, "big"), sealed, header)
                except InvalidTag:
                    continue
                self.expected = max(self.expected, number + 1)
                self.current = max(self.current, generation)
                self._is_late = False
                return Opened(number, generation, payload)
        return None

    def _candidates(self, first: int, is_long: bool) -> tuple[int, ...]:
        """Generations that the key phase bit allows, the likeliest first.

        The capture may have missed a whole generation, hence the one three ahead as well.
        """
        if is_long:
            return (0,)
        phase = (first >> 2) & 1
        if phase == self.current & 1:
            around = (self.current, self.current - 2, self.current + 2)
        else:
            around = (self.current + 1, self.current - 1, self.current + 3)
        return tuple(generation for generation in around if generation >= 0)
