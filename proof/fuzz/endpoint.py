"""The server's QUIC configuration into which hand-off data are restored."""

from __future__ import annotations

import datetime
from functools import cache

from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

NAME = "service.test"


@cache
def configuration() -> QuicConfiguration:
    """As that of the connection in the corpus: ALPN and datagram size must agree."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .sign(key, hashes.SHA256())
    )
    return QuicConfiguration(
        is_client=False,
        alpn_protocols=["ferry-test"],
        certificate=made,
        private_key=key,
        max_datagram_frame_size=1200,
    )
