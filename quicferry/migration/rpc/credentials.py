"""One certificate authority per run, and a certificate for each agent and the orchestrator.

Checkpoints hold traffic secrets, so both ends of every RPC prove who they are. The authority's key
never leaves the process that made it; the keys of the parties are files of mode 0600. ECDSA P-256:
a certificate takes less than a millisecond to make.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quicferry.errors import InvalidInput

LIFETIME = datetime.timedelta(days=2)  # longer than any run; a run's certificates die with it
CLOCK_SLACK = datetime.timedelta(hours=1)


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Where a party's credentials are: PEM files."""

    authority: str
    certificate: str
    key: str

    def load(self) -> Identity:
        """Read the files. Raises ``InvalidInput`` when one is missing."""
        try:
            return Identity(
                authority=Path(self.authority).read_bytes(),
                certificate=Path(self.certificate).read_bytes(),
                key=Path(self.key).read_bytes(),
            )
        except OSError as error:
            raise InvalidInput(
                f"cannot read the TLS file {error.filename}: {error.strerror}",
                hint="the run's credentials are made by Authority.issue(name).save(directory)",
            ) from error


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a party needs to prove who it is and to check the others (PEM)."""

    authority: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Identity(…)"  # a private key has no place in a log

    def save(self, directory: Path, name: str) -> TlsFiles:
        """Write three PEM files of mode 0600 into a directory of mode 0700."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = {
            directory / f"{name}.authority.pem": self.authority,
            directory / f"{name}.certificate.pem": self.certificate,
            directory / f"{name}.key.pem": self.key,
        }
        for path, content in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        authority, certificate, key = map(str, files)
        return TlsFiles(authority=authority, certificate=certificate, key=key)


class Authority:
    """A certificate authority that lives in memory."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "quicferry run authority")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SLACK)
            .not_valid_after(now + LIFETIME)
        )

    def issue(self, name: str) -> Identity:
        """A key and a certificate for one party, for either end of a connection.

        ``name`` is the party's name in the topology (``edge-1``, ``orch``). Connections are checked
        against the name, not the address: a party has several addresses.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Identity(
            authority=self._certificate.public_bytes(serialization.Encoding.PEM),
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
