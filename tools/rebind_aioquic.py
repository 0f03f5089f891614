"""A pytest plugin: aioquic's own tests get our connection in place of theirs, the extension off.

Loaded by tools/test_upstream.py with ``-p`` before any test is imported, so that every ``from
aioquic.quic.connection import QuicConnection`` finds ours.
"""

from __future__ import annotations

import sys

import aioquic.quic.connection

from quicferry.quic.connection import MigratableConnection

aioquic.quic.connection.QuicConnection = MigratableConnection  # type: ignore[misc]  # that is the point


def pytest_collection_finish() -> None:
    """Refuses to go on when the tests got theirs all the same."""
    used = sys.modules["tests.test_connection"].QuicConnection
    assert used is MigratableConnection, f"the tests use {used}"
