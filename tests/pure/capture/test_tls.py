"""TLS over TCP in a capture: every byte counts once, at the segment that made it readable."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import IP, in4_chksum, in4_pseudoheader
from scapy.utils import checksum

from quicferry.analysis.timeline import arrivals, tcp_round_trip
from quicferry.capture.pcap import TCP, Datagram
from quicferry.capture.quic.keys import KeyLog, expand_label, read_keylog
from quicferry.capture.tcp_table import tabulate_tcp
from quicferry.capture.tls import ACK, FIN, RST, SYN, RecordItem, StreamReassembly, TlsSecrets, TlsStream
from quicferry.migration.rpc.credentials import Authority

CLIENT, SERVER = "10.0.0.2:40000", "10.0.1.2:4433"
FIRST = 0xFFFFFF00  # the sequence numbers wrap around on the way


class Talk:
    """A real TLS 1.3 connection in memory, laid out as TCP segments with a stamp each."""

    def __init__(self, folder: Path) -> None:
        tls = Authority().issue("service.edge.test").save(folder, "server")
        self.keys = folder / "keys.log"
        client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client.load_verify_locations(tls.authority)
        client.keylog_filename = str(self.keys)
        server.load_cert_chain(tls.certificate, tls.key)
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._to_client, self._to_server, server_hostname="service.edge.test")
        self.server = server.wrap_bio(self._to_server, self._to_client, server_side=True)
        self.segments: list[Datagram] = []
        self._next = {True: FIRST, False: FIRST}
        self._t_ns = 0
        self.flag(True, SYN)
        self.flag(False, SYN | ACK)
        for _ in range(2):
            for end in (self.client, self.server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                self.flush(end is self.client)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.read(1)  # takes the tickets in

    def flag(self, to_server: bool, flags: int) -> None:
        self._add(to_server, flags, b"")
        if flags & SYN:
            self._next[to_server] = (self._next[to_server] + 1) & 0xFFFFFFFF

    def flush(self, to_server: bool, piece: int = 1400) -> None:
        """What one end has written leaves in segments; the other end has read it already."""
        bio = self._to_server if to_server else self._to_client
        data = bio.read()
        bio.write(data)
        while data:
            self._add(to_server, ACK, data[:piece])
            self._next[to_server] = (self._next[to_server] + len(data[:piece])) & 0xFFFFFFFF
            data = data[piece:]

    def _add(self, to_server: bool, flags: int, payload: bytes) -> None:
        header = bytes(4) + self._next[to_server].to_bytes(4, "big") + bytes(4) + bytes([5 << 4, flags])
        ends = (CLIENT, SERVER) if to_server else (SERVER, CLIENT)
        self._t_ns += 1_000_000
        self.segments.append(Datagram(self._t_ns, TCP, *ends, header + bytes(6) + payload, 60, "eth0"))

    def say(self, to_server: bool, data: bytes, piece: int = 1400) -> None:
        (self.client if to_server else self.server).write(data)
        self.flush(to_server, piece)
        try:
            (self.server if to_server else self.client).read(1 << 20)
        except ssl.SSLWantReadError:
            pass

    def table(self, segments: list[Datagram] | None = None):
        return tabulate_tcp(self.segments if segments is None else segments, read_keylog(self.keys), 4433)


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path)


def frames(table, direction: str) -> list[str]:
    return table.frame.filter(table.frame["direction"] == direction)["frame"].to_list()


def test_a_handshake_is_named_and_brings_nothing_useful(talk: Talk) -> None:
    table = talk.table()
    assert table.undecrypted == 0
    assert frames(table, "to-server") == ["SYN", "CLIENT_HELLO", "FINISHED"]
    assert frames(table, "to-client") == [
        *("SYN-ACK", "SERVER_HELLO", "ENCRYPTED_EXTENSIONS", "CERTIFICATE", "CERTIFICATE_VERIFY"),
        *("FINISHED", "NEW_SESSION_TICKET", "NEW_SESSION_TICKET"),
    ]
    assert arrivals(table.frame).is_empty()
    trip = tcp_round_trip(table.frame, SERVER)
    assert trip is not None
    assert (trip.median_ns, trip.samples) == (1_000_000, 1)


def test_application_data_counts_at_the_segment_that_completes_its_record(talk: Talk) -> None:
    talk.say(True, b"GET / HTTP/1.1\r\n\r\n")
    begin = len(talk.segments)
    talk.say(False, bytes(3000), piece=1400)
    useful = arrivals(talk.table().frame)
    assert useful.rows() == [(talk.segments[begin + 2].t_ns, SERVER, 3000)]
    assert talk.segments[-1].t_ns == talk.segments[begin + 2].t_ns


def test_repeats_count_nothing_and_a_hole_holds_back_what_follows(talk: Talk) -> None:
    head = list(talk.segments)
    talk.say(False, b"a" * 100)
    talk.say(False, b"b" * 200)
    first, second = talk.segments[-2:]
    late = first._replace(t_ns=second.t_ns + 5_000_000)
    useful = arrivals(talk.table([*head, second, late, first._replace(t_ns=late.t_ns + 1)]).frame)
    # the second record came first, but could not be read before the first was there
    assert useful["new_bytes"].to_list() == [100, 200]
    assert useful["t_ns"].to_list() == [late.t_ns, late.t_ns]
    again = talk.table([*talk.segments, first._replace(t_ns=late.t_ns)])
    assert arrivals(again.frame)["new_bytes"].sum() == 300


def checksummed(segment: Datagram, *, on_a_wire: bool = True) -> Datagram:
    """The segment with ports and checksum, by scapy; off a wire with the sum of the pseudo header only."""
    host, port = segment.source.split(":")
    to_host, to_port = segment.destination.split(":")
    ports = int(port).to_bytes(2, "big") + int(to_port).to_bytes(2, "big")
    begin, end = ports + segment.payload[4:16], segment.payload[18:]
    ip = IP(src=host, dst=to_host)
    if on_a_wire:
        value = in4_chksum(6, ip, begin + bytes(2) + end)
    else:
        value = checksum(in4_pseudoheader(6, ip, len(segment.payload))) ^ 0xFFFF
    return segment._replace(payload=begin + value.to_bytes(2, "big") + end)


def test_a_segment_that_was_damaged_is_left_to_its_repetition(talk: Talk) -> None:
    """Its receiver throws it away; a reader that took its bytes opened no record any more."""
    talk.say(False, b"a" * 3000)
    whole = [checksummed(segment) for segment in talk.segments]
    expected = talk.table(whole).frame
    for at in (-1, -700, 15, 5):  # payload, its middle, the window, the sequence number
        data = bytearray(whole[-2].payload)
        data[at] ^= 0x10
        damaged = whole[-2]._replace(payload=bytes(data), t_ns=whole[-2].t_ns - 1)
        again = talk.table([*whole[:-2], damaged, *whole[-2:]])
        assert again.frame.equals(expected)
        assert again.undecrypted == 0
    unfinished = [checksummed(segment, on_a_wire=False) for segment in talk.segments]
    assert talk.table(unfinished).frame.equals(expected)


def test_without_secrets_nothing_opens_and_it_is_counted(talk: Talk) -> None:
    talk.say(False, b"a" * 100)
    table = tabulate_tcp(talk.segments, {}, 4433)
    assert table.undecrypted >= 3  # the server's flight, the client's Finished, the data
    assert arrivals(table.frame).is_empty()


def test_flags_and_strangers(talk: Talk) -> None:
    talk.flag(False, FIN | ACK)
    talk.flag(True, RST)
    other = talk.segments[0]._replace(source="10.0.0.2:1", destination="10.0.1.2:80")
    cut = talk.segments[0]._replace(payload=b"\0" * 10)
    table = talk.table([*talk.segments, other, cut])
    assert table.segments == len(talk.segments)
    assert frames(table, "to-client")[-1] == "FIN"
    assert frames(table, "to-server")[-1] == "RST"


def test_the_same_ports_again_are_another_connection(talk: Talk, tmp_path: Path) -> None:
    fresh = Talk(tmp_path / "again")
    later = [s._replace(t_ns=s.t_ns + 1_000_000_000) for s in fresh.segments]
    moved = [s._replace(payload=s.payload[:4] + b"\1" + s.payload[5:]) for s in later]
    keys = read_keylog(talk.keys) | read_keylog(fresh.keys)
    table = tabulate_tcp([*talk.segments, *moved], keys, 4433)
    assert table.frame["connection"].unique().sort().to_list() == [0, 1]
    assert table.undecrypted == 0


def test_bytes_are_put_in_order_across_the_wrap() -> None:
    order = StreamReassembly()
    order.begin(0xFFFFFFFE)
    assert order.add(order.relative(0xFFFFFFFE), b"ab") == b"ab"
    assert order.add(order.relative(2), b"ef") == b""
    assert order.relative(0) == 2
    assert order.add(order.relative(0), b"cd") == b"cdef"
    assert order.add(order.relative(1), b"dEfg") == b"g"  # overlaps: only what is new


def sealed(secret: bytes, number: int, content: bytes, kind: int) -> bytes:
    """A TLS 1.3 record made by hand (RFC 8446 §5.2)."""
    key, iv = expand_label("sha256", secret, b"key", 16), expand_label("sha256", secret, b"iv", 12)
    plain = content + bytes([kind]) + bytes(7)  # padded
    header = b"\x17\x03\x03" + (len(plain) + 16).to_bytes(2, "big")
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    return header + AESGCM(key).encrypt(nonce, plain, header)


def test_keys_change_with_a_key_update() -> None:
    secret = bytes(range(32))
    keylog: KeyLog = {
        bytes(32): {"SERVER_HANDSHAKE_TRAFFIC_SECRET": secret, "SERVER_TRAFFIC_SECRET_0": secret}
    }
    secrets = TlsSecrets(keylog)
    secrets.random, secrets.suite = bytes(32), 0x1301
    stream = TlsStream("SERVER", secrets)
    updated = expand_label("sha256", secret, b"traffic upd", 32)
    finished = bytes([20, 0, 0, 32]) + bytes(32)
    records = [
        sealed(secret, 0, finished, 22),
        sealed(secret, 0, b"one", 23),  # the numbers begin anew with each key
        sealed(secret, 1, bytes([24, 0, 0, 1, 0]), 22),
        sealed(updated, 0, b"three", 23),
    ]
    assert stream.feed(b"".join(records)) == [
        RecordItem("FINISHED", 36),
        RecordItem("APPLICATION_DATA", 3, 0),
        RecordItem("KEY_UPDATE", 5),
        RecordItem("APPLICATION_DATA", 5, 3),
    ]
    assert stream.undecrypted == 0
    assert stream.feed(sealed(secret, 9, b"old keys", 23)) == []
    assert stream.undecrypted == 1
