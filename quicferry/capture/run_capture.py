"""Writes a run's own capture: all vantage points in one pcapng with the run's secrets.

``run.pcapng`` opens decrypted in Wireshark with a double click. Its interfaces are named as those of the
hosts (``client-eth0``) and described by the host. It holds traffic secrets, as ``secrets/`` does, and has
mode 0600; they are worth nothing outside the run, whose connections are over.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from quicferry.capture.files.blocks import CaptureReader
from quicferry.capture.files.source import Record
from quicferry.capture.files.writer import PcapngWriter
from quicferry.errors import CaptureError
from quicferry.record import RunPaths

#: Captures of more than that stay apart: who moves a gigabyte does not want to have it twice.
MOST_BYTES = 1 << 30
#: Packets that dumpcap may have written before an earlier one of another interface.
_OUT_OF_ORDER = 4096


class _Seen(NamedTuple):
    """A frame with what sorts it: time first, then the order of the files."""

    t_ns: int
    host: str
    order: int
    record: Record


def write_run_capture(paths: RunPaths) -> Path | None:
    """Write ``run.pcapng``; None when the run has no capture.

    Raises ``CaptureError`` when a capture cannot be read, the captures are too large, or the disk is full.
    """
    captures = sorted(paths.captures.glob("*.pcapng"))
    if not captures:
        return None
    size = sum(capture.stat().st_size for capture in captures)
    if size > MOST_BYTES:
        raise CaptureError(
            f"the captures have {size >> 20} MiB and stay in files of their own",
            hint="`quicferry runs merge` puts them together all the same",
        )
    secrets = paths.keys.read_bytes() if paths.keys.is_file() else b""
    partial = paths.capture.with_suffix(".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as file, ExitStack() as stack:
            readers = {path.stem: stack.enter_context(CaptureReader(path)) for path in captures}
            _write(file, secrets, readers)
        partial.replace(paths.capture)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CaptureError(f"{paths.capture.name} could not be written: {error.strerror}") from error
    return paths.capture


def _write(file: BinaryIO, secrets: bytes, readers: dict[str, CaptureReader]) -> None:
    writer = PcapngWriter(file, "quicferry")
    if secrets:
        writer.secrets(secrets)
    interfaces: dict[tuple[str, int], int] = {}
    streams = [_in_order(host, reader) for host, reader in readers.items()]
    for t_ns, host, _, record in heapq.merge(*streams):
        place = (host, record.interface_index)
        number = interfaces.get(place)
        if number is None:
            name = record.interface or host
            number = interfaces[place] = writer.interface(name, record.link_type, f"host {host}")
        writer.packet(number, t_ns, record.data, record.wire_bytes)


def _in_order(host: str, reader: CaptureReader) -> Iterator[_Seen]:
    waiting: list[_Seen] = []
    for order, record in enumerate(reader):
        seen = _Seen(record.t_ns, host, order, record)
        if len(waiting) < _OUT_OF_ORDER:
            heapq.heappush(waiting, seen)
        else:
            yield heapq.heappushpop(waiting, seen)
    while waiting:
        yield heapq.heappop(waiting)
