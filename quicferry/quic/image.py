"""The image of a live connection: what leaves one process and enters another.

Plain data and nothing else: no time of any clock, no address of any object. A field ``…_in_s`` is the
time that was left at the freeze until something is due (negative when it was overdue), a field
``…_age_s`` the time that had passed since something happened; both ends may have different clocks.
Other fields carry the meaning and the unit that RFC 9000, 9001 and 9002 give them.

The names of the fields, and their order in what there are many of (``array_like``), are the hand-off
format: any change to them is a new :data:`quicferry.quic.snapshot.FORMAT_VERSION`. Images hold traffic
secrets, so none of them has a ``repr`` that shows its content.
"""

from __future__ import annotations

from typing import Any

import msgspec

#: half-open ranges of numbers, ascending and disjoint
Ranges = list[tuple[int, int]]


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all images: frozen, strict when decoded, silent when printed."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class ConnectionIdImage(Image, frozen=True, array_like=True):
    """A connection ID of either end. The token lets its holder end the connection: it is a secret."""

    cid: bytes
    sequence_number: int | None
    stateless_reset_token: bytes | None
    was_sent: bool


class KeysImage(Image, frozen=True):
    """The 1-RTT keys (RFC 9001 §5, §6).

    The header protection keys never change, and cannot be derived from the secrets of a later key
    phase: the secrets of generation 0 go along, besides the current ones.
    """

    cipher_suite: int
    version: int
    send_secret: bytes
    send_first_secret: bytes
    send_key_phase: int
    recv_secret: bytes
    recv_first_secret: bytes
    recv_key_phase: int
    recv_former_secret: bytes | None  # before an update that the peer may not have heard of (RFC 9001 §6.1)
    update_requested: bool


class SpaceImage(Image, frozen=True):
    """The packet number space of the application (RFC 9000 §12.3)."""

    ack_in_s: float | None
    ack_queue: Ranges
    expected_packet_number: int
    largest_acked_packet: int
    largest_received_age_s: float | None
    largest_received_packet: int
    received_lower: int
    received: Ranges


class DataInDoubtImage(Image, frozen=True, array_like=True):
    """Stream data of a packet in doubt."""

    stream_id: int
    start: int
    stop: int
    fin: bool


class PacketInDoubtImage(Image, frozen=True, array_like=True):
    """A packet that was in flight: neither acknowledged nor lost. Other frames of it are sent again.

    ``acknowledges``: up to which numbers its ACK frames went.
    """

    number: int
    sent_age_s: float
    data: list[DataInDoubtImage]
    acknowledges: list[int]


class ReceiverImage(Image, frozen=True, array_like=True):
    """The receiving part of a stream. ``buffer`` begins at ``buffer_start``, gaps included."""

    buffer: bytes
    buffer_start: int
    final_size: int | None
    highest_offset: int
    is_finished: bool
    ranges: Ranges
    stop_error_code: int | None
    stop_pending: bool


class SenderImage(Image, frozen=True, array_like=True):
    """The sending part of a stream. ``buffer`` begins at ``buffer_start``, at what is not acknowledged."""

    acked: Ranges
    acked_fin: bool
    buffer: bytes
    buffer_fin: int | None
    buffer_is_empty: bool
    buffer_start: int
    buffer_stop: int
    highest_offset: int
    is_finished: bool
    pending: Ranges
    pending_eof: bool
    reset_error_code: int | None
    reset_pending: bool


class StreamImage(Image, frozen=True, array_like=True):
    """A stream, or the CRYPTO stream of the application space (which has no ``stream_id``)."""

    is_blocked: bool
    max_stream_data_local: int
    max_stream_data_local_sent: int
    max_stream_data_remote: int
    receiver: ReceiverImage
    sender: SenderImage
    stream_id: int | None


class LimitImage(Image, frozen=True, array_like=True):
    """A limit that this end grants: what was advertised, used and is to be advertised."""

    sent: int
    used: int
    value: int


class PathImage(Image, frozen=True, array_like=True):
    """A network path: the peer's address and how far its validation is (RFC 9000 §8)."""

    addr: list[str | int]
    bytes_received: int
    bytes_sent: int
    is_validated: bool
    local_challenge_sent: bool
    local_challenges: list[bytes]
    peer_cid: ConnectionIdImage | None
    remote_challenges: list[bytes]
    validation_deadline_in_s: float | None


class RttMonitorImage(Image, frozen=True):
    """What HyStart remembers of the round-trip times."""

    filtered_min: float | None
    increases: int
    ready: bool
    sample_age_s: float | None
    sample_idx: int
    sample_max: float | None
    sample_min: float | None
    samples: list[float]


class RenoImage(Image, frozen=True, tag="reno"):
    """The NewReno congestion controller. Ages are None for what has not happened yet."""

    congestion_recovery_start_age_s: float | None
    congestion_stash: int
    congestion_window: int
    rtt_monitor: RttMonitorImage
    ssthresh: int | None


class CubicImage(Image, frozen=True, tag="cubic"):
    """The CUBIC congestion controller (RFC 9438). Ages are None for what has not happened yet."""

    congestion_recovery_start_age_s: float | None
    congestion_window: int
    cwnd_epoch: int
    epoch_age_s: float | None
    first_slow_start: bool
    k: float
    last_ack_age_s: float | None
    rtt: float
    rtt_monitor: RttMonitorImage
    ssthresh: int | None
    starting_congestion_avoidance: bool
    w_est: int
    w_max: int


class RecoveryImage(Image, frozen=True):
    """Loss detection and congestion control (RFC 9002); times of the RTT in seconds."""

    congestion: RenoImage | CubicImage
    last_ack_eliciting_age_s: float | None
    max_ack_delay: float
    peer_completed_address_validation: bool
    pto_count: int
    rtt_first_sample_age_s: float | None
    rtt_initial: float
    rtt_initialized: bool
    rtt_latest: float
    rtt_min: float
    rtt_smoothed: float
    rtt_variance: float


class TlsImage(Image, frozen=True):
    """What outlives the TLS handshake."""

    alpn_negotiated: str | None
    client_random: bytes
    early_data_accepted: bool
    receive_buffer: bytes
    session_resumed: bool


class AgreementImage(Image, frozen=True):
    """What the configurations of both processes must agree on, as the peer was told so or relies on it."""

    congestion_control_algorithm: str
    connection_id_length: int
    idle_timeout: float
    max_datagram_frame_size: int | None


class EventImage(Image, frozen=True):
    """An event that the service has not taken yet: the name of its class and its fields."""

    name: str
    fields: dict[str, Any]


class ConnectionImage(Image, frozen=True):
    """All that makes a connection this connection."""

    # who and where
    agreement: AgreementImage
    host_cid: bytes
    host_cid_seq: int
    host_cids: list[ConnectionIdImage]
    local_initial_source_connection_id: bytes
    network_paths: list[PathImage]
    original_destination_connection_id: bytes
    peer_cid: ConnectionIdImage
    peer_cid_available: list[ConnectionIdImage]
    peer_cid_sequence_numbers: Ranges
    peer_retire_prior_to: int
    remote_initial_source_connection_id: bytes | None
    retry_source_connection_id: bytes | None
    version: int

    # keys and packets
    in_doubt: list[PacketInDoubtImage]
    keys: KeysImage
    max_datagram_size: int
    packet_number: int
    recovery: RecoveryImage
    skipped_packet_numbers: tuple[int, int]  # how many in earlier moves, and the first one after them
    space: SpaceImage
    spin_bit: bool
    spin_highest_pn: int
    tls: TlsImage

    # time
    ack_delay: float
    ack_eliciting_sent_since_receipt: bool
    close_in_s: float

    # streams and limits
    crypto_stream: StreamImage
    local_ack_delay_exponent: int
    local_active_connection_id_limit: int
    local_max_data: LimitImage
    local_max_stream_data_bidi_local: int
    local_max_stream_data_bidi_remote: int
    local_max_stream_data_uni: int
    local_max_streams_bidi: LimitImage
    local_max_streams_uni: LimitImage
    local_next_stream_id_bidi: int
    local_next_stream_id_uni: int
    remote_ack_delay_exponent: int
    remote_active_connection_id_limit: int
    remote_max_data: int
    remote_max_data_used: int
    remote_max_datagram_frame_size: int | None
    remote_max_idle_timeout: float | None
    remote_max_stream_data_bidi_local: int
    remote_max_stream_data_bidi_remote: int
    remote_max_stream_data_uni: int
    remote_max_streams_bidi: int
    remote_max_streams_uni: int
    streams: list[StreamImage]
    streams_blocked_bidi: list[int]
    streams_blocked_pending: bool
    streams_blocked_uni: list[int]
    streams_queue: list[int]

    # what waits
    datagrams_pending: list[bytes]
    events: list[EventImage]
    handshake_done_pending: bool
    ping_pending: list[int]
    probe_pending: bool
    retire_connection_ids: list[int]

    # the migration extension, when the connection speaks it
    extension: dict[str, Any] | None
