"""A keyed digest of bytes that are taken in one after another: GMAC (NIST SP 800-38D), 128 bits.

AES-GCM without anything to encrypt, and the fastest that there is where the processor has instructions for
it: 0.05 ms of processor time per MiB, where SHA-256 takes 0.8 and CRC-32 0.3. The nonce is always the same:
a digest is against damage, which nobody makes on purpose (what crosses the network is in TLS besides).
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from quicferry.errors import MigrationError

KEY_BYTES = 16
_NONCE = bytes(12)


def new_key() -> bytes:
    """A key that nobody has had before."""
    return os.urandom(KEY_BYTES)


class Digest:
    """The digest of the bytes that were given to ``add``; once it was looked at, no more may follow.

    Raises ``MigrationError`` for what cannot be a key.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise MigrationError(f"a digest's key has {KEY_BYTES} bytes, not {len(key)}")
        self._mac = Cipher(algorithms.AES(key), modes.GCM(_NONCE)).encryptor()
        self._value: bytes | None = None

    def add(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes."""
        self._mac.authenticate_additional_data(piece)

    @property
    def value(self) -> bytes:
        """The digest of all bytes."""
        if self._value is None:
            self._mac.finalize()
            self._value = self._mac.tag
        return self._value
