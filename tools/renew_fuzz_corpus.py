"""Makes anew the inputs of the fuzzers that hold hand-off data, after a change of its format.

    .venv/bin/python -m tools.renew_fuzz_corpus

The connection is one of the pair tests, frozen in the middle of its traffic. Inputs of ``snapshot-fields``
name a place in that connection by its number, so they are written anew as well: to the same fields.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proof.fuzz.endpoint import configuration
from proof.fuzz.fields import NASTY, places
from proof.fuzz.findings import CORPUS
from quicferry.quic.snapshot import pack_bundle
from tests.pair.test_snapshot_damage import moved

HEADER_BYTES = 48  # magic, version, reserved, length, digest: docs/adr/0005-hand-off-format.md

#: file -> a field of the connection, by its name, and the value that it gets
FIELDS = {
    "no-congestion-window": ("congestion_window", 0),
    "endless-range": ("peer_cid_sequence_numbers", [[0, (1 << 62) - 1]]),
    "unknown-cipher-suite": ("cipher_suite", 255),
}


def main() -> None:
    """Write the corpus of bundle, bundle-payload, snapshot-payload and snapshot-fields."""
    configuration()
    connection = moved()[HEADER_BYTES:]
    bundle = pack_bundle(3, [b"one", b"two"], b"state")
    _write("snapshot-payload/connection", connection)
    _write("bundle/two", bundle)
    _write("bundle-payload/two", bundle[HEADER_BYTES:])
    image: Any = msgspec.msgpack.decode(connection)
    found = list(places(image))
    for file, (field, value) in FIELDS.items():
        at = next((at for at, (_, key) in enumerate(found) if key == field), None)
        if at is None:
            raise SystemExit(f"the image has no field {field!r}; it has {sorted({str(k) for _, k in found})}")
        nasty = next(index for index, each in enumerate(NASTY) if each == value and type(each) is type(value))
        _write(f"snapshot-fields/{file}", at.to_bytes(2, "big") + bytes([nasty]))


def _write(name: str, data: bytes) -> None:
    (CORPUS / name).write_bytes(data)
    print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
