"""The program that captures on a host, with libpcap: ``python -m quicferry.capture.recorder``.

    python -m quicferry.capture.recorder FILE.pcapng INTERFACE:BYTES… [--filter EXPRESSION]

BYTES of each frame are kept; 0: all. It says ``File: FILE.pcapng`` on stderr once the kernel feeds all its
sockets, ends by SIGINT or SIGTERM, and then says how many frames it received and dropped, as dumpcap does.

Frames cross from the kernel into a file within libpcap: ``pcap_dispatch`` is given ``pcap_dump`` itself, so
that no Python is run for a frame. The kernel hands over a block of frames when it is full or ``BLOCK_MS``
old. At the end ``pcap_stats`` tells how many frames the kernel had put into its blocks: the recorder reads
until it has as many. Nothing is waited for that is not there, and nothing is left behind. dumpcap (4.0) and
tcpdump have a block time of 250 ms and 1 s, and drop the last block unless somebody waits for longer.

libpcap writes a file of its own for each interface (``FILE.INTERFACE.pcap``). At the end they become one
pcapng with the interfaces' names, by ``gather``; until then that is empty.
"""

from __future__ import annotations

import argparse
import ctypes
import glob
import heapq
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from quicferry.capture.files.blocks import CaptureReader
from quicferry.capture.files.source import Record
from quicferry.capture.files.writer import PcapngWriter
from quicferry.errors import CaptureError

BLOCK_MS = 25
BUFFER_BYTES = 32 << 20
LAST_FRAMES_S = 0.5  # for the blocks that are still filling; they are handed over within two of ``BLOCK_MS``
LONGEST_FRAME_BYTES = 262_144  # libpcap's own limit
_SONAMES = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, and that of all others
_ERROR_BYTES = 256  # PCAP_ERRBUF_SIZE
_NANOSECONDS = 1  # PCAP_TSTAMP_PRECISION_NANO
_ALL = -1
_NETMASK_UNKNOWN = 0xFFFF_FFFF
_PCAP_HEADER = struct.Struct("=20xI")  # draft-ietf-opsawg-pcap; libpcap writes in the machine's byte order
_ETHERNET = 1
_PART = ".pcap"  # what the file of one interface ends in


class _Statistics(ctypes.Structure):
    """struct pcap_stat"""

    _fields_ = (("received", ctypes.c_uint), ("dropped", ctypes.c_uint), ("interface", ctypes.c_uint))


class _FilterProgram(ctypes.Structure):
    """struct bpf_program"""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class Counts(NamedTuple):
    """What the kernel says of an interface: frames put into blocks, and frames for which was no room."""

    received: int
    dropped: int


def _load() -> Any:
    """libpcap, with the types of its functions. Raises ``CaptureError`` when it is not installed."""
    for name in _SONAMES:
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise CaptureError("libpcap is not installed", hint="run `make setup`: tcpdump and tshark bring it")
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for function, result, arguments in (
        ("pcap_create", pointer, (text, text)),
        ("pcap_set_snaplen", number, (pointer, number)),
        ("pcap_set_timeout", number, (pointer, number)),
        ("pcap_set_buffer_size", number, (pointer, number)),
        ("pcap_set_tstamp_precision", number, (pointer, number)),
        ("pcap_activate", number, (pointer,)),
        ("pcap_geterr", text, (pointer,)),
        ("pcap_statustostr", text, (number,)),
        ("pcap_setnonblock", number, (pointer, number, text)),
        ("pcap_get_selectable_fd", number, (pointer,)),
        ("pcap_compile", number, (pointer, pointer, text, number, ctypes.c_uint)),
        ("pcap_setfilter", number, (pointer, pointer)),
        ("pcap_freecode", None, (pointer,)),
        ("pcap_dump_open", pointer, (pointer, text)),
        ("pcap_dump_flush", number, (pointer,)),
        ("pcap_dump_close", None, (pointer,)),
        ("pcap_dispatch", number, (pointer, number, pointer, pointer)),
        ("pcap_stats", number, (pointer, pointer)),
        ("pcap_close", None, (pointer,)),
    ):
        made = getattr(library, function)
        made.restype, made.argtypes = result, arguments
    return library


class Live:
    """A capture on one interface into one file. Raises ``CaptureError`` when libpcap refuses."""

    def __init__(self, library: Any, interface: str, kept_bytes: int, path: Path, only: str = "") -> None:
        self.interface = interface
        self._library = library
        self._written = 0
        self._write = ctypes.cast(library.pcap_dump, ctypes.c_void_p)
        said = ctypes.create_string_buffer(_ERROR_BYTES)
        self._handle = library.pcap_create(interface.encode(), said)
        if not self._handle:
            raise CaptureError(f"{interface}: {said.value.decode(errors='replace')}")
        library.pcap_set_snaplen(self._handle, kept_bytes or LONGEST_FRAME_BYTES)
        library.pcap_set_timeout(self._handle, BLOCK_MS)
        library.pcap_set_buffer_size(self._handle, BUFFER_BYTES)
        library.pcap_set_tstamp_precision(self._handle, _NANOSECONDS)
        status = library.pcap_activate(self._handle)
        if status < 0:  # above 0 are warnings
            raise CaptureError(f"{interface}: {library.pcap_statustostr(status).decode()}, {self._error()}")
        if only:
            self._filter(only)
        if library.pcap_setnonblock(self._handle, 1, said) < 0:
            raise CaptureError(f"{interface}: {said.value.decode(errors='replace')}")
        self._file = library.pcap_dump_open(self._handle, os.fsencode(path))
        if not self._file:
            raise CaptureError(self._error())
        self.descriptor = int(library.pcap_get_selectable_fd(self._handle))

    def _error(self) -> str:
        return str(self._library.pcap_geterr(self._handle).decode(errors="replace"))

    def _filter(self, only: str) -> None:
        program = _FilterProgram()
        at = ctypes.byref(program)
        if self._library.pcap_compile(self._handle, at, only.encode(), 1, _NETMASK_UNKNOWN) < 0:
            raise CaptureError(f"{self.interface}: {self._error()}")
        if self._library.pcap_setfilter(self._handle, at) < 0:
            raise CaptureError(f"{self.interface}: {self._error()}")
        self._library.pcap_freecode(at)

    def write_all(self) -> None:
        """Write the frames that the kernel has handed over. Raises ``CaptureError``, as on a full disk."""
        count = self._library.pcap_dispatch(self._handle, _ALL, self._write, self._file)
        if count < 0:
            raise CaptureError(f"{self.interface}: {self._error()}")
        self._written += count
        if count and self._library.pcap_dump_flush(self._file) < 0:
            raise CaptureError(f"the frames of {self.interface} could not be written")

    def counts(self) -> Counts:
        """The kernel's counts until now."""
        told = _Statistics()
        if self._library.pcap_stats(self._handle, ctypes.byref(told)) < 0:
            raise CaptureError(f"{self.interface}: {self._error()}")
        return Counts(told.received, told.dropped)

    def has_written(self, counts: Counts) -> bool:
        """Whether all frames are written that the kernel had counted then."""
        return self._written >= counts.received - counts.dropped

    def close(self) -> None:
        """Close file and socket."""
        self._library.pcap_dump_close(self._file)
        self._library.pcap_close(self._handle)


def part(path: Path, interface: str) -> Path:
    """The file of one interface, before ``gather``."""
    return path.with_name(f"{path.stem}.{interface}{_PART}")


def gather(path: Path, interfaces: Sequence[str]) -> None:
    """Make one pcapng of the interfaces' files, in order of time, and remove them.

    Of a recorder that was killed, what had been written until then. Raises ``CaptureError`` or ``OSError``.
    """
    partial = path.with_name(f"{path.name}.partial")
    parts = [part(path, interface) for interface in interfaces]
    with partial.open("wb", buffering=1 << 20) as file, ExitStack() as stack:
        writer = PcapngWriter(file, "quicferry")
        for name, each in zip(interfaces, parts, strict=True):
            writer.interface(name, _link_type(each))
        streams = [
            _numbered(number, stack.enter_context(CaptureReader(each)))
            for number, each in enumerate(parts)
            if each.is_file() and each.stat().st_size
        ]
        packet = writer.packet
        for t_ns, number, _, record in heapq.merge(*streams):
            packet(number, t_ns, record.data, record.wire_bytes)
    partial.replace(path)
    for each in parts:
        each.unlink(missing_ok=True)


def gather_left(folder: Path) -> None:
    """``gather`` what recorders in this folder have left that did not come to their end. Raises as that."""
    for path in sorted(folder.glob("*.pcapng")):
        begin = f"{path.stem}."
        left = [each.name for each in folder.glob(f"{glob.escape(begin)}*{_PART}")]
        if left:
            gather(path, sorted(name.removeprefix(begin).removesuffix(_PART) for name in left))


def _link_type(path: Path) -> int:
    """The link type of a pcap file; Ethernet when there is none."""
    try:
        with path.open("rb") as file:
            head = file.read(_PCAP_HEADER.size)
        return int(_PCAP_HEADER.unpack(head)[-1])
    except (OSError, struct.error):
        return _ETHERNET


def _numbered(number: int, reader: CaptureReader) -> Iterator[tuple[int, int, int, Record]]:
    for order, record in enumerate(reader):
        yield record.t_ns, number, order, record


def record(lives: Sequence[Live], until: Callable[[], bool], wake: socket.socket) -> list[Counts]:
    """Write what comes until ``until`` says so, then what the kernel has until then; returns its counts.

    ``wake`` is readable when ``until`` is to be asked.
    """
    by_descriptor = {live.descriptor: live for live in lives}
    with select.epoll() as waiting:
        waiting.register(wake.fileno(), select.EPOLLIN)
        for descriptor in by_descriptor:
            waiting.register(descriptor, select.EPOLLIN)

        def wait(timeout_s: float | None) -> None:
            for descriptor, _ in waiting.poll(timeout_s):
                live = by_descriptor.get(descriptor)
                if live is not None:
                    live.write_all()
                else:
                    wake.recv(4096)

        while not until():
            wait(None)
        last = [live.counts() for live in lives]
        deadline_s = time.monotonic() + LAST_FRAMES_S
        while not all(live.has_written(counts) for live, counts in zip(lives, last, strict=True)):
            if time.monotonic() > deadline_s:
                break  # on the loopback interface libpcap leaves out each second frame that the kernel counts
            wait(BLOCK_MS / 1e3)
    return [live.counts() for live in lives]


def serve(path: Path, interfaces: Sequence[tuple[str, int]], only: str) -> None:
    """Capture until a signal. Raises ``CaptureError``."""
    os.umask(0o077)  # captures are as private as what crosses
    library = _load()
    asked: list[int] = []
    inbox, outbox = socket.socketpair()
    for end in (inbox, outbox):
        end.setblocking(False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    lives = [Live(library, name, kept_bytes, part(path, name), only) for name, kept_bytes in interfaces]
    with path.open("wb") as file:  # until the end it has none of the frames: who looks sees that there is one
        PcapngWriter(file, "quicferry")
    sys.stderr.write(f"File: {path}\n")
    sys.stderr.flush()
    counts = record(lives, lambda: bool(asked), inbox)
    for live in lives:
        live.close()
    gather(path, [name for name, _ in interfaces])
    for (name, _), each in zip(interfaces, counts, strict=True):
        kept = each.received - each.dropped
        sys.stderr.write(f"Packets received/dropped on interface '{name}': {kept}/{each.dropped}\n")
    signal.set_wakeup_fd(-1)
    inbox.close()
    outbox.close()


def _interface(words: str) -> tuple[str, int]:
    name, _, kept_bytes = words.rpartition(":")
    return name, int(kept_bytes)


def main() -> None:
    """Capture until a signal; errors go to stderr."""
    parser = argparse.ArgumentParser(prog="quicferry.capture.recorder", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="the pcapng file to write")
    parser.add_argument("interfaces", nargs="+", type=_interface, metavar="INTERFACE:BYTES")
    parser.add_argument("--filter", default="", help="a filter expression (pcap-filter(7))")
    arguments = parser.parse_args()
    try:
        serve(arguments.file, arguments.interfaces, arguments.filter)
    except (CaptureError, OSError) as error:
        sys.stderr.write(f"recorder: {error}\n")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
