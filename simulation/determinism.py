"""Where a simulated world's time and randomness come from: its clock and its seed, and nothing else.

The project reads the time in ``quicferry.units`` alone, and randomness from ``os.urandom``, ``random``
and ``secrets``; aioquic makes its TLS keys with ``cryptography``. All of these are bound to the world
here, in this one place, while a world plays. Equal plays are equal to the bit, in every process.
"""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

from aioquic import tls
from aioquic.quic.stream import QuicStream
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x448, x25519

from quicferry import units
from simulation.clock import Clock

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@contextmanager
def determined(clock: Clock, seed: int) -> Iterator[None]:
    """While this lasts, ``clock`` and ``seed`` decide what time it is and what is drawn."""
    entropy = random.Random(f"entropy {seed}")
    before = random.getstate()
    random.seed(f"code {seed}")
    with ExitStack() as patches:
        for target, name, value in (
            (units, "time", clock),
            (os, "urandom", entropy.randbytes),
            (random, "_urandom", entropy.randbytes),
            (tls, "x25519", _generating(x25519, "X25519PrivateKey", entropy, 32)),
            (tls, "x448", _generating(x448, "X448PrivateKey", entropy, 56)),
            (tls, "ec", _curve(entropy)),
            # aioquic sends streams in the order of a set of them, which is that of their addresses in memory
            (QuicStream, "__hash__", lambda stream: hash(stream.stream_id)),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        try:
            yield
        finally:
            random.setstate(before)


def _generating(module: Any, name: str, entropy: random.Random, size: int) -> Any:
    """A module in which private keys of that class come from ``entropy``."""
    original = getattr(module, name)
    members = dict(vars(module))
    members[name] = SimpleNamespace(
        generate=lambda: original.from_private_bytes(entropy.randbytes(size)),
        from_private_bytes=original.from_private_bytes,
    )
    return SimpleNamespace(**members)


def _curve(entropy: random.Random) -> Any:
    members = dict(vars(ec))
    members["generate_private_key"] = lambda curve: ec.derive_private_key(
        1 + entropy.randrange(_P256_ORDER - 1), curve
    )
    return SimpleNamespace(**members)


@cache
def certificate(name: str = "service.test") -> tuple[x509.Certificate, ed25519.Ed25519PrivateKey]:
    """A certificate of its own authority. Ed25519: its signatures are the same each time."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    itself = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(itself)
        .issuer_name(itself)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, None)
    )
    return made, key
