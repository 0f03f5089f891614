"""Initial packets of the drafts 22 to 34, of mvfst and of both versions open, and tshark agrees.

They are sealed here with the salts as the drafts print them, so that neither reading judges itself.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from quicferry.capture.quic import Decryptor
from quicferry.capture.quic.versions import name_of
from quicferry.inspection.inspector import tell_all
from quicferry.inspection.sources import Source
from quicferry.process import run
from tests.capture_support import CLIENT, OLD, Sighting, write_pcapng

_OF_22 = "7fbcdb0e7c66bbe9193a96cd21519ebd7a02644a"  # draft-ietf-quic-tls-22 §5.2
_OF_23 = "c3eef712c72ebb5a11a7d2432bb46365bef9f502"
_OF_29 = "afbfec289993d24c9e9786f19c6111e04390a899"
_OF_33 = "38762cf7f55934b34d179ae6a4c80cadccbb7f0a"
SALTS = {0xFF000016: _OF_22, 0xFACEB001: _OF_22, 0xFACEB002: _OF_23, 0xFACEB00E: _OF_23, 1: _OF_33}
SALTS |= dict.fromkeys(range(0xFF000017, 0xFF00001D), _OF_23)
SALTS |= dict.fromkeys(range(0xFF00001D, 0xFF000021), _OF_29)
SALTS |= dict.fromkeys(range(0xFF000021, 0xFF000023), _OF_33)
SALTS[0x6B3343CF] = "0dede3def700a6db819381be6e269dcbf9bd2ed9"


def expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label for up to one block of SHA-256."""
    name = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0\x01"
    return hmac.new(secret, info, hashlib.sha256).digest()[:length]


def client_hello() -> bytes:
    """The CRYPTO stream of a stock client's first flight."""
    client = QuicConnection(configuration=QuicConfiguration(is_client=True, server_name="service.test"))
    client.connect(OLD, now=0.0)
    data = client.datagrams_to_send(0.0)[0][0]
    (packet,) = Decryptor({}).feed(0, "a:1", "b:2", data)
    (frame,) = packet.frames or ()
    return frame.data


def initial(version: int, dcid: bytes, payload: bytes) -> bytes:
    """A client's first packet (RFC 9001 §5)."""
    secret = expand(hmac.new(bytes.fromhex(SALTS[version]), dcid, hashlib.sha256).digest(), b"client in", 32)
    prefix = b"quicv2" if version == 0x6B3343CF else b"quic"
    key, iv, hp = (
        expand(secret, prefix + part, size) for part, size in ((b" key", 16), (b" iv", 12), (b" hp", 16))
    )
    first = 0xD1 if version == 0x6B3343CF else 0xC1  # Initial, a packet number of two bytes
    payload = payload.ljust(1160, b"\0")
    head = bytes([first]) + version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid + b"\x04abcd" + b"\0"
    head += (0x4000 | 2 + len(payload) + 16).to_bytes(2, "big")
    sealed = AESGCM(key).encrypt(iv, payload, head + b"\0\0")
    mask = Cipher(algorithms.AES(hp), modes.ECB()).encryptor().update(sealed[2:18])
    return bytes([head[0] ^ mask[0] & 0x0F]) + head[1:] + mask[1:3] + sealed


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hello = client_hello()
    crypto = b"\x06\0" + (0x4000 | len(hello)).to_bytes(2, "big") + hello
    sightings = [
        Sighting(place, (CLIENT[0], 50_000 + place), OLD, initial(version, bytes([place]) * 8, crypto))
        for place, version in enumerate(SALTS)
    ]
    path = tmp_path_factory.mktemp("drafts") / "a.pcapng"
    write_pcapng(path, sightings)
    return path


def test_every_initial_is_opened_and_its_version_named(capture: Path) -> None:
    packets = [packet for _, told in tell_all(Source(capture)) for packet in told.packets]
    assert [packet.version for packet in packets] == list(SALTS)
    assert all([frame.name for frame in packet.frames or ()] == ["CRYPTO"] for packet in packets)
    assert {"draft-22", "draft-34", "mvfst (draft-22)", "mvfst (draft-27)", "1", "2"} <= set(
        map(name_of, SALTS)
    )


@pytest.mark.needs("tshark")
def test_tshark_opens_them_too(capture: Path) -> None:
    words = [
        "-Y",
        "quic",
        "-T",
        "fields",
        "-e",
        "quic.version",
        "-e",
        "quic.packet_number",
        "-e",
        "quic.crypto.length",
    ]
    lines = run(["tshark", "-n", "-r", capture, *words]).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    assert [int(row[0], 16) for row in rows] == list(SALTS)
    assert {(row[1], bool(row[2])) for row in rows} == {("0", True)}
