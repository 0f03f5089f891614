"""Streams that the peer does not let be open yet: nothing is said of them (RFC 9000 §4.6)."""

from __future__ import annotations

import pytest

from .harness import Pair

ALLOWED = 128  # aioquic's initial_max_streams_bidi


@pytest.mark.parametrize("given_up", ["reset_stream", "stop_stream"])
def test_a_stream_that_is_given_up_before_it_may_be_opened_does_not_end_the_connection(given_up):
    pair = Pair()
    pair.handshake(settle_s=1.0)
    streams = [4 * n for n in range(ALLOWED + 20)]
    for stream_id in streams:
        pair.client.send_stream_data(stream_id, b"open")  # the server keeps all of them open
    pair.drive(limit_s=0.5)
    assert len(pair.uploaded) == ALLOWED
    for stream_id in streams[ALLOWED:]:
        getattr(pair.client, given_up)(stream_id, 7)
    pair.drive(limit_s=1.0)
    pair.assert_open()
    assert not set(streams[ALLOWED:]) & set(pair.uploaded)
    for stream_id in streams[: ALLOWED // 2]:  # whose end, which the server answers, lets others be opened
        pair.client.send_stream_data(stream_id, b"", end_stream=True)
    pair.client.send_stream_data(4 * len(streams), b"later", end_stream=True)

    def arrived() -> bool:
        return pair.uploaded.get(4 * len(streams)) == b"later"

    assert pair.drive(arrived, limit_s=5.0)
    pair.assert_open()
