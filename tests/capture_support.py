"""Synthetic runs with a known truth, for the tests of capture and analysis.

Two stock aioquic endpoints talk in virtual time; what each host would have captured is written as
pcapng. The address of the server is a matter of the generator alone, so that it can move without
an extension: the endpoints never notice, the capture does.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import msgspec
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives import serialization

from quicferry.events import Event, write_events
from quicferry.model import Node, NodeKind, Topology
from quicferry.record import ClientSummary, Clock, Manifest, RequestRecord, RunPaths, write_json
from quicferry.spec import RunSpec
from quicferry.units import NS_PER_MS
from tests.certificate import certificate

CLIENT = ("10.0.0.2", 50_000)
OLD = ("10.0.1.2", 4433)
NEW = ("10.0.2.2", 4433)
REALTIME_OFFSET_NS = 1_700_000_000_000_000_000
BEGIN_NS = 5_000_000_000_000  # CLOCK_MONOTONIC at virtual time 0


def text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


class Sighting(NamedTuple):
    """A datagram as one host sees it."""

    t_ns: int
    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes


def write_pcapng(path: Path, sightings: list[Sighting], interface: str = "eth0") -> None:
    """A pcapng file with one Ethernet interface and nanosecond stamps of the realtime clock."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        length = len(body) + 12
        return struct.pack("<II", kind, length) + body + struct.pack("<I", length)

    def option(code: int, value: bytes) -> bytes:
        return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)

    parts = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    options = option(2, interface.encode()) + option(9, b"\x09") + option(0, b"")
    parts.append(block(1, struct.pack("<HHI", 1, 0, 0) + options))
    for sighting in sorted(sightings, key=lambda each: each.t_ns):
        frame = ethernet_frame(sighting)
        stamp = sighting.t_ns + REALTIME_OFFSET_NS
        head = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(frame), len(frame))
        parts.append(block(6, head + frame))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def ethernet_frame(sighting: Sighting) -> bytes:
    """Ethernet, IPv4 with a right checksum, UDP without one."""

    def host(name: str) -> bytes:
        return bytes(int(part) for part in name.split("."))

    udp = struct.pack("!HHHH", sighting.source[1], sighting.destination[1], 8 + len(sighting.payload), 0)
    length = 20 + len(udp) + len(sighting.payload)
    addresses = host(sighting.source[0]) + host(sighting.destination[0])
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return b"\x02" + bytes(4) + b"\x02\x02" + bytes(4) + b"\x01\x08\x00" + head + udp + sighting.payload


class Answer(NamedTuple):
    number: int
    sent_ns: int
    received_ns: int
    server: str


class Scene:
    """A client that asks every ``interval_ms`` and a server that answers, in virtual time.

    ``at(ms, action)`` plans something; ``run(ms)`` lets time pass. What the hosts would have
    captured is in ``client_side`` and ``server_side`` (by address).
    """

    def __init__(
        self,
        *,
        one_way_ms: float = 9.0,
        interval_ms: float = 10.0,
        response_bytes: int = 256,
        cipher: CipherSuite = CipherSuite.AES_128_GCM_SHA256,
        versions: list[int] | None = None,
    ) -> None:
        self.one_way_ns = round(one_way_ms * NS_PER_MS)
        self.interval_ns = round(interval_ms * NS_PER_MS)
        self.response_bytes = response_bytes
        self.keys = StringIO()
        made, key = certificate()
        client = QuicConfiguration(
            is_client=True, alpn_protocols=["echo"], server_name="service.test", secrets_log_file=self.keys
        )
        client.load_verify_locations(cadata=made.public_bytes(serialization.Encoding.PEM))
        server = QuicConfiguration(is_client=False, alpn_protocols=["echo"], secrets_log_file=self.keys)
        server.certificate, server.private_key = made, key
        client.cipher_suites = server.cipher_suites = [cipher]
        if versions:
            client.supported_versions = server.supported_versions = versions
            client.original_version = versions[0]
        self.client = QuicConnection(configuration=client)
        self.server = QuicConnection(
            configuration=server,
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.now_ns = 0
        self.client_address = CLIENT
        self.server_address = OLD  # where the server is
        self.believed_server = OLD  # where the client sends
        self.frozen = True  # until the first datagram: a server without a path has nothing to say
        self.client_side: list[Sighting] = []
        self.server_side: dict[str, list[Sighting]] = {text(OLD): [], text(NEW): []}
        self.lose_to_client: Callable[[int], bool] = lambda _t_ns: False
        self.duplicate_to_client: Callable[[int], bool] = lambda _t_ns: False
        self.answers: list[Answer] = []
        self.sent: dict[int, tuple[int, int]] = {}  # stream -> number, t_ns
        self.events: list[Event] = []
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._heard = False
        self._data: dict[int, bytes] = {}
        self.client.connect(OLD, now=0.0)
        self._pump()

    # time

    def at(self, ms: float, action: Callable[[], None]) -> None:
        self._plan(round(ms * NS_PER_MS), action)

    def _plan(self, t_ns: int, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (t_ns, self._order, action))

    def run(self, until_ms: float) -> None:
        end = round(until_ms * NS_PER_MS)
        while True:
            due = [(t_ns, side) for side in (self.client, self.server) if (t_ns := self._timer(side))]
            timer = min(due, key=lambda each: each[0]) if due else None
            planned = self._queue[0][0] if self._queue else None
            moment = min((t for t in (timer and timer[0], planned) if t is not None), default=None)
            if moment is None or moment > end:
                self.now_ns = end
                return
            self.now_ns = max(self.now_ns, moment)
            if planned is not None and planned <= moment:
                heapq.heappop(self._queue)[2]()
            elif timer is not None:
                timer[1].handle_timer(now=self.now_ns / 1e9)
            self._pump()

    def _timer(self, side: QuicConnection) -> int | None:
        if side is self.server and self.frozen:
            return None
        at = side.get_timer()
        return None if at is None else round(at * 1e9) + 1

    def stamp(self, t_ns: int | None = None) -> int:
        return BEGIN_NS + (self.now_ns if t_ns is None else t_ns)

    def note(self, vantage: str, name: str, **detail: object) -> None:
        self.events.append(Event(t_ns=self.stamp(), vantage=vantage, name=name, detail=dict(detail)))

    # traffic

    def _pump(self) -> None:
        now = self.now_ns / 1e9
        for data, _ in self.client.datagrams_to_send(now):
            self._to_server(data)
        if not self.frozen:
            for data, _ in self.server.datagrams_to_send(now):
                self._to_client(data)
        self._read_server()
        self._read_client()

    def _to_server(self, data: bytes) -> None:
        source, target = self.client_address, self.believed_server
        self.client_side.append(Sighting(self.stamp(), source, target, data))

        def arrive() -> None:
            self.server_side[text(target)].append(Sighting(self.stamp(), source, target, data))
            if not self._heard:
                self._heard, self.frozen = True, False
            if not self.frozen and self.server_address == target:
                self.server.receive_datagram(data, source, now=self.now_ns / 1e9)

        self._plan(self.now_ns + self.one_way_ns, arrive)

    def _to_client(self, data: bytes) -> None:
        source, target = self.server_address, self.client_address
        self.server_side[text(source)].append(Sighting(self.stamp(), source, target, data))
        if self.lose_to_client(self.now_ns):
            return

        def arrive() -> None:
            self.client_side.append(Sighting(self.stamp(), source, target, data))
            self.believed_server = source
            self.client.receive_datagram(data, OLD, now=self.now_ns / 1e9)
            self._read_client(source)

        self._plan(self.now_ns + self.one_way_ns, arrive)
        if self.duplicate_to_client(self.now_ns):
            self._plan(self.now_ns + self.one_way_ns + 1000, arrive)

    def _read_server(self) -> None:
        while (event := self.server.next_event()) is not None:
            if isinstance(event, StreamDataReceived):
                self._data[event.stream_id] = self._data.get(event.stream_id, b"") + event.data
                if event.end_stream:
                    answer = self._data[event.stream_id][:8].ljust(self.response_bytes, b"r")
                    self.server.send_stream_data(event.stream_id, answer, end_stream=True)
                    if not self.frozen:
                        for data, _ in self.server.datagrams_to_send(self.now_ns / 1e9):
                            self._to_client(data)

    def _read_client(self, server: tuple[str, int] | None = None) -> None:
        while (event := self.client.next_event()) is not None:
            if isinstance(event, StreamDataReceived) and event.end_stream and server is not None:
                number, sent_ns = self.sent[event.stream_id]
                self.answers.append(Answer(number, sent_ns, self.stamp(), text(server)))
                self.note(
                    "client",
                    "client.response.received",
                    number=number,
                    stream=event.stream_id,
                    server=text(server),
                    service_ms=(self.stamp() - sent_ns) / NS_PER_MS,
                )

    def ask(self) -> None:
        stream = self.client.get_next_available_stream_id()
        number = len(self.sent)
        self.sent[stream] = (number, self.stamp())
        self.client.send_stream_data(stream, struct.pack("!Q", number).ljust(64, b"q"), end_stream=True)
        self.note("client", "client.request.sent", number=number, size_bytes=64, stream=stream)

    def load(self, from_ms: float, to_ms: float) -> None:
        t_ns = round(from_ms * NS_PER_MS)
        while t_ns < round(to_ms * NS_PER_MS):
            self._plan(t_ns, self.ask)
            t_ns += self.interval_ns

    # what may happen

    def freeze(self) -> None:
        self.frozen = True
        self.note("edge-1", "server.frozen", epoch=1)

    def resume(self) -> None:
        self.frozen = False
        self.server_address = NEW
        self.note("edge-2", "server.resumed", epoch=1, edge="edge-2", server_first=True)
        self.server.send_ping(1)

    def rebind(self, port: int) -> None:
        self.client_address = (CLIENT[0], port)

    # truth

    @property
    def service_migration_ns(self) -> int:
        """By the application's own view: last answer from OLD to first answer from NEW."""
        first_new = min(answer.received_ns for answer in self.answers if answer.server == text(NEW))
        before = [a.received_ns for a in self.answers if a.server == text(OLD) and a.received_ns < first_new]
        return first_new - max(before)


def moving_scene(*, downtime_ms: float = 100.0, key_update: bool = True, **settings: object) -> Scene:
    """A second of load with a move at 400 ms, key updates and a change of connection ID."""
    scene = Scene(**settings)  # type: ignore[arg-type] # the keywords are those of Scene
    scene.load(100, 1000)
    if key_update:
        scene.at(251, scene.client.request_key_update)
        scene.at(353, scene.server.request_key_update)
        scene.at(857, scene.client.request_key_update)
    scene.at(300.5, scene.client.change_connection_id)
    scene.at(400, scene.freeze)
    scene.at(400 + downtime_ms, scene.resume)
    scene.run(1500)
    return scene


def phase_events(scene: Scene, downtime_ms: float) -> list[Event]:
    """The agents' phases, laid into the downtime: checkpoint 20 %, transfer 50 %, restore the rest."""
    frozen = next(event.t_ns for event in scene.events if event.name == "server.frozen")
    at = [frozen + round(downtime_ms * NS_PER_MS * share) for share in (0.0, 0.2, 0.7, 1.0)]
    found = [
        Event(
            t_ns=frozen - 2 * NS_PER_MS,
            vantage="orch",
            name="migration.ordered",
            detail={"epoch": 1, "strategy": "symmetric", "engine": "handoff"},
        ),
        Event(t_ns=frozen - NS_PER_MS, vantage="edge-1", name="migration.notice.started"),
        Event(t_ns=frozen - NS_PER_MS // 2, vantage="edge-1", name="migration.notice.complete"),
    ]
    details: list[dict[str, object]] = [{"bytes": 4096}, {"bytes": 5000}, {}]
    vantages = ("edge-1", "edge-1", "edge-2")
    for place, name in enumerate(("checkpoint", "transfer", "restore")):
        vantage = vantages[place]
        found.append(Event(t_ns=at[place], vantage=vantage, name=f"migration.{name}.started"))
        found.append(
            Event(
                t_ns=at[place + 1], vantage=vantage, name=f"migration.{name}.complete", detail=details[place]
            )
        )
    return found


def write_run(root: Path, scene: Scene, *, downtime_ms: float = 100.0, outcome: str = "succeeded") -> Path:
    """A run directory of a scene."""
    paths = RunPaths(root)
    root.mkdir(parents=True)
    topology = Topology(
        name="two_edges",
        summary="synthetic",
        nodes=(
            Node(name="client"),
            Node(name="edge-1", kind=NodeKind.EDGE),
            Node(name="edge-2", kind=NodeKind.EDGE),
        ),
        links=(),
        parts={"client": "client", "source": "edge-1", "destination": "edge-2"},
    )
    manifest = Manifest(
        id=root.name,
        created="2026-01-02T03:04:05Z",
        spec=RunSpec(strategy="symmetric", engine="handoff", rtt_ms=scene.one_way_ns * 2 / NS_PER_MS),
        topology=topology,
        client_address=CLIENT[0],
        source_endpoint=text(OLD),
        destination_endpoint=text(NEW),
        link_backend="cable",
        clock=Clock(
            realtime_minus_monotonic_start_ns=REALTIME_OFFSET_NS,
            realtime_minus_monotonic_end_ns=REALTIME_OFFSET_NS,
        ),
        tool_version="0.1.0",
        kernel="6.18.0",
        versions={"aioquic": "1.7.2"},
        interfaces={"client": "client-eth0", "edge-1": "edge-1-eth0", "edge-2": "edge-2-eth0"},
        outcome=outcome,
        error=None if outcome == "succeeded" else "the server did not come back",
    )
    manifest = msgspec.convert(msgspec.to_builtins(manifest), Manifest)  # the strategy's name becomes one
    write_json(paths.manifest, manifest)
    write_events(paths.events, [*scene.events, *phase_events(scene, downtime_ms)])
    write_pcapng(paths.captures / "client.pcapng", scene.client_side, "client-eth0")
    write_pcapng(paths.captures / "edge-1.pcapng", scene.server_side[text(OLD)], "edge-1-eth0")
    write_pcapng(paths.captures / "edge-2.pcapng", scene.server_side[text(NEW)], "edge-2-eth0")
    paths.secrets.mkdir(mode=0o700)
    paths.keys.write_text(scene.keys.getvalue())
    answered = {answer.number: answer for answer in scene.answers}
    records = [
        RequestRecord(
            number=number,
            stream=stream,
            sent_ns=sent_ns,
            received_ns=answered[number].received_ns if number in answered else None,
            server=answered[number].server if number in answered else None,
        )
        for stream, (number, sent_ns) in scene.sent.items()
    ]
    summary = ClientSummary(
        requests_sent=len(records),
        responses=len(answered),
        requests_lost=len(records) - len(answered),
        bytes_verified=len(answered) * scene.response_bytes,
        state_ok=True,
        requests=records,
    )
    write_json(paths.client, summary)
    return root
