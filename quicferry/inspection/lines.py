"""A packet, a connection, a migration, a gap as one line: of text for a reader, or as an object for JSON."""

from __future__ import annotations

from typing import Any

from quicferry.capture.files.source import Gap
from quicferry.capture.quic.frames import Frame
from quicferry.capture.quic.packets import Direction, Packet
from quicferry.capture.quic.versions import Space, name_of
from quicferry.capture.tcp_options import MptcpOption, Options
from quicferry.events import Event
from quicferry.inspection.inspector import Inspector, Told
from quicferry.inspection.stories import ConnectionStory, Migration, PathStory
from quicferry.inspection.tcp_stories import TcpStory, TcpTold

_NS = 1e9
_TITLES = {
    Space.INITIAL: "Initial",
    Space.ZERO_RTT: "0-RTT",
    Space.HANDSHAKE: "Handshake",
    Space.RETRY: "Retry",
    Space.ONE_RTT: "1-RTT",
    Space.VERSION_NEGOTIATION: "Version Negotiation",
    Space.UNKNOWN: "?",
}
_DATA_TOLD = frozenset({"PATH_CHALLENGE", "PATH_RESPONSE", "NEW_CONNECTION_ID", "PATH_NEW_CONNECTION_ID"})
SUITES = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
}


def seconds(t_ns: int | None, zero_ns: int) -> float | None:
    """A stamp in seconds after the first packet, to the nanosecond."""
    return None if t_ns is None else round((t_ns - zero_ns) / _NS, 9)


# objects for JSON


def packet_object(told: Told, zero_ns: int) -> dict[str, Any]:
    """One captured packet."""
    datagram = told.datagram
    found: dict[str, Any] = {
        "kind": "packet",
        "number": datagram.number,
        "t_s": round((datagram.t_ns - zero_ns) / _NS, 9),
        "t_ns": datagram.t_ns,
        "source": datagram.source,
        "destination": datagram.destination,
        "wire_bytes": datagram.wire_bytes,
        "protocol": told.protocol,
        "connection": told.connection if told.connection >= 0 else None,
    }
    if told.vantage:
        found["vantage"] = told.vantage
    if datagram.interface:
        found["interface"] = datagram.interface
    if datagram.quoted:
        found["quoted_by"] = datagram.quoted
    if told.segment is not None:
        found |= _segment_object(told.segment)
    else:
        found["path"] = told.path if told.path >= 0 else None
        found["packets"] = [_quic_object(packet) for packet in told.packets]
    if told.migration is not None:
        found["migration"] = told.migration.number
    return found


def _quic_object(packet: Packet) -> dict[str, Any]:
    found: dict[str, Any] = {"type": packet.space, "bytes": packet.size_bytes}
    if packet.version or packet.space is Space.VERSION_NEGOTIATION:
        found["version"] = name_of(packet.version)
    if packet.packet_number is not None:
        found["number"] = packet.packet_number
        if packet.generation:
            found["key_generation"] = packet.generation
    found["dcid"] = packet.destination_cid.hex()
    if packet.space is not Space.ONE_RTT:
        found["scid"] = packet.source_cid.hex()
    if packet.direction is not None:
        found["direction"] = packet.direction
    if packet.token:
        found["token_bytes"] = len(packet.token)
    if packet.supported_versions:
        found["supported_versions"] = [name_of(version) for version in packet.supported_versions]
    if packet.frames is not None:
        found["frames"] = [_frame_object(frame) for frame in packet.frames]
    if packet.why:
        found["not_opened"] = packet.why.value
    if packet.repeated:
        found["repeated"] = True
    if packet.nonce_reused:
        found["nonce_reused"] = True
    return found


def _frame_object(frame: Frame) -> dict[str, Any]:
    name = frame.name
    if name == "STREAM":
        return {
            "type": name,
            "stream_id": frame.stream_id,
            "offset": frame.offset,
            "length": frame.length,
            "fin": frame.fin,
        }
    if name == "ACK":
        return {"type": name, "largest": frame.largest_acked, "delay_us": frame.ack_delay_us}
    found: dict[str, Any] = {"type": name}
    for key in ("stream_id", "offset", "length", "epoch", "address"):
        value = getattr(frame, key)
        if value is not None:
            found[key] = value
    if name in _DATA_TOLD:
        found["data"] = frame.data.hex()
    elif name == "CONNECTION_CLOSE" and frame.data:
        found["reason"] = frame.data.decode("utf-8", "replace")
    return found


def _segment_object(segment: TcpTold) -> dict[str, Any]:
    found: dict[str, Any] = {
        "direction": (Direction.TO_SERVER if segment.to_server else Direction.TO_CLIENT).value,
        "flags": list(segment.flags),
        "sequence": segment.sequence,
        "acknowledged": segment.acknowledged,
        "length": segment.length,
        "window": segment.window,
    }
    options = _options_object(segment.options)
    if options:
        found["options"] = options
    if segment.note:
        found["note"] = segment.note
    if segment.records:
        found["tls"] = [{"type": item.name, "bytes": item.size_bytes} for item in segment.records]
    if segment.undecrypted:
        found["not_opened"] = "no secret of the key log opens a TLS record of it"
    return found


def _options_object(options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if options.mss is not None:
        found["mss"] = options.mss
    if options.window_scale is not None:
        found["window_scale"] = options.window_scale
    if options.sack_permitted:
        found["sack_permitted"] = True
    if options.sack:
        found["sack"] = [list(block) for block in options.sack]
    if options.timestamps is not None:
        found["timestamps"] = list(options.timestamps)
    if options.mptcp:
        found["mptcp"] = [_mptcp_object(option) for option in options.mptcp]
    if options.others:
        found["others"] = list(options.others)
    return found


def _mptcp_object(option: MptcpOption) -> dict[str, Any]:
    found: dict[str, Any] = {"type": option.name}
    for key, value in zip(MptcpOption._fields[1:], option[1:], strict=True):
        if value is None or value in (b"", "", False):
            continue
        found[key] = value.hex() if isinstance(value, bytes) else value
    return found


def connection_object(story: ConnectionStory, inspector: Inspector, zero_ns: int) -> dict[str, Any]:
    """One QUIC connection."""
    random, suite = inspector.secrets_of(story.index)
    found: dict[str, Any] = {
        "kind": "connection",
        "connection": story.index,
        "transport": "QUIC",
        "version": story.version_name,
        "client": story.client,
        "server": story.server,
        "first_s": seconds(story.first_ns, zero_ns),
        "last_s": seconds(story.last_ns, zero_ns),
        "packets": story.packets,
        "packets_opened": story.opened,
        "packets_unprotected": story.unprotected,
        "bytes": story.bytes,
        "streams": story.stream_count,
        "stream_bytes_to_server": story.new_bytes[Direction.TO_SERVER],
        "stream_bytes_to_client": story.new_bytes[Direction.TO_CLIENT],
        "key_updates": story.key_updates,
        "cipher": SUITES.get(suite or 0),
        "client_random": random.hex() if random else None,
        "not_opened": dict(story.why),
        "multipath": story.multipath,
        "closed": story.closed or None,
        "paths": [_path_object(path, zero_ns) for path in story.paths.values()],
        "migrations": [migration.number for migration in story.migrations],
    }
    return found


def _path_object(path: PathStory, zero_ns: int) -> dict[str, Any]:
    return {
        "path": path.number,
        "client": path.ends.client,
        "server": path.ends.server,
        "first_s": seconds(path.first_ns, zero_ns),
        "last_s": seconds(path.last_ns, zero_ns),
        "packets_to_server": path.packets[Direction.TO_SERVER],
        "packets_to_client": path.packets[Direction.TO_CLIENT],
        "bytes_to_server": path.bytes[Direction.TO_SERVER],
        "bytes_to_client": path.bytes[Direction.TO_CLIENT],
        "challenged_s": seconds(path.challenged_ns, zero_ns),
        "validated_s": seconds(path.validated_ns, zero_ns),
    }


def tcp_connection_object(story: TcpStory, zero_ns: int) -> dict[str, Any]:
    """One TCP connection, or one subflow of MPTCP."""
    return {
        "kind": "connection",
        "connection": story.index,
        "transport": story.protocol,
        "client": story.client,
        "server": story.server,
        "first_s": seconds(story.first_ns, zero_ns),
        "last_s": seconds(story.last_ns, zero_ns),
        "segments": story.segments,
        "handshake": story.handshake,
        "bytes_to_server": story.bytes[True],
        "bytes_to_client": story.bytes[False],
        "retransmissions": story.retransmissions,
        "subflow_of": story.master,
        "tls_cipher": SUITES.get(story.secrets.suite or 0),
        "closed": story.closed or None,
    }


def migration_object(migration: Migration, zero_ns: int) -> dict[str, Any]:
    """One migration."""
    return {
        "kind": "migration",
        "migration": migration.number,
        "connection": migration.connection,
        "moved": migration.who,
        "from_path": migration.old.number,
        "to_path": migration.new.number,
        "from": migration.old.ends._asdict(),
        "to": migration.new.ends._asdict(),
        "announced_s": seconds(migration.announced_ns, zero_ns),
        "probed_s": seconds(migration.probed_ns, zero_ns),
        "validated_s": seconds(migration.validated_ns, zero_ns),
        "switched_s": seconds(migration.switched_ns, zero_ns),
        "complete_s": seconds(migration.complete_ns, zero_ns),
        "data_gap_ms": None if migration.gap_ms is None else round(migration.gap_ms, 6),
        "reverted": migration.reverted,
    }


def event_object(event: Event, zero_ns: int) -> dict[str, Any]:
    """One event of the run."""
    return {
        "kind": "event",
        "t_s": seconds(event.t_ns, zero_ns),
        "t_ns": event.t_ns,
        "vantage": event.vantage,
        "name": event.name,
        "detail": event.detail,
    }


def gap_object(gap: Gap) -> dict[str, Any]:
    """Something that could not be read or opened."""
    return {"kind": "gap", "reason": gap.reason, "packets": gap.packets, "first": gap.at or None}


# text


def packet_text(told: Told, zero_ns: int) -> str:
    """One captured packet on a line."""
    datagram = told.datagram
    where = f"{told.vantage:<9} " if told.vantage else ""
    head = f"{datagram.number:>6} {(datagram.t_ns - zero_ns) / _NS:>12.6f} {where}"
    way = f"{datagram.source} > {datagram.destination}"
    if told.segment is not None:
        middle = f"t{told.connection}"
        tail = _segment_text(told.segment)
    else:
        middle = f"c{told.connection}" if told.connection >= 0 else "c?"
        middle += f" p{told.path}" if told.path >= 0 else ""
        tail = " | ".join(_quic_text(packet) for packet in told.packets)
    quoted = f"[{datagram.quoted}] " if datagram.quoted else ""
    begins = f"  <- migration {told.migration.number} begins" if told.migration is not None else ""
    return f"{head}{way}  {middle}  {quoted}{tail}{begins}"


def _quic_text(packet: Packet) -> str:
    words = [_TITLES[packet.space]]
    if packet.space in (Space.INITIAL, Space.UNKNOWN):
        words.append(
            f"v{name_of(packet.version)}" if packet.space is Space.INITIAL else name_of(packet.version)
        )
    if packet.packet_number is not None:
        words.append(f"#{packet.packet_number}")
        if packet.generation:
            words.append(f"key {packet.generation}")
    if packet.supported_versions:
        words.append("of " + ", ".join(name_of(version) for version in packet.supported_versions))
    if packet.repeated:
        words.append("(again)")
    if packet.nonce_reused:
        words.append("(NONCE REUSED)")
    if packet.frames is not None:
        words += [frame_text(frame) for frame in packet.frames]
    elif packet.why:
        words.append(f"({packet.size_bytes} bytes: {packet.why})")
    return " ".join(words)


def frame_text(frame: Frame) -> str:
    """A frame with what matters of it, as ``STREAM(0 +64 fin)``."""
    name = frame.name
    if name == "STREAM":
        end = " fin" if frame.fin else ""
        at = f"@{frame.offset}" if frame.offset else ""
        return f"STREAM({frame.stream_id}{at} +{frame.length}{end})"
    if name == "ACK":
        return f"ACK({frame.largest_acked})"
    inside = []
    if frame.stream_id is not None:
        inside.append(str(frame.stream_id))
    if frame.epoch is not None:
        inside.append(f"epoch {frame.epoch}")
    if frame.address is not None:
        inside.append(frame.address)
    if name == "CRYPTO":
        inside.append(f"@{frame.offset} +{frame.length}" if frame.offset else f"+{frame.length}")
    elif frame.length is not None:
        inside.append(f"+{frame.length}")
    elif name in _DATA_TOLD:
        inside.append(frame.data.hex())
    elif name == "CONNECTION_CLOSE" and frame.data:
        inside.append(frame.data.decode("utf-8", "replace"))
    return f"{name}({' '.join(inside)})" if inside else name


def _segment_text(segment: TcpTold) -> str:
    words = [",".join(segment.flags) or "none", f"seq {segment.sequence}"]
    if segment.acknowledged is not None:
        words.append(f"ack {segment.acknowledged}")
    if segment.length:
        words.append(f"+{segment.length}")
    words += [_mptcp_text(option) for option in segment.options.mptcp]
    words += [f"{item.name}({item.size_bytes})" for item in segment.records]
    if segment.undecrypted:
        words.append("(a TLS record that no secret opens)")
    if segment.note:
        words.append(f"({segment.note})")
    return " ".join(words)


def _mptcp_text(option: MptcpOption) -> str:
    inside = []
    if option.version is not None:
        inside.append(f"v{option.version}")
    if option.data_ack is not None:
        inside.append(f"data ack {option.data_ack}")
    if option.data_sequence is not None:
        inside.append(f"{option.data_sequence}+{option.data_length}")
    if option.data_fin:
        inside.append("fin")
    if option.address:
        inside.append(option.address)
    elif option.address_id is not None:
        inside.append(f"id {option.address_id}")
    name = f"{option.name}-echo" if option.echo else option.name
    return f"{name}({' '.join(inside)})" if inside else name


def event_text(event: Event, zero_ns: int) -> str:
    """One event of the run on a line."""
    detail = " ".join(f"{key}={value}" for key, value in event.detail.items())
    return (
        f"{'':>6} {(event.t_ns - zero_ns) / _NS:>12.6f} {event.vantage:<9} -- {event.name} {detail}".rstrip()
    )
