"""Every private member of aioquic that the hooks and the seam touch, as it was when they were written.

A failure here means that aioquic has changed where we lean on it: read its change, look at our code that
uses the name, then put the new signature or hash in the list.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import pytest
from aioquic import _crypto, tls
from aioquic.quic import packet_builder, recovery
from aioquic.quic import stream as streams
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionId, QuicNetworkPath
from aioquic.quic.crypto import CryptoContext, CryptoPair

from quicferry.quic import _aioquic
from quicferry.quic._aioquic.connection import HookedConnection

ROOM = Path(_aioquic.__file__).parent
FILES = ("connection.py", "doubt.py", "keys.py", "quiet.py", "seam.py", "spare.py")

#: what we override or call: parameters, and the first 12 digits of the SHA-256 of the source
METHODS: dict[str, tuple[str, str]] = {
    "QuicConnection._add_network_path": ("self, network_path", "4135b581b4d5"),
    "QuicConnection._alpn_handler": ("self, alpn_protocol", "11a969d2855d"),
    "QuicConnection._confirm_handshake": ("self", "ffec907008d1"),
    "QuicConnection._push_crypto_data": ("self", "9e47f4101032"),
    "QuicConnection._find_network_path": ("self, addr", "202fbdfdd5ed"),
    "QuicConnection._flush_builder": ("self, builder, network_path, peer_cid, now", "ac4bd66d7c38"),
    "QuicConnection._handle_ack_frame": ("self, context, frame_type, buf", "a9cf2707aa0f"),
    "QuicConnection._handle_new_connection_id_frame": ("self, context, frame_type, buf", "8a802ee5e62d"),
    "QuicConnection._handle_path_challenge_frame": ("self, context, frame_type, buf", "8ca414858b5e"),
    "QuicConnection._handle_path_response_frame": ("self, context, frame_type, buf", "7fbf9c34446c"),
    "QuicConnection._idle_timeout": ("self", "8549f45b0941"),
    "QuicConnection._initialize": ("self, peer_cid", "6a41681e541c"),
    "QuicConnection._parse_transport_parameters": ("self, data, from_session_ticket=", "0da95a03bd5b"),
    "QuicConnection._payload_received": ("self, context, plain, crypto_frame_required=", "612b67759a96"),
    "QuicConnection._probe_preferred_address": ("self", "8fd78647a17c"),
    "QuicConnection._replenish_connection_ids": ("self", "73b127efb89c"),
    "QuicConnection._retire_peer_cid": ("self, connection_id", "be63087f9068"),
    "QuicConnection._send_probing_frames": ("self, network_path, now", "7968d5d37ef8"),
    "QuicConnection._send_probe": ("self", "4578820ab6bb"),
    "QuicConnection._serialize_transport_parameters": ("self", "be651f3ddfcd"),
    "QuicConnection._use_reserved_peer_cid": ("self, network_path", "ddb0329e0e84"),
    "QuicConnection._write_ack_frame": ("self, builder, space, now", "dc0bde63adda"),
    "QuicConnection._write_application": ("self, builder, network_path, now", "c37bf64378f7"),
    "QuicConnection._write_connection_limits": ("self, builder, space", "02c42c5455ae"),
    "QuicConnection._write_reset_stream_frame": ("self, builder, stream", "72c28abb1c9b"),
    "QuicConnection._write_stop_sending_frame": ("self, builder, stream", "057f50750f9f"),
    "QuicConnection._write_stream_frame": ("self, builder, space, stream, max_offset", "9bc0be962394"),
    "QuicConnection._write_stream_limits": ("self, builder, space, stream", "398d4a898f7c"),
    "QuicConnection.change_connection_id": ("self", "60bf2f7b2c86"),
    "QuicConnection.datagrams_to_send": ("self, now", "f4eb22c8add2"),
    "QuicConnection.get_timer": ("self", "07184a05f894"),
    "QuicConnection.handle_timer": ("self, now", "8ebd76a179bf"),
    "QuicConnection.receive_datagram": ("self, data, addr, now", "3c7f29826050"),
    "AEAD._nonce": ("self, packet_number", "cdb45a754af0"),
    "AEAD.decrypt": ("self, data, associated_data, packet_number", "3cb5f698b2ee"),
    "AEAD.encrypt": ("self, data, associated_data, packet_number", "dcd48e4cec21"),
    "CryptoContext.decrypt_packet": (
        "self, packet, encrypted_offset, expected_packet_number",
        "fe94c52f762d",
    ),
    "CryptoContext.encrypt_packet": ("self, plain_header, plain_payload, packet_number", "fe4c0f9b61d1"),
    "HeaderProtection._mask": ("self, sample", "3f222c114661"),
    "HeaderProtection.apply": ("self, plain_header, protected_payload", "dfbedf5f0cb7"),
    "HeaderProtection.remove": ("self, packet, pn_offset", "86c5aacd3c9c"),
    "QuicConnection.request_key_update": ("self", "5f5b28385489"),
    "CryptoPair.encrypt_packet": ("self, plain_header, plain_payload, packet_number", "f244294823e4"),
    "CryptoPair._update_key": ("self, trigger", "4dddcfabc635"),
    "CryptoPair.decrypt_packet": ("self, packet, encrypted_offset, expected_packet_number", "2d2c3a3bf129"),
    "QuicNetworkPath.__init__": ("self, addr, is_validated=", "e94ef816464a"),
    "QuicPacketBuilder.__init__": (
        "self, *, host_cid, peer_cid, version, is_client, max_datagram_size, packet_number=, peer_token=, "
        "quic_logger=, spin_bit=",
        "b321fb4eb8ac",
    ),
    "QuicPacketBuilder.start_packet": ("self, packet_type, crypto", "63a59deba361"),
    "QuicPacketBuilder.start_frame": ("self, frame_type, capacity=, handler=, handler_args=", "53af20167bc2"),
    "QuicPacketBuilder.flush": ("self", "b09066e03f93"),
    "QuicPacketBuilder._end_packet": ("self", "585948d03825"),
    "QuicPacketBuilder._flush_current_datagram": ("self", "e310004f68f5"),
    "QuicPacketPacer.__init__": ("self, *, max_datagram_size", "82551ac5ee88"),
    "QuicPacketPacer.update_rate": ("self, congestion_window, smoothed_rtt", "ec763995d360"),
    "QuicPacketRecovery.__init__": (
        "self, *, congestion_control_algorithm, initial_rtt, max_datagram_size, "
        "peer_completed_address_validation, send_probe, logger=, quic_logger=",
        "11dd9eddeac7",
    ),
    "QuicPacketRecovery._on_packets_lost": (
        "self, *, congestion_event=, now, packets, persistent_congestion=, space",
        "77a0ba759513",
    ),
    "QuicPacketRecovery.get_loss_detection_time": ("self, *, amplification_limited", "de155cb9bef9"),
    "QuicPacketRecovery.get_probe_timeout": ("self, *, include_max_ack_delay=", "782ca5036a10"),
    "QuicPacketRecovery.on_ack_received": ("self, *, ack_rangeset, ack_delay, now, space", "1a7c69347908"),
    "QuicPacketRecovery.on_packet_sent": ("self, *, packet, space", "a83baa6e0570"),
}

#: attributes we read or write, by the object that has them
ATTRIBUTES = {
    "connection": {
        "_QuicConnection__frame_handlers",
        "_ack_delay",
        "_ack_eliciting_sent_since_receipt",
        "_close_at",
        "_close_pending",
        "_configuration",
        "_crypto_buffers",
        "_crypto_streams",
        "_cryptos",
        "_datagrams_pending",
        "_events",
        "_handshake_confirmed",
        "_handshake_done_pending",
        "_host_cid_seq",
        "_host_cids",
        "_is_client",
        "_key_update_pending",
        "_local_active_connection_id_limit",
        "_local_max_data",
        "_local_max_streams_bidi",
        "_local_max_streams_uni",
        "_logger",
        "_loss",
        "_loss_at",
        "_max_datagram_size",
        "_network_paths",
        "_pacing_at",
        "_packet_number",
        "_peer_cid",
        "_peer_cid_available",
        "_peer_retire_prior_to",
        "_ping_pending",
        "_probe_pending",
        "_quic_logger",
        "_remote_active_connection_id_limit",
        "_remote_max_data",
        "_remote_max_data_used",
        "_remote_preferred_address",
        "_retire_connection_ids",
        "_spaces",
        "_spin_bit",
        "_spin_highest_pn",
        "_state",
        "_streams",
        "_streams_blocked_pending",
        "_streams_queue",
        "_version",
    },
    "recovery": {
        "_cc",
        "_pacer",
        "_pto_count",
        "_rtt_first_sample_time",
        "_rtt_initial",
        "_rtt_initialized",
        "_rtt_latest",
        "_rtt_min",
        "_rtt_smoothed",
        "_rtt_variance",
    },
    "builder": {"_packet"},
    "aead": {"_aead", "_iv"},
    "hp": {"_encryptor", "_is_chacha20"},
    "pair": {"_update_key_requested"},
    "sender": {"_pending", "_pending_eof", "_reset_error_code", "_stream_id"},
    "congestion": {"_max_datagram_size"},
    "pacer": {"_max_datagram_size"},
}
#: public in spelling, but no documented part of aioquic's interface
UNDOCUMENTED = {
    "connection": {"tls", "host_cid", "configuration"},
    "recovery": {"spaces", "congestion_window", "bytes_in_flight"},
    "space": {"ack_at", "ack_eliciting_in_flight", "largest_received_time", "loss_time", "sent_packets"},
    "path": {
        "addr",
        "bytes_received",
        "bytes_sent",
        "is_validated",
        "local_challenge_sent",
        "peer_cid",
        "remote_challenges",
    },
    "cid": {"cid", "sequence_number"},
    "stream": {"sender"},
    "sender": {"on_data_delivery"},
    "packet": {"delivery_handlers", "packet_number", "sent_bytes", "sent_time"},
    "tls": {"handshake_extensions"},
}


@pytest.fixture(scope="module")
def objects():
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    connection.connect(("10.0.1.2", 4433), 0.0)
    connection.datagrams_to_send(0.0)
    return {
        "connection": connection,
        "recovery": connection._loss,
        "congestion": connection._loss._cc,
        "pacer": connection._loss._pacer,
        "space": connection._spaces[tls.Epoch.ONE_RTT],
        "path": connection._network_paths[0],
        "cid": connection._peer_cid,
        "stream": streams.QuicStream(0),
        "sender": streams.QuicStreamSender(0, True),
        "tls": connection.tls,
        "builder": packet_builder.QuicPacketBuilder(
            host_cid=b"", peer_cid=b"", version=1, is_client=True, max_datagram_size=1200
        ),
        "aead": connection._cryptos[tls.Epoch.INITIAL].send.aead,
        "hp": connection._cryptos[tls.Epoch.INITIAL].send.hp,
        "pair": connection._cryptos[tls.Epoch.ONE_RTT],
        "packet": next(iter(connection._spaces[tls.Epoch.INITIAL].sent_packets.values())),
    }


def source_hash(function) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def parameters(function) -> str:
    """The names, without types: how those are written differs between versions of Python."""
    names = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(name if parameter.default is parameter.empty else f"{name}=")
    return ", ".join(names)


def find(name: str):
    kind, _, member = name.partition(".")
    owners = {
        "AEAD": _crypto.AEAD,
        "CryptoContext": CryptoContext,
        "CryptoPair": CryptoPair,
        "HeaderProtection": _crypto.HeaderProtection,
        "QuicConnection": QuicConnection,
        "QuicPacketRecovery": recovery.QuicPacketRecovery,
        "QuicPacketBuilder": packet_builder.QuicPacketBuilder,
        "QuicPacketPacer": recovery.QuicPacketPacer,
        "QuicNetworkPath": QuicNetworkPath,
    }
    return getattr(owners[kind], member)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_as_it_was(name):
    function = find(name)
    assert (parameters(function), source_hash(function)) == METHODS[name]


@pytest.mark.parametrize("owner", [*ATTRIBUTES, *UNDOCUMENTED])
def test_an_attribute_exists(objects, owner):
    for name in ATTRIBUTES.get(owner, set()) | UNDOCUMENTED.get(owner, set()):
        assert hasattr(objects[owner], name), f"{owner}.{name}"


def test_the_frame_handlers_are_a_table_of_pairs(objects):
    table = objects["connection"]._QuicConnection__frame_handlers
    handler, epochs = table[0x1A]
    assert handler.__name__ == "_handle_path_challenge_frame"
    assert tls.Epoch.ONE_RTT in epochs


def test_the_override_of_a_handler_is_what_the_table_holds():
    connection = HookedConnection(configuration=QuicConfiguration(is_client=True))
    table = connection._QuicConnection__frame_handlers
    for frame_type in (0x18, 0x1A, 0x1B):
        assert table[frame_type][0].__func__.__qualname__.startswith("HookedConnection.")


def private_names() -> set[str]:
    """Every private name that the two modules take from an object that is not their own."""
    names = set()
    own = {"_ferry", "_quic", "_receive_provisionally", "_log_sent", "_set_rtt", "_handle_sm_frame"}
    own |= {
        "_decrypt_again",
        "_came_to",
        "_careful",
        "_receive",
        "_doubt",
        "_timer",
        "_delay_s",
        "_decrypt_in_steps",
        "_forget_at",
        "_former",
        "_new_since",
        "_sent_since",
        "_quiet",
        "_give_up",
        "_large_losses",
        "_look_for_black_hole",
        "_lost",
    }
    for file in FILES:
        for node in ast.walk(ast.parse((ROOM / file).read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in own:
                names.add(node.attr)
    return {name for name in names if not name.endswith("__")}


def test_the_lists_are_complete():
    listed = {name.partition(".")[2] for name in METHODS} | set().union(*ATTRIBUTES.values())
    used = private_names()
    assert used <= listed, f"not listed: {sorted(used - listed)}"
    unused = set().union(*ATTRIBUTES.values()) - used
    assert not unused, f"listed, but not used: {sorted(unused)}"


def test_every_override_is_listed():
    overridden = {name for name in vars(HookedConnection) if hasattr(QuicConnection, name)}
    overridden -= {"__module__", "__doc__", "__annotations__", "__qualname__", "__firstlineno__"}
    overridden = {name for name in overridden if callable(getattr(QuicConnection, name))}
    assert overridden <= {name.partition(".")[2] for name in METHODS}


def test_a_connection_id_can_be_made(objects):
    assert QuicConnectionId(cid=b"12345678", sequence_number=3).stateless_reset_token == b""
