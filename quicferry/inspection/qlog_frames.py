"""The frames of a payload with all their fields and names of draft-ietf-quic-qlog-quic-events-13.

What qlog has no name for, the extension's frames and those of drafts, is ``unknown`` there; its name stands
beside its number in ``quicferry_frame``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from quicferry.capture.quic.frames import CUT_OFF, UnknownFrame, frame_at
from quicferry.capture.quic.varint import read_varint

_Fields = dict[str, Any]
#: the delay of an ACK frame is in units of 2^3 microseconds unless said otherwise (RFC 9000 §18.2)
_ACK_DELAY_UNIT_MS = 0.008
_ERRORS = (
    "no_error", "internal_error", "connection_refused", "flow_control_error", "stream_limit_error",
    "stream_state_error", "final_size_error", "frame_encoding_error", "transport_parameter_error",
    "connection_id_limit_error", "protocol_violation", "invalid_token", "application_error",
    "crypto_buffer_exceeded", "key_update_error", "aead_limit_reached", "no_viable_path",
)  # fmt: skip


class _Reader:
    """Reads the fields of one frame."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def number(self) -> int:
        """A variable-length integer."""
        value, self.at = read_varint(self.data, self.at)
        return value

    def take(self, count: int) -> bytes:
        """So many bytes."""
        part = self.data[self.at : self.at + count]
        self.at += count
        return part


def qlog_frames(payload: bytes) -> list[_Fields]:
    """Every frame of a payload, padding included; the last one may be unknown or cut off."""
    found: list[_Fields] = []
    at, end = 0, len(payload)
    while at < end:
        if payload[at] == 0:
            rest = payload[at:].lstrip(b"\0")
            length = end - at - len(rest)
            found.append({"frame_type": "padding", "raw": {"length": length, "payload_length": length}})
            at += length
            continue
        kind = payload[at]
        try:
            kind, begin = read_varint(payload, at)
            frame, behind = frame_at(payload, at)
        except (UnknownFrame, IndexError) as error:
            name = "" if isinstance(error, UnknownFrame) else f"{CUT_OFF}{kind:x}"
            found.append(_unknown(kind, end - at, name))
            break
        reader = _Reader(payload, begin, behind)
        make = _stream if 0x08 <= kind <= 0x0F else _MAKERS.get(kind)
        fields = make(kind, reader) if make is not None else _unknown(kind, behind - at, frame.name)
        found.append(fields)
        at = behind
    return found


def _unknown(kind: int, length: int, name: str) -> _Fields:
    found: _Fields = {"frame_type": "unknown", "frame_type_bytes": kind, "raw": {"length": length}}
    if name:
        found["quicferry_frame"] = name
    return found


def _plain(name: str, *fields: str) -> Callable[[int, _Reader], _Fields]:
    """A frame that is a name and integers."""

    def make(_kind: int, reader: _Reader) -> _Fields:
        return {"frame_type": name} | {field: reader.number() for field in fields}

    return make


def _ack(kind: int, reader: _Reader) -> _Fields:
    largest, delay, count, first = (reader.number() for _ in range(4))
    ranges = [[largest - first, largest]]
    for _ in range(count):
        gap, length = reader.number(), reader.number()
        high = ranges[-1][0] - gap - 2
        ranges.append([high - length, high])
    found: _Fields = {
        "frame_type": "ack",
        "ack_delay": round(delay * _ACK_DELAY_UNIT_MS, 3),
        "acked_ranges": ranges[::-1],
    }
    if kind == 0x03:
        found |= {name: reader.number() for name in ("ect0", "ect1", "ce")}
    return found


def _stream(kind: int, reader: _Reader) -> _Fields:
    stream = reader.number()
    offset = reader.number() if kind & 0x04 else 0
    length = reader.number() if kind & 0x02 else reader.end - reader.at
    return {
        "frame_type": "stream",
        "stream_id": stream,
        "offset": offset,
        "fin": bool(kind & 0x01),
        "raw": {"payload_length": length},
    }


def _crypto(_kind: int, reader: _Reader) -> _Fields:
    offset, length = reader.number(), reader.number()
    return {"frame_type": "crypto", "offset": offset, "raw": {"payload_length": length}}


def _new_token(_kind: int, reader: _Reader) -> _Fields:
    length = reader.number()
    return {
        "frame_type": "new_token",
        "token": {"raw": {"length": length, "data": reader.take(length).hex()}},
    }


def _streams(name: str, field: str) -> Callable[[int, _Reader], _Fields]:
    """A frame about all streams of a type, which the last bit of the frame type tells."""

    def make(kind: int, reader: _Reader) -> _Fields:
        return {
            "frame_type": name,
            "stream_type": "unidirectional" if kind & 1 else "bidirectional",
            field: reader.number(),
        }

    return make


def _reset(name: str, *fields: str) -> Callable[[int, _Reader], _Fields]:
    def make(_kind: int, reader: _Reader) -> _Fields:
        found: _Fields = {"frame_type": name, "stream_id": reader.number(), "error": "unknown"}
        return found | {"error_code": reader.number()} | {field: reader.number() for field in fields}

    return make


def _new_connection_id(_kind: int, reader: _Reader) -> _Fields:
    sequence, retire = reader.number(), reader.number()
    length = reader.take(1)[0]
    return {
        "frame_type": "new_connection_id",
        "sequence_number": sequence,
        "retire_prior_to": retire,
        "connection_id_length": length,
        "connection_id": reader.take(length).hex(),
        "stateless_reset_token": reader.take(16).hex(),
    }


def _path(name: str) -> Callable[[int, _Reader], _Fields]:
    return lambda _kind, reader: {"frame_type": name, "data": reader.take(8).hex()}


def _close(kind: int, reader: _Reader) -> _Fields:
    code = reader.number()
    found: _Fields = {
        "frame_type": "connection_close",
        "error_space": "transport" if kind == 0x1C else "application",
        "error": error_name(code) if kind == 0x1C else "unknown",
        "error_code": code,
    }
    if kind == 0x1C:
        found["trigger_frame_type"] = reader.number()
    reason = reader.take(reader.number())
    with contextlib.suppress(UnicodeDecodeError):
        return found | {"reason": reason.decode()}
    return found | {"reason_bytes": reason.hex()}


def _datagram(kind: int, reader: _Reader) -> _Fields:
    length = reader.number() if kind & 1 else reader.end - reader.at
    return {"frame_type": "datagram", "raw": {"payload_length": length}}


def error_name(code: int) -> str:
    """What qlog calls a transport error."""
    if 0x100 <= code <= 0x1FF:
        return f"crypto_error_0x{code:03x}"
    return _ERRORS[code] if code < len(_ERRORS) else "unknown"


_MAKERS: dict[int, Callable[[int, _Reader], _Fields]] = {
    0x01: _plain("ping"),
    0x02: _ack,
    0x03: _ack,
    0x04: _reset("reset_stream", "final_size"),
    0x05: _reset("stop_sending"),
    0x06: _crypto,
    0x07: _new_token,
    0x10: _plain("max_data", "maximum"),
    0x11: _plain("max_stream_data", "stream_id", "maximum"),
    0x12: _streams("max_streams", "maximum"),
    0x13: _streams("max_streams", "maximum"),
    0x14: _plain("data_blocked", "limit"),
    0x15: _plain("stream_data_blocked", "stream_id", "limit"),
    0x16: _streams("streams_blocked", "limit"),
    0x17: _streams("streams_blocked", "limit"),
    0x18: _new_connection_id,
    0x19: _plain("retire_connection_id", "sequence_number"),
    0x1A: _path("path_challenge"),
    0x1B: _path("path_response"),
    0x1C: _close,
    0x1D: _close,
    0x1E: _plain("handshake_done"),
    0x30: _datagram,
    0x31: _datagram,
}
