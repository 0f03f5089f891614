"""A pair of keys that can still read what was sent with the keys before the last update.

After an update of its own, an endpoint keeps the old keys until the peer has used the new ones (RFC 9001
§6.1): the packet that tells of the update may be lost, with a server that is frozen for instance, and what
the peer sends meanwhile has the old ones. Upstream forgets them, and neither end would read the other again.
"""

from __future__ import annotations

from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair


class RetainingPair(CryptoPair):
    """``CryptoPair`` with the former keys for reading."""

    _former: CryptoContext | None = None
    _new_since: int | None = None  # the lowest packet number that the new keys have opened

    def _update_key(self, trigger: str) -> None:
        former = CryptoContext(key_phase=self.recv.key_phase)
        former.aead, former.hp, former.secret = self.recv.aead, self.recv.hp, self.recv.secret
        former.cipher_suite, former.version = self.recv.cipher_suite, self.recv.version
        self._former, self._new_since = former, None
        super()._update_key(trigger)

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        try:
            header, payload, number = super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        except CryptoError:
            if self._former is None:
                raise
            header, payload, number, later = self._former.decrypt_packet(
                packet, encrypted_offset, expected_packet_number
            )
            # RFC 9001 §6.4: never the old keys above a number that had the new ones
            if later or (self._new_since is not None and number > self._new_since):
                raise
            return header, payload, number
        if self._former is not None and (self._new_since is None or number < self._new_since):
            self._new_since = number
        return header, payload, number


def retain_former_keys(pair: CryptoPair) -> None:
    """From now on the pair keeps its former keys; it stays the object that it is."""
    pair.__class__ = RetainingPair


def former_secret(pair: CryptoPair) -> bytes | None:
    """The secret before the last update, while the peer may still use it."""
    former = getattr(pair, "_former", None)
    return None if former is None or getattr(pair, "_new_since", None) is not None else former.secret


def restore_former(pair: CryptoPair, secret: bytes | None) -> None:
    """Takes over what ``former_secret`` gave elsewhere; the present keys are in place."""
    if secret is None or not isinstance(pair, RetainingPair):
        return
    assert pair.recv.cipher_suite is not None and pair.recv.version is not None
    former = CryptoContext(key_phase=int(not pair.recv.key_phase))
    former.setup(cipher_suite=pair.recv.cipher_suite, secret=secret, version=pair.recv.version)
    former.hp = pair.recv.hp  # header protection is never updated (RFC 9001 §6.1)
    pair._former = former
