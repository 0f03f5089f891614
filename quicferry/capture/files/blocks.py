"""Opens a capture file of either format, plain or packed by gzip or zstd, and reads its frames."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import cast

from quicferry.capture.files import pcap_format, pcapng_format
from quicferry.capture.files.source import Gap, Record, Window
from quicferry.errors import CaptureError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: what other programs write, by its first bytes, to say what a file is instead of a capture
_OTHER_FORMATS: dict[bytes, str] = {
    b"snoop\0\0\0": "a snoop capture: `editcap -F pcapng` converts it",
    b"RTSS": "a Network Monitor capture: `editcap -F pcapng` converts it",
    b"GMBU": "a Network Monitor capture: `editcap -F pcapng` converts it",
    b"XCP\0": "a NetXray capture: `editcap -F pcapng` converts it",
    b"\x54\x52\x00\x64": "an iptrace capture: `editcap -F pcapng` converts it",
    b"btsnoop\0": "a Bluetooth capture, which holds no IP packets",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x1e{": "a qlog file, not a capture",
}


class CaptureReader:
    """One capture file, read from its beginning to its end in constant memory.

    A context manager. ``gaps`` are what could not be read; ``key_logs`` what was embedded, as far as the
    reading has come. Raises ``CaptureError`` when the file is missing or is no capture.
    """

    def __init__(self, path: Path, on_secrets: Callable[[bytes], None] | None = None) -> None:
        self.path = path
        self.gaps: list[Gap] = []
        self._on_secrets = on_secrets or (lambda _log: None)
        self._stack = contextlib.ExitStack()
        try:
            self._raw = self._stack.enter_context(path.open("rb"))
            self.size_bytes = path.stat().st_size
            self._window = Window(*self._unpacked())
        except OSError as error:
            self._stack.close()
            raise CaptureError(
                f"{path} is no readable capture: {_words(error)}",
                hint="give a pcap or pcapng file, or a run",
            ) from error
        self._window.need(24)
        head = self._window.data[:24]
        self._order = pcap_format.byte_order(head)
        if self._order is None and pcapng_format.byte_order(head) is None:
            self._stack.close()
            wrong = self._window.error
            raise CaptureError(
                f"{path} is no readable capture: {_words(wrong) if wrong else _what_it_is(head)}",
                hint="give a pcap or pcapng file, as tcpdump, dumpcap and Wireshark write them",
            )

    def __enter__(self) -> CaptureReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _unpacked(self) -> tuple[BufferedIOBase, tuple[type[Exception], ...]]:
        """The file without its packing, and the errors that reading it may raise."""
        magic = self._raw.read(4)
        self._raw.seek(0)
        if magic[:2] == _GZIP:
            unpacked = self._stack.enter_context(gzip.GzipFile(fileobj=self._raw))
            return unpacked, (OSError, EOFError, zlib.error)
        if magic == _ZSTD:
            import zstandard

            reader = zstandard.ZstdDecompressor().stream_reader(self._raw, closefd=False)
            opened = self._stack.enter_context(reader)
            return cast("BufferedIOBase", opened), (OSError, zstandard.ZstdError)
        return self._raw, (OSError,)

    @property
    def read_bytes(self) -> int:
        """How far in the file the reading has come, for a progress bar."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[Record]:
        """The frames; what ends the reading early is one of ``gaps`` then."""
        tell = self.gaps.append
        if self._order is not None:
            yield from pcap_format.read_pcap(self._window, self._order, tell)
        else:
            yield from pcapng_format.PcapngReader(self._window, tell, self._on_secrets).records()
        if self._window.error is not None:
            tell(Gap(f"the file cannot be read any further: {_words(self._window.error)}", 0))


def _words(error: Exception) -> str:
    return (
        error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    ) or "it ends early"


def _what_it_is(head: bytes) -> str:
    if not head:
        return "it is empty"
    for magic, words in _OTHER_FORMATS.items():
        if head.startswith(magic):
            return f"it is {words}"
    return f"it begins with {head[:8].hex(' ')}, which no capture does"
