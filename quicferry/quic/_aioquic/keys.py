"""1-RTT keys: packet protection in one step, and a memory of the keys before the last update.

A short header is protected and unprotected by one function here (RFC 9001 §5.3, §5.4); upstream's way from
``CryptoPair`` to the cipher is six calls and three copies of the packet, which was the largest single cost
of a packet. Every other case is upstream's: long headers, ChaCha20, a change of the key phase.

After an update of its own, an endpoint keeps the old keys until the peer has used the new ones (RFC 9001
§6.1): the packet that tells of the update may be lost, with a server that is frozen for instance, and what
the peer sends meanwhile has the old ones. Upstream forgets them, and neither end would read the other again.

For the same reason nobody updates twice before the peer is known to have followed: it could read no third
phase. Upstream does as it is told.
"""

from __future__ import annotations

from aioquic._crypto import AEAD_NONCE_LENGTH, CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair, apply_key_phase, next_key_phase
from aioquic.quic.packet import decode_packet_number
from cryptography.exceptions import InvalidTag

_LONG_HEADER = 0x80
_PROTECTED_BITS = 0x1F  # of a short header's first byte (RFC 9001 §5.4.1)
_SAMPLE_AFTER = 4  # a sample begins where a packet number of four bytes would end
_SAMPLE_END = _SAMPLE_AFTER + 16


class ShortHeaderContext(CryptoContext):
    """``CryptoContext`` that protects a short header in one step."""

    def encrypt_packet(self, plain_header: bytes, plain_payload: bytes, packet_number: int) -> bytes:
        aead, hp = self.aead, self.hp
        first = plain_header[0]
        if aead is None or hp is None or hp._is_chacha20 or first & _LONG_HEADER:
            return super().encrypt_packet(plain_header, plain_payload, packet_number)
        nonce = (aead._iv ^ packet_number).to_bytes(AEAD_NONCE_LENGTH, "big")
        protected = aead._aead.encrypt(nonce, plain_payload, plain_header)
        length = (first & 3) + 1
        mask = hp._encryptor.update(protected[_SAMPLE_AFTER - length : _SAMPLE_END - length])
        number = int.from_bytes(plain_header[-length:], "big") ^ int.from_bytes(mask[1 : 1 + length], "big")
        return b"%c%b%b%b" % (
            first ^ (mask[0] & _PROTECTED_BITS),
            plain_header[1:-length],
            number.to_bytes(length, "big"),
            protected,
        )


class RetainingPair(CryptoPair):
    """``CryptoPair`` with the former keys for reading."""

    _former: CryptoContext | None = None
    _new_since: int | None = None  # the lowest packet number that the new keys have opened
    _sent_since: int | None = -1  # the first packet number of the present keys; None: none was sent yet

    def encrypt_packet(self, plain_header: bytes, plain_payload: bytes, packet_number: int) -> bytes:
        if self._update_key_requested:
            self._update_key("local_update")
        if self._sent_since is None:
            self._sent_since = packet_number
        return self.send.encrypt_packet(plain_header, plain_payload, packet_number)

    @property
    def key_phase(self) -> int:
        """That of the next packet that is sent; what is read may be one ahead (``follow_reading``)."""
        return int(not self.send.key_phase) if self._update_key_requested else self.send.key_phase

    def _update_key(self, trigger: str) -> None:
        self._sent_since = None
        self.keep_former()
        super()._update_key(trigger)

    def keep_former(self) -> None:
        """Keep the keys by which the peer's packets were read so far: late ones may still come."""
        former = CryptoContext(key_phase=self.recv.key_phase)
        former.aead, former.hp, former.secret = self.recv.aead, self.recv.hp, self.recv.secret
        former.cipher_suite, former.version = self.recv.cipher_suite, self.recv.version
        self._former, self._new_since = former, None

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        recv = self.recv
        aead, hp = recv.aead, recv.hp
        if (
            self._former is None
            and aead is not None
            and hp is not None
            and not hp._is_chacha20
            and not packet[0] & _LONG_HEADER
            and len(packet) >= encrypted_offset + _SAMPLE_END
        ):
            mask = hp._encryptor.update(
                packet[encrypted_offset + _SAMPLE_AFTER : encrypted_offset + _SAMPLE_END]
            )
            first = packet[0] ^ (mask[0] & _PROTECTED_BITS)
            if (first >> 2) & 1 == recv.key_phase:
                length = (first & 3) + 1
                end = encrypted_offset + length
                sent = int.from_bytes(packet[encrypted_offset:end], "big")
                sent ^= int.from_bytes(mask[1 : 1 + length], "big")
                header = b"%c%b%b" % (first, packet[1:encrypted_offset], sent.to_bytes(length, "big"))
                number = decode_packet_number(sent, length * 8, expected_packet_number)
                nonce = (aead._iv ^ number).to_bytes(AEAD_NONCE_LENGTH, "big")
                try:
                    return header, aead._aead.decrypt(nonce, packet[end:], header), number
                except InvalidTag as error:
                    raise CryptoError(str(error)) from error
        return self._decrypt_in_steps(packet, encrypted_offset, expected_packet_number)

    def _decrypt_in_steps(
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
    pair.send.__class__ = ShortHeaderContext  # of the context, not of the pair: that is what a freeze seals


def may_update(pair: CryptoPair, largest_acknowledged: int) -> bool:
    """Whether the peer is known to have the present keys: it has acknowledged a packet that had them."""
    #: RFC 9001 6.1: MUST NOT initiate a subsequent key update unless
    since = pair._sent_since if isinstance(pair, RetainingPair) else -1
    return since is not None and largest_acknowledged >= since and not pair._update_key_requested


def follow_reading(pair: CryptoPair) -> None:
    """Takes the peer's key update for what is read. What is sent follows with ``follow_sending``."""
    if isinstance(pair, RetainingPair):
        pair.keep_former()
    apply_key_phase(pair.recv, next_key_phase(pair.recv), trigger="remote_update")
    pair._update_key_requested = False


def follow_sending(pair: CryptoPair) -> None:
    """Makes up for what ``follow_reading`` has put off, if anything."""
    if pair.send.key_phase != pair.recv.key_phase:
        apply_key_phase(pair.send, next_key_phase(pair.send), trigger="remote_update")
        if isinstance(pair, RetainingPair):
            pair._sent_since = None


def were_updated_elsewhere(pair: CryptoPair) -> bool:
    """The keys are not the first, and what told the peer of them is not known here.

    Returns whether the next update has to wait for that.
    """
    if isinstance(pair, RetainingPair):
        pair._sent_since = None
    return isinstance(pair, RetainingPair)


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
