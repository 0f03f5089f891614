"""Watches every packet that is encrypted: no AEAD nonce may protect two different packets.

RFC 9001 §5.3: the nonce is made of the key's IV and the packet number, so key and packet number name it.
The rule is judged over all processes of a world together, as an attacker on the wire would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from aioquic.quic.crypto import CryptoContext

Packet = Callable[[bytes, int, bytes], None]


def protecting(kind: type[CryptoContext] = CryptoContext) -> Iterator[type[CryptoContext]]:
    """Every class that protects packets by a method of its own, of aioquic and of ours that are loaded."""
    if "encrypt_packet" in vars(kind):
        yield kind
    for derived in kind.__subclasses__():
        yield from protecting(derived)


@contextmanager
def each_packet(told: Packet) -> Iterator[None]:
    """While this lasts, ``told`` hears the secret, the packet number and the content of each packet."""

    def watched(kind: type[CryptoContext]) -> Callable[..., bytes]:
        encrypt = kind.encrypt_packet

        def encrypt_packet(
            self: CryptoContext, plain_header: bytes, plain_payload: bytes, packet_number: int
        ) -> bytes:
            assert self.secret is not None
            told(self.secret, packet_number, plain_header + plain_payload)
            return encrypt(self, plain_header, plain_payload, packet_number)

        return encrypt_packet

    with ExitStack() as patches:
        for kind in list(protecting()):
            patches.enter_context(mock.patch.object(kind, "encrypt_packet", watched(kind)))
        yield


class NonceLedger:
    """(secret, packet number) -> what it protected."""

    def __init__(self, repeated: Callable[[int], None]) -> None:
        self._seen: dict[tuple[bytes, int], int] = {}
        self._repeated = repeated
        self.packets = 0

    def enter(self, secret: bytes, number: int, content: bytes) -> None:
        """Account for one packet."""
        self.packets += 1
        known = self._seen.setdefault((secret, number), hash(content))
        if known != hash(content):
            self._repeated(number)


@contextmanager
def watching(repeated: Callable[[int], None]) -> Iterator[NonceLedger]:
    """While this lasts, ``repeated`` is called with the packet number of each nonce that is used twice."""
    ledger = NonceLedger(repeated)
    with each_packet(ledger.enter):
        yield ledger
