"""A server process that begins with connections it never met: the bundle comes on its standard input.

Each message is four bytes of length and MessagePack. First comes ``Start``, then one ``Turn`` after another,
each answered by one ``Reply``. Time comes from the parent as seconds since the start; the clock itself is
this process's own.
"""

from __future__ import annotations

import sys
import time
from typing import BinaryIO

import msgspec
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from quicferry.quic.snapshot import restore_snapshot, unpack_bundle
from tests.snapshot_support import CLIENT, Service


class Start(msgspec.Struct):
    certificate: bytes
    key: bytes
    bundle: bytes


class Turn(msgspec.Struct):
    elapsed_s: float
    datagrams: list[bytes]


class Reply(msgspec.Struct):
    datagrams: list[bytes]
    timer_in_s: float | None
    requests: int
    restore_ms: float


def read(stream: BinaryIO) -> bytes | None:
    head = stream.read(4)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 4 else None


def write(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def dump_service(service: Service) -> bytes:
    return msgspec.msgpack.encode((service.requests, service.received))


def main() -> None:
    data = read(sys.stdin.buffer)
    assert data is not None
    start = msgspec.msgpack.decode(data, type=Start)
    bundle = unpack_bundle(start.bundle)
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=["ferry-test"],
        certificate=x509.load_pem_x509_certificate(start.certificate),
        private_key=serialization.load_pem_private_key(start.key, None),
        max_datagram_frame_size=1200,
    )
    service = Service()
    service.requests, service.received = msgspec.msgpack.decode(
        bundle.service, type=tuple[int, dict[int, bytes]]
    )
    base = time.monotonic()
    connection = restore_snapshot(
        bundle.snapshots[0],
        configuration=configuration,
        build=QuicConnection,
        now=base,
        epoch=bundle.epoch,
    )
    restore_ms = (time.monotonic() - base) * 1000
    while (data := read(sys.stdin.buffer)) is not None:
        turn = msgspec.msgpack.decode(data, type=Turn)
        now = base + turn.elapsed_s
        timer = connection.get_timer()
        if timer is not None and timer <= now:
            connection.handle_timer(now)
        for datagram in turn.datagrams:
            connection.receive_datagram(datagram, CLIENT, now)
        while (event := connection.next_event()) is not None:
            service.handle(connection, event)
        leaving = [datagram for datagram, _ in connection.datagrams_to_send(now)]
        timer = connection.get_timer()
        reply = Reply(leaving, None if timer is None else timer - now, service.requests, restore_ms)
        write(sys.stdout.buffer, msgspec.msgpack.encode(reply))


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


if __name__ == "__main__":
    main()
