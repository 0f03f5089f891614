"""What errors become on their way, and what certificates say."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import msgspec
import pytest
from cryptography import x509

from quicferry.errors import FerryError, InvalidInput, MigrationError, Unsupported
from quicferry.migration.engines.registry import engines
from quicferry.migration.order import Deadlines, MoveOrder, check_lease, lease_of
from quicferry.migration.rpc import messages
from quicferry.migration.rpc.channel import (
    HINT_KEY,
    KIND_KEY,
    Duplex,
    TooLate,
    Unary,
    Unreachable,
    address_of,
    error_from,
)
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.model import Endpoint
from quicferry.strategies import Strategy
from quicferry.units import now_ns


def failed(code: grpc.StatusCode, kind: str | None = None, hint: str = "") -> FerryError:
    metadata = grpc.aio.Metadata((HINT_KEY, hint.encode()))
    if kind is not None:
        metadata.add(KIND_KEY, kind)
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details="what happened")
    return error_from(error, "Move", "edge-2")


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, TooLate),
        (grpc.StatusCode.UNAVAILABLE, None, Unreachable),
        (grpc.StatusCode.CANCELLED, None, Unreachable),
        (grpc.StatusCode.FAILED_PRECONDITION, "InvalidInput", InvalidInput),
        (grpc.StatusCode.FAILED_PRECONDITION, "Unsupported", Unsupported),
        (grpc.StatusCode.FAILED_PRECONDITION, "MigrationError", MigrationError),
        (grpc.StatusCode.INTERNAL, None, MigrationError),
        (grpc.StatusCode.UNIMPLEMENTED, None, MigrationError),
    ],
)
def test_errors_keep_their_kind(code: grpc.StatusCode, kind: str | None, expected: type[FerryError]) -> None:
    error = failed(code, kind, "do «this»")
    assert type(error) is expected
    assert "edge-2" in str(error)
    assert error.hint == "do «this»"


def test_trouble_of_the_connection_has_a_hint_of_its_own() -> None:
    assert failed(grpc.StatusCode.UNAVAILABLE).hint
    assert failed(grpc.StatusCode.DEADLINE_EXCEEDED).hint


def test_addresses_need_no_resolver() -> None:
    assert address_of(Endpoint("10.0.90.2", 4500)) == "ipv4:10.0.90.2:4500"
    assert address_of(Endpoint("fd00::2", 4500)) == "ipv6:[fd00::2]:4500"


def test_every_message_survives_the_wire() -> None:
    order = MoveOrder(
        epoch=3,
        strategy=Strategy.POOL,
        server_first=True,
        engine="handoff",
        source="edge-1",
        destination="edge-2",
        service=Endpoint("10.0.2.2", 4433),
        deadlines=Deadlines(notice_s=0.25),
        resume_before_ns=17,
    )
    for message in (
        messages.Begin(order=order, key=bytes(16)),
        messages.Piece(b"\x00\xff" * 10),
        messages.End(size_bytes=20, digest="ab", resume_before_ns=5),
        messages.Commit(epoch=3),
    ):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=messages.ToDestination) == message
    for answer in (
        messages.Received(size_bytes=1, t_ns=2),
        messages.Resuming(epoch=3),
        messages.Resumed(epoch=3, t_ns=2, answer={"connections": 1}),
        messages.Committed(epoch=3),
    ):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=messages.ToSource) == answer


def test_method_names_are_unique() -> None:
    names = [value.name for value in vars(messages).values() if isinstance(value, (Unary, Duplex))]
    assert len(names) == len(set(names)) == 11


def test_lease() -> None:
    order = MoveOrder(
        epoch=1,
        strategy=Strategy.POOL,
        server_first=False,
        engine="handoff",
        source="edge-1",
        destination="edge-2",
        service=Endpoint("10.0.2.2", 4433),
    )
    check_lease(lease_of(order), "edge-2")  # not frozen: nothing to check
    check_lease(lease_of(msgspec.structs.replace(order, resume_before_ns=now_ns() + 10**9)), "edge-2")
    with pytest.raises(MigrationError, match="too late to edge-2"):
        check_lease(lease_of(msgspec.structs.replace(order, resume_before_ns=now_ns() - 1)), "edge-2")


def test_engines_are_named_as_on_the_command_line() -> None:
    assert {"handoff", "criu-cold"} <= set(engines())


def test_certificates_are_private_and_name_their_party(tmp_path: Path) -> None:
    identity = Authority().issue("edge-1")
    files = identity.save(tmp_path / "tls", "edge-1")
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    for name in (files.authority, files.certificate, files.key):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
    assert files.load() == identity
    assert "PRIVATE" not in repr(identity)
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge-1"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(identity.authority))


def test_missing_credentials_are_told(tmp_path: Path) -> None:
    files = TlsFiles(authority=str(tmp_path / "a"), certificate="b", key="c")
    with pytest.raises(InvalidInput, match="cannot read the TLS file"):
        files.load()
