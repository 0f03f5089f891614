"""The table of decoders: name, what is called with the bytes, and the errors that it may raise.

What reads a file gets one; what reads a sequence of packets gets the bytes cut up by ``pieces``. A digest
that would stop every changed byte is made anew, so that what stands behind it is reached.
"""

from __future__ import annotations

import hashlib
import math
import struct
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from aioquic.quic.connection import QuicConnection

from apps.server.service import ApplicationService
from proof.fuzz.attempt import Target
from proof.fuzz.endpoint import configuration
from proof.fuzz.fields import replaced
from proof.fuzz.findings import CORPUS
from quicferry.capture import mptcp
from quicferry.capture.capture import read_counts
from quicferry.capture.pcap import read_datagrams
from quicferry.capture.quic import Decryptor, read_keylog
from quicferry.capture.quic.frames import parse_frames
from quicferry.capture.quic.headers import long_header
from quicferry.capture.tls import TcpTraffic
from quicferry.errors import CaptureError, FerryError, InvalidInput, MigrationError, StoreError
from quicferry.events import read_events
from quicferry.experiment import faults
from quicferry.inspection.choices import Choice
from quicferry.inspection.extras import Extras
from quicferry.inspection.inspector import Inspector
from quicferry.inspection.overview import overview
from quicferry.inspection.sources import Source
from quicferry.inspection.telling import closing, telling
from quicferry.migration.control import ControlClient
from quicferry.migration.criu.image_stream import Unpacker
from quicferry.migration.criu.stats import read_dump_stats, read_restore_stats
from quicferry.migration.datagrams.waiting_room import readdress
from quicferry.migration.journal import Journal
from quicferry.migration.memory import pagemap
from quicferry.migration.rpc import messages
from quicferry.migration.rpc.channel import Duplex, Unary, decoder
from quicferry.model import Endpoint
from quicferry.quic.fence import Fence
from quicferry.quic.snapshot import FORMAT_VERSION, restore_snapshot, unpack_bundle
from quicferry.quic.wire import Parameter, decode_frame, find_parameter
from quicferry.record import read_manifest
from session.request import to_spec
from session.scenario import read_scenario

Call = Callable[[bytes, Path], object]
_HEADER = struct.Struct("!4sHHQ")  # of hand-off data, docs/adr/0005-hand-off-format.md
MOST_SWEPT = 200  # combinations of a scenario; more of the same would only take time
CLIENT, SERVER = "10.0.0.2:40000", "10.0.1.2:4433"


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The bytes as packets: a byte of flags, two of length, so many bytes; the last may be cut off."""
    at = 0
    while at + 3 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 3], "big")
        yield data[at], data[at + 3 : at + 3 + size]
        at += 3 + size


def _from_file(name: str, read: Callable[[Path], object]) -> Call:
    def call(data: bytes, scratch: Path) -> object:
        path = scratch / name
        path.write_bytes(data)
        return read(path)

    return call


def _parameter(data: bytes, _: Path) -> None:
    value = find_parameter(data)
    if value is not None:
        Parameter.decode(value)


def _sealed(magic: bytes, payload: bytes) -> bytes:
    header = _HEADER.pack(magic, FORMAT_VERSION, 0, len(payload))
    return header + hashlib.sha256(header + payload).digest() + payload


def _snapshot(data: bytes, _: Path) -> None:
    restore_snapshot(_sealed(b"QFsn", data), configuration=configuration(), build=QuicConnection, now=1000.0)


@cache
def _image() -> Any:
    """The connection of the corpus as plain data."""
    return msgspec.msgpack.decode((CORPUS / "snapshot-payload" / "connection").read_bytes())


def _snapshot_fields(data: bytes, scratch: Path) -> None:
    _snapshot(msgspec.msgpack.encode(replaced(_image(), data)), scratch)


def _rpc() -> list[Callable[[bytes], Any]]:
    methods = [each for each in vars(messages).values() if isinstance(each, Unary | Duplex)]
    kinds = [kind for method in methods for kind in (method.request, method.answer)]
    return [decoder(kind) for kind in kinds]


_RPC = _rpc()


def _message(data: bytes, _: Path) -> None:
    if data:
        _RPC[data[0] % len(_RPC)](data[1:])


def _capture(path: Path) -> None:
    for datagram in read_datagrams(path):
        assert isinstance(datagram.payload, bytes)


def _inspect(path: Path) -> None:
    """Everything that ``quicferry inspect`` makes of a file: lines of both kinds, the tables, qlog."""
    source = Source(path)
    inspector = Inspector(source.keylog)
    with ExitStack() as stack:
        extras = Extras(source, inspector, stack, diagram=True, qlog=path.parent / "qlog")
        for as_json in (False, True):
            for line in telling(source, inspector, Choice(), as_json=as_json, packets=True, also=extras.take):
                assert line is None or line.endswith(b"\n")
    extras.text()
    extras.svg("fuzzed")
    gaps = source.gaps() + inspector.gaps()
    assert list(overview(inspector, gaps))
    assert list(closing(inspector, gaps))


def _long_headers(data: bytes, _: Path) -> None:
    at = 0
    while at < len(data):
        header = long_header(data, at)
        if header is None:
            return
        assert at < header.end <= len(data), "a packet that does not end, or ends outside"
        at = header.end


def _quic(data: bytes, _: Path) -> None:
    decryptor = Decryptor({bytes(32): {"CLIENT_TRAFFIC_SECRET_0": bytes(32)}})
    for number, (flags, datagram) in enumerate(pieces(data)):
        ends = (CLIENT, SERVER) if flags & 1 else (SERVER, CLIENT)
        for packet in decryptor.feed(number, *ends, datagram):
            assert packet.size_bytes <= len(datagram)
    for _packet in decryptor.other_vantage().feed(0, CLIENT, SERVER, data):
        pass


def _tcp(data: bytes, _: Path) -> None:
    traffic = TcpTraffic({}, 4433)
    for flags, segment in pieces(data):
        client = f"10.0.0.2:{40_000 + ((flags >> 1) & 3)}"  # some subflows
        source, destination = (client, SERVER) if flags & 1 else (SERVER, client)
        traffic.feed(source, destination, segment)


def _checkpoint(data: bytes, scratch: Path) -> None:
    images, root, outside = scratch / "c" / "images", scratch / "c" / "root", scratch / "outside"
    for folder in (images, root / "run", outside):
        folder.mkdir(parents=True)
    unpacker = Unpacker(images, root)
    size = 1 + (data[0] if data else 0)
    try:
        for at in range(1, len(data), size):
            unpacker.feed(data[at : at + size])
        unpacker.manifest()
    finally:
        assert not any(outside.iterdir()), "written outside"
        assert {path.name for path in scratch.iterdir()} == {"c", "outside"}, "written outside"
        assert {path.name for path in (scratch / "c").iterdir()} == {"images", "root"}, "written outside"
        assert {path.name for path in root.iterdir()} == {"run"}, "written outside"


def _stats(data: bytes, _: Path) -> None:
    try:
        read_dump_stats(data)
    except MigrationError:
        read_restore_stats(data)


def _pagemap(data: bytes, _: Path) -> None:
    decoded = pagemap.decode(data)
    for pages in (decoded.present, decoded.optional, decoded.absent):
        pagemap.runs_of(pages)


def _service(data: bytes, _: Path) -> None:
    service = ApplicationService("edge-1", 256)
    for flags, piece in pieces(data):
        service.received("key", flags >> 1, piece, bool(flags & 1), lambda *_: None)


def _control(data: bytes, _: Path) -> None:
    ControlClient().datagram_received(data, ("127.0.0.1", 1))


def _scenario(path: Path) -> None:
    try:
        swept = tomllib.loads(path.read_bytes().decode()).get("sweep", {})
        many = math.prod(len(values) for values in swept.values()) > MOST_SWEPT
    except (tomllib.TOMLDecodeError, ValueError, RecursionError, AttributeError, TypeError):
        many = False
    if not many:  # each combination is checked, which takes the third of a millisecond that it should
        read_scenario(path)


def _request(data: bytes, _: Path) -> None:
    try:
        values = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):  # not what is looked at here
        return
    if isinstance(values, dict):
        to_spec(values)


def _fault(data: bytes, _: Path) -> None:
    faults.parse(data.decode("latin-1"))


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("frame", lambda data, _: decode_frame(data), (FerryError,), "frames of the extension"),
        Target("transport-parameter", _parameter, (FerryError,), "the extension's transport parameter"),
        Target("bundle", lambda data, _: unpack_bundle(data), (MigrationError,), "hand-off data"),
        Target(
            "bundle-payload", lambda data, _: unpack_bundle(_sealed(b"QFbu", data)), (MigrationError,),
            "a bundle whose digest is right",
        ),
        Target("snapshot-payload", _snapshot, (MigrationError,), "a connection whose digest is right"),
        Target("snapshot-fields", _snapshot_fields, (MigrationError,), "one whose fields make no sense"),
        Target("journal", _from_file("edge.journal", Journal), (), "what an agent remembers of its moves"),
        Target("fence", _from_file("fence.json", Fence), (), "whether this host may send"),
        Target("rpc", _message, (msgspec.DecodeError,), "messages between agents and orchestrator"),
        Target("control", _control, (), "the server's answers to its agent"),
        Target("scenario", _from_file("s.toml", _scenario), (InvalidInput,), "a scenario file"),
        Target("request", _request, (InvalidInput,), "values of axes"),
        Target("fault", _fault, (InvalidInput,), "a fault as on the command line"),
        Target("capture", _from_file("a.pcapng", _capture), (CaptureError,), "pcap and pcapng files"),
        Target("inspect", _from_file("a.pcapng", _inspect), (CaptureError,), "a capture, told in every way"),
        Target("quic-frames", lambda data, _: parse_frames(data), (CaptureError,), "frames of a capture"),
        Target("quic-header", _long_headers, (), "long headers of a capture"),
        Target("quic", _quic, (), "datagrams of a capture"),
        Target("tcp", _tcp, (), "TCP, MPTCP and TLS of a capture"),
        Target("mptcp-options", lambda data, _: list(mptcp.options(data)), (), "MPTCP options"),
        Target("keylog", _from_file("keys.log", read_keylog), (), "a key log"),
        Target("dumpcap", lambda data, _: read_counts(data.decode("latin-1")), (), "what dumpcap says"),
        Target("events", _from_file("events.jsonl", read_events), (), "a file of events"),
        Target(
            "manifest", _from_file("manifest.json", lambda path: read_manifest(path.parent)), (StoreError,),
            "the manifest of a run",
        ),
        Target("checkpoint", _checkpoint, (MigrationError,), "CRIU's images as a stream"),
        Target("criu-stats", _stats, (MigrationError,), "CRIU's statistics"),
        Target("pagemap", _pagemap, (MigrationError,), "CRIU's page maps"),
        Target(
            "late-datagram", lambda data, _: readdress(data, Endpoint("10.0.2.2", 4433)), (),
            "a datagram that came too late",
        ),
        Target("service", _service, (ValueError,), "the streams of the load"),
    )
}  # fmt: skip
