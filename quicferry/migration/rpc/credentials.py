"""One certificate authority per run, and a certificate for each agent and the orchestrator.

Checkpoints hold traffic secrets, so both ends of every RPC prove who they are. The authority's key
never leaves the process that made it; the keys of the parties are files of mode 0600. The library trustme
makes them: ECDSA P-256, less than a millisecond each. Its authorities have no lifetime to choose, which
does not matter for one that lives in memory; the parties' certificates have.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import msgspec
import trustme

from quicferry.errors import InvalidInput

LIFETIME = datetime.timedelta(days=2)  # longer than any run; a run's certificates die with it
CLOCK_SLACK = datetime.timedelta(hours=1)
ORGANIZATION = "quicferry"


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
    """A certificate authority that lives in memory, for one run."""

    def __init__(self) -> None:
        self._authority = trustme.CA(
            path_length=0, organization_name=ORGANIZATION, organization_unit_name="run authority"
        )

    def issue(self, name: str) -> Identity:
        """A key and a certificate for one party, for either end of a connection.

        ``name`` is the party's name in the topology (``edge-1``, ``orch``). Connections are checked
        against the name, not the address: a party has several addresses. The called end reads the
        name of its caller from the subject's common name.
        """
        now = datetime.datetime.now(datetime.UTC)
        issued = self._authority.issue_cert(
            name,
            common_name=name,
            organization_name=ORGANIZATION,
            organization_unit_name="party",
            not_before=now - CLOCK_SLACK,
            not_after=now + LIFETIME,
        )
        return Identity(
            authority=self._authority.cert_pem.bytes(),
            certificate=issued.cert_chain_pems[0].bytes(),
            key=issued.private_key_pem.bytes(),
        )
