"""Every field of aioquic's objects, and what becomes of it in a hand-off.

``…_PLAIN`` tables name what is copied as it is: the image's field and aioquic's attribute. ``FATES``
adds the rest, so that each attribute of each class is in exactly one place. It is held against living
objects by ``tests/contract/test_aioquic_state.py``: a new attribute upstream makes that test fail.
"""

from __future__ import annotations

from enum import Enum

from aioquic.quic import events

from quicferry.quic.events import MigrationCommitted, MigrationReady, MoveRequested


class Fate(Enum):
    """What becomes of an attribute."""

    MOVED = "its content is in the image, if only as a time left or an age"
    REBUILT = "the destination makes it anew, from the image or from its own configuration"
    DROPPED = "it means nothing once the handshake is confirmed and the connection is frozen"


def _table(names: str, **renamed: str) -> dict[str, str]:
    """image field -> attribute; an attribute is private unless it is renamed."""
    return {name: f"_{name}" for name in names.split()} | renamed


CONNECTION_PLAIN = _table(
    """
    ack_delay ack_eliciting_sent_since_receipt handshake_done_pending host_cid_seq
    local_ack_delay_exponent local_active_connection_id_limit local_initial_source_connection_id
    local_max_stream_data_bidi_local local_max_stream_data_bidi_remote local_max_stream_data_uni
    local_next_stream_id_bidi local_next_stream_id_uni max_datagram_size
    original_destination_connection_id packet_number peer_retire_prior_to probe_pending
    remote_ack_delay_exponent remote_active_connection_id_limit remote_initial_source_connection_id
    remote_max_data remote_max_data_used remote_max_datagram_frame_size remote_max_idle_timeout
    remote_max_stream_data_bidi_local remote_max_stream_data_bidi_remote remote_max_stream_data_uni
    remote_max_streams_bidi remote_max_streams_uni retry_source_connection_id spin_bit spin_highest_pn
    streams_blocked_pending version
    """,
    host_cid="host_cid",
)
CONNECTION_ID_PLAIN = {name: name for name in ("cid", "sequence_number", "stateless_reset_token", "was_sent")}
LIMIT_PLAIN = {name: name for name in ("sent", "used", "value")}
PATH_PLAIN = {name: name for name in ("bytes_received", "bytes_sent", "is_validated", "local_challenge_sent")}
SPACE_PLAIN = {
    name: name for name in ("expected_packet_number", "largest_acked_packet", "largest_received_packet")
}
STREAM_PLAIN = {
    name: name
    for name in (
        "is_blocked",
        "max_stream_data_local",
        "max_stream_data_local_sent",
        "max_stream_data_remote",
        "stream_id",
    )
}
RECEIVER_PLAIN = _table(
    "buffer_start final_size stop_error_code",
    highest_offset="highest_offset",
    is_finished="is_finished",
    stop_pending="stop_pending",
)
SENDER_PLAIN = _table(
    "acked_fin buffer_fin buffer_start buffer_stop pending_eof reset_error_code",
    buffer_is_empty="buffer_is_empty",
    highest_offset="highest_offset",
    is_finished="is_finished",
    reset_pending="reset_pending",
)
RECOVERY_PLAIN = _table(
    "pto_count rtt_initial rtt_initialized rtt_latest rtt_min rtt_smoothed rtt_variance",
    max_ack_delay="max_ack_delay",
    peer_completed_address_validation="peer_completed_address_validation",
)
RENO_PLAIN = _table("congestion_stash", congestion_window="congestion_window", ssthresh="ssthresh")
CUBIC_PLAIN = _table(
    "cwnd_epoch first_slow_start starting_congestion_avoidance",
    congestion_window="congestion_window",
    k="K",
    rtt="rtt",
    ssthresh="ssthresh",
    w_est="_W_est",
    w_max="_W_max",
)
MONITOR_PLAIN = _table("filtered_min increases ready sample_idx sample_max sample_min")

#: attributes that a frozen connection has besides
SEAL = "_quicferry_frozen_at"
#: attribute of a connection that was moved or thawed: how many packet numbers it left out, up to which
SKIPPED = "_quicferry_skipped"
#: attribute of a destination's connection: the first packet number that is not its own
LEASE = "_quicferry_lease_until"
#: attribute of a destination's connection: what the source knows of, while nothing else may leave
WITHHELD = "_quicferry_withheld"
#: what a frozen connection refuses: all by which it could send, or by which its state could change
SEALED_METHODS = (
    "change_connection_id",
    "close",
    "datagrams_to_send",
    "handle_timer",
    "receive_datagram",
    "request_key_update",
    "reset_stream",
    "send_datagram_frame",
    "send_ping",
    "send_stream_data",
    "stop_stream",
)

#: what gives None instead: a frozen connection waits for nothing, and its events go along in the image
SILENT_METHODS = ("get_timer", "next_event")

#: events that may still wait for the service when the connection is frozen
EVENTS: dict[str, type[events.QuicEvent]] = {
    kind.__name__: kind
    for kind in (
        events.ConnectionIdIssued,
        events.ConnectionIdRetired,
        events.DatagramFrameReceived,
        events.HandshakeCompleted,
        events.PingAcknowledged,
        events.ProtocolNegotiated,
        events.StopSendingReceived,
        events.StreamDataReceived,
        events.StreamReset,
        MigrationCommitted,
        MigrationReady,
        MoveRequested,
    )
}


def _fates(
    plain: dict[str, str], *, moved: str = "", rebuilt: str = "", dropped: str = ""
) -> dict[str, Fate]:
    table = dict.fromkeys(plain.values(), Fate.MOVED)
    for names, fate in ((moved, Fate.MOVED), (rebuilt, Fate.REBUILT), (dropped, Fate.DROPPED)):
        for name in names.split():
            assert name not in table, name
            table[name] = fate
    return table


#: name of the class -> attribute -> what becomes of it
FATES: dict[str, dict[str, Fate]] = {
    "QuicConnection": _fates(
        CONNECTION_PLAIN,
        moved="""
            _close_at _crypto_streams _cryptos _datagrams_pending _events _host_cids _key_update_pending
            _local_max_data _local_max_streams_bidi _local_max_streams_uni _loss _network_paths _peer_cid
            _peer_cid_available _peer_cid_sequence_numbers _ping_pending _retire_connection_ids _spaces
            _streams _streams_blocked_bidi _streams_blocked_uni _streams_queue tls
        """,
        rebuilt="""
            _QuicConnection__frame_handlers _configuration _crypto_buffers _cryptos_initial
            _handshake_complete _handshake_confirmed _is_client _logger _quic_logger
            _session_ticket_fetcher _session_ticket_handler _state _token_handler
            _version_negotiated_compatible
        """,
        # the close fields: only open connections move; the timers: set again when they are asked for
        dropped="""
            _close_event _close_pending _connect_called _crypto_frame_type _crypto_packet_version
            _crypto_retransmitted _loss_at _pacing_at _peer_token
            _remote_preferred_address _remote_version_information _retry_count
            _version_negotiated_incompatible
        """,
    ),
    "QuicConnectionId": _fates(CONNECTION_ID_PLAIN),
    "Limit": _fates(LIMIT_PLAIN, rebuilt="frame_type name"),
    "QuicNetworkPath": _fates(
        PATH_PLAIN, moved="addr local_challenges peer_cid remote_challenges validation_deadline"
    ),
    "QuicPacketSpace": _fates(
        SPACE_PLAIN,
        moved="ack_at ack_queue largest_received_time received_packets sent_packets",
        rebuilt="discarded is_application_data",
        dropped="ack_eliciting_in_flight loss_time",
    ),
    "QuicPacketNumberWindow": _fates({}, moved="_lower _received", rebuilt="_size"),
    "RangeSet": _fates({}, moved="_RangeSet__ranges"),
    "QuicStream": _fates(STREAM_PLAIN, moved="receiver sender"),
    "QuicStreamReceiver": _fates(RECEIVER_PLAIN, moved="_buffer _ranges _stream_id"),
    "QuicStreamSender": _fates(SENDER_PLAIN, moved="_acked _buffer _pending _stream_id"),
    "QuicPacketRecovery": _fates(
        RECOVERY_PLAIN,
        moved="_cc _rtt_first_sample_time _time_of_last_sent_ack_eliciting_packet",
        rebuilt="_logger _pacer _quic_logger _send_probe handshake_confirmed spaces",
    ),
    "QuicPacketPacer": _fates(
        {}, rebuilt="_max_datagram_size bucket_max bucket_time evaluation_time packet_time"
    ),
    "RenoCongestionControl": _fates(
        RENO_PLAIN,
        moved="_congestion_recovery_start_time _rtt_monitor",
        rebuilt="_max_datagram_size",
        dropped="bytes_in_flight",
    ),
    "CubicCongestionControl": _fates(
        CUBIC_PLAIN,
        moved="_congestion_recovery_start_time _rtt_monitor _t_epoch last_ack",
        rebuilt="_max_datagram_size additive_increase_factor",
        dropped="bytes_in_flight",
    ),
    "QuicRttMonitor": _fates(
        MONITOR_PLAIN, moved="_sample_time _samples", rebuilt="_size", dropped="_last_time"
    ),
    "CryptoPair": _fates({}, moved="_update_key_requested recv send", rebuilt="aead_tag_size"),
    "CryptoContext": _fates(
        {}, moved="cipher_suite key_phase secret version", rebuilt="_setup_cb _teardown_cb aead hp"
    ),
    "Context": _fates(
        {},
        moved="""
            _dec_key _enc_key _receive_buffer _session_resumed alpn_negotiated client_random
            early_data_accepted
        """,
        rebuilt="""
            _Context__logger _alpn_protocols _cadata _cafile _capath _cipher_suites _is_client
            _legacy_compression_methods _max_early_data _psk_key_exchange_modes
            _request_client_certificate _server_name _signature_algorithms _supported_groups
            _supported_versions _verify_mode alpn_cb certificate certificate_chain
            certificate_private_key get_session_ticket_cb handshake_extensions new_session_ticket_cb
            session_ticket state update_traffic_key_cb
        """,
        dropped="""
            _certificate_request _ec_private_keys _expected_verify_data _key_schedule_proxy
            _key_schedule_psk _new_session_ticket _next_dec_key _peer_certificate
            _peer_certificate_chain _psk_key_exchange_mode _x25519_private_key _x448_private_key
            key_schedule legacy_session_id received_extensions server_random
        """,
    ),
}
