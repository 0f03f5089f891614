"""A flight is as large as the congestion window allows, whatever stands between its data."""

from __future__ import annotations

import pytest

from .harness import RTT_S, Pair

STREAMS = 100
SIZE_BYTES = 3000


@pytest.mark.parametrize("given_up", ["reset_stream", "stop_stream"])
def test_a_frame_that_finds_no_room_in_its_packet_does_not_end_the_flight(given_up):
    """Every second stream is given up, and its frame comes behind data that fills a packet.

    Where that ends the flight, each round trip has one packet.
    """
    pair = Pair()
    pair.handshake(settle_s=1.0)
    streams = [4 * n for n in range(STREAMS)]
    for stream_id in streams:
        pair.client.send_stream_data(stream_id, b"x")
        pair.drive(limit_s=0.0001)  # one packet each, so that they stay in this order
    pair.drive(limit_s=1.0)
    for large, other in zip(streams[::2], streams[1::2], strict=True):
        pair.client.send_stream_data(large, bytes(SIZE_BYTES), end_stream=True)
        getattr(pair.client, given_up)(other, 7)
    begun = pair.now

    def arrived() -> bool:
        return all(len(pair.uploaded[large]) == 1 + SIZE_BYTES for large in streams[::2])

    assert pair.drive(arrived, limit_s=5.0)
    assert pair.now - begun < 6 * RTT_S, f"{(pair.now - begun) / RTT_S:.1f} round trips"
    pair.assert_open()
