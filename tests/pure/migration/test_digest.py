"""The digest by which both ends of a transfer compare what left and what came."""

from __future__ import annotations

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.agent.transfer import Inbox, Tally
from quicferry.migration.criu.digest import Digest, new_key
from quicferry.migration.rpc.messages import End


def digest_of(key: bytes, *pieces: bytes) -> bytes:
    digest = Digest(key)
    for piece in pieces:
        digest.add(memoryview(piece))
    return digest.value


def test_it_is_of_the_bytes_and_of_the_key_and_of_nothing_else() -> None:
    key = new_key()
    data = bytes(range(256)) * 17
    assert digest_of(key, data) == digest_of(key, data[:100], b"", data[100:])
    assert digest_of(key, data) != digest_of(new_key(), data)
    for place in (0, 100, len(data) - 1):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert digest_of(key, changed) != digest_of(key, data)
    assert digest_of(key, data + b"\0") != digest_of(key, data)


def test_the_known_answer_of_gmac() -> None:
    """The first case of the GCM specification (McGrew and Viega, appendix B): no data, a key of zeros."""
    assert digest_of(bytes(16)).hex() == "58e2fccefa7e3061367f1d57a4e7455a"


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(MigrationError, match="16 bytes, not 3"):
        Inbox(b"abc")


def test_the_two_ends_must_agree() -> None:
    key = new_key()
    tally, inbox = Tally(key), Inbox(key)
    tally.add(b"state")
    end = End(size_bytes=tally.size_bytes, digest=tally.digest, resume_before_ns=1)
    with pytest.raises(MigrationError, match="damaged on its way: 0 of 5 bytes"):
        inbox.check(end)
