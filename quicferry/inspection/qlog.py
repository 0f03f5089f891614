"""Writes qlog: one file per connection and endpoint, as JSON text sequences (RFC 7464).

Schema: draft-ietf-quic-qlog-main-schema-13 and draft-ietf-quic-qlog-quic-events-13 (July 2026). What an
endpoint sent and received is taken from the capture at its place: the client's from where the connection's
first packet was seen, the server's from all other places, whichever edge it was at. A capture of one place
only gives a file of the network's view. ``qlog_version`` and ``qlog_format`` are for readers of qlog 0.3.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from quicferry.capture.quic.packets import Direction, Packet, Why
from quicferry.capture.quic.versions import Space
from quicferry.errors import InvalidInput
from quicferry.inspection.inspector import QUIC, Inspector, Told
from quicferry.inspection.qlog_frames import qlog_frames
from quicferry.inspection.stories import ConnectionStory

_RECORD_SEPARATOR = b"\x1e"
_PACKET_TYPES = {
    Space.INITIAL: "initial",
    Space.ZERO_RTT: "0RTT",
    Space.HANDSHAKE: "handshake",
    Space.RETRY: "retry",
    Space.ONE_RTT: "1RTT",
    Space.VERSION_NEGOTIATION: "version_negotiation",
    Space.UNKNOWN: "unknown",
}
_MOST_OPEN_FILES = 256
_encode = msgspec.json.Encoder().encode


class _Trace:
    """One file: a connection as one endpoint sees it."""

    def __init__(self, path: Path, is_client: bool | None, zero_ns: int) -> None:
        self.path = path
        self.is_client = is_client  # None: the network
        self.zero_ns = zero_ns
        self.last_ms = 0.0
        self.tuples: set[int] = set()
        self.generation: dict[Direction, int] = dict.fromkeys(Direction, 0)
        self.migrations = 0
        self.complete = 0
        self.validated: set[int] = set()


class QlogWriter:
    """Writes the traces of everything that it is given. Close it at the end."""

    def __init__(self, folder: Path, inspector: Inspector) -> None:
        """Raises ``InvalidInput`` when the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"{folder} cannot be made: {error.strerror}") from error
        self.written: list[Path] = []
        self._folder = folder
        self._inspector = inspector
        self._traces: dict[tuple[int, bool | None], _Trace] = {}
        self._files: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._datagrams = 0

    def take(self, told: Told, places: int) -> None:
        """Add a packet; ``places`` is how many places the capture has."""
        if told.protocol != QUIC or told.datagram.quoted:
            return
        self._datagrams += 1
        for packet in told.packets:
            story = self._inspector.stories.get(packet.connection)
            if story is None or packet.direction is None:
                continue
            at_home = told.place == story.home
            trace = self._trace(story, None if places < 2 else at_home, told.datagram.t_ns)
            self._packet(trace, story, packet, told)

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._files.popitem()[1].close()

    def _trace(self, story: ConnectionStory, is_client: bool | None, t_ns: int) -> _Trace:
        trace = self._traces.get((story.index, is_client))
        if trace is None:
            group = self._inspector.group_of(story.index) or f"connection{story.index}"
            who = {None: "network", True: "client", False: "server"}[is_client]
            trace = _Trace(self._folder / f"{group}_{who}.sqlog", is_client, t_ns)
            self._traces[story.index, is_client] = trace
            self.written.append(trace.path)
            trace.path.write_bytes(b"")
            self._write(trace, _header(group, who, t_ns))
            local, remote = _ends(story.client, story.server, is_client)
            self._event(trace, t_ns, "quic:connection_started", {"local": local, "remote": remote})
        return trace

    def _packet(self, trace: _Trace, story: ConnectionStory, packet: Packet, told: Told) -> None:
        direction = packet.direction or Direction.TO_SERVER
        t_ns = told.datagram.t_ns
        path = told.path
        if path >= 0 and path not in trace.tuples:
            trace.tuples.add(path)
            ends = next((each.ends for each in story.paths.values() if each.number == path), None)
            if ends is not None:
                local, remote = _ends(ends.client, ends.server, trace.is_client)
                about = {"tuple_id": str(path), "tuple_local": local, "tuple_remote": remote}
                self._event(trace, t_ns, "quic:tuple_assigned", about)
        generation = packet.generation or 0
        if generation > trace.generation[direction]:
            trace.generation[direction] = generation
            who = "client" if direction is Direction.TO_SERVER else "server"
            update = {"key_type": f"{who}_1rtt_secret", "key_phase": generation}
            self._event(trace, t_ns, "quic:key_updated", update)
        sent = direction is (Direction.TO_CLIENT if trace.is_client is False else Direction.TO_SERVER)
        name = "quic:packet_sent" if sent else "quic:packet_received"
        data = _packet_data(packet) | {"datagram_id": self._datagrams}
        if packet.why and packet.why is not Why.STATELESS_RESET:
            # the endpoint may well have opened it: what is told is that this reading could not
            data["quicferry_not_opened"] = packet.why.value
        self._event(trace, t_ns, name, data, path)
        self._migrations(trace, story, t_ns)
        if packet.frames:
            for frame in packet.frames:
                if frame.name == "CONNECTION_CLOSE":
                    initiator = "local" if sent else "remote"
                    reason = frame.data.decode("utf-8", "replace")
                    self._event(
                        trace, t_ns, "quic:connection_closed", {"initiator": initiator, "reason": reason}
                    )

    def _migrations(self, trace: _Trace, story: ConnectionStory, t_ns: int) -> None:
        """What has become of the paths, as the states of a migration."""
        for path in story.paths.values():
            if path.number and path.validated_ns is not None and path.number not in trace.validated:
                trace.validated.add(path.number)
                self._state(trace, t_ns, "probing_successful", path.number)
        while trace.migrations < len(story.migrations):
            self._state(trace, t_ns, "migration_started", story.migrations[trace.migrations].new.number)
            trace.migrations += 1
        while trace.complete < trace.migrations and story.migrations[trace.complete].complete_ns is not None:
            migration = story.migrations[trace.complete]
            state = "migration_abandoned" if migration.reverted else "migration_complete"
            self._state(trace, t_ns, state, migration.new.number)
            trace.complete += 1

    def _state(self, trace: _Trace, t_ns: int, state: str, path: int) -> None:
        self._event(trace, t_ns, "quic:migration_state_updated", {"new": state, "tuple_id": str(path)})

    def _event(self, trace: _Trace, t_ns: int, name: str, data: dict[str, Any], path: int = 0) -> None:
        # several interfaces may be out of order by a little; qlog's events are not
        trace.last_ms = max(trace.last_ms, round((t_ns - trace.zero_ns) / 1e6, 6))
        event: dict[str, Any] = {"time": trace.last_ms, "name": name, "data": data}
        if path > 0:
            event["tuple"] = str(path)
        self._write(trace, event)

    def _write(self, trace: _Trace, record: dict[str, Any]) -> None:
        file = self._files.pop(trace.path, None)
        if file is None:
            if len(self._files) >= _MOST_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            file = trace.path.open("ab")
        self._files[trace.path] = file
        file.write(_RECORD_SEPARATOR + _encode(record) + b"\n")


def _header(group: str, who: str, t_ns: int) -> dict[str, Any]:
    vantage: dict[str, Any] = {"name": f"quicferry {who}", "type": who}
    if who == "network":
        vantage["flow"] = "client"
    seconds, rest = divmod(t_ns, 1_000_000_000)
    return {
        "file_schema": "urn:ietf:params:qlog:file:sequential",
        "serialization_format": "application/qlog+json-seq",
        "qlog_version": "0.3",
        "qlog_format": "JSON-SEQ",
        "title": f"connection {group}",
        "trace": {
            "vantage_point": vantage,
            "event_schemas": ["urn:ietf:params:qlog:events:quic-13"],
            "common_fields": {
                "group_id": group,
                "time_format": "relative_to_epoch",
                "reference_time": {
                    "clock_type": "system",
                    "epoch": _rfc3339(seconds, rest),
                },
            },
        },
    }


def _rfc3339(seconds: int, nanoseconds: int) -> str:
    import datetime

    whole = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _ends(client: str, server: str, is_client: bool | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Local and remote; the network's view is the client's."""
    ends = (_endpoint(client), _endpoint(server))
    return ends[::-1] if is_client is False else ends


def _endpoint(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        return {"ip_v6": host[1:-1], "port_v6": int(port)}
    return {"ip_v4": host, "port_v4": int(port)}


def _packet_data(packet: Packet) -> dict[str, Any]:
    header: dict[str, Any] = {"packet_type": _PACKET_TYPES[packet.space]}
    if packet.why is Why.STATELESS_RESET:
        header["packet_type"] = "stateless_reset"
    if packet.packet_number is not None:
        header["packet_number"] = packet.packet_number
    if packet.space is not Space.ONE_RTT:
        header["version"] = f"{packet.version:08x}"
        header |= {"scil": len(packet.source_cid), "scid": packet.source_cid.hex()}
    header |= {"dcil": len(packet.destination_cid), "dcid": packet.destination_cid.hex()}
    if packet.token:
        header["token"] = {"raw": {"length": len(packet.token), "data": packet.token.hex()}}
    if packet.space is Space.ONE_RTT and packet.generation is not None:
        header["key_phase_bit"] = packet.generation & 1
    data: dict[str, Any] = {"header": header, "raw": {"length": packet.size_bytes}}
    if packet.frames is not None:
        data["raw"]["payload_length"] = len(packet.payload)
        data["frames"] = qlog_frames(packet.payload)
    if packet.supported_versions:
        data["supported_versions"] = [f"{version:08x}" for version in packet.supported_versions]
    return data
