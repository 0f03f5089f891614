"""What is inspected: a run's captures with their hosts, or one file, and the secrets that open them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from quicferry.capture.clock import ClockConversion
from quicferry.capture.files.source import Gap
from quicferry.capture.pcap import Datagram, DatagramReader
from quicferry.capture.quic.keys import KeyLog, add_secrets, read_keylog_into
from quicferry.errors import CaptureError, FerryError
from quicferry.events import Event, read_events
from quicferry.record import Manifest, RunPaths, read_manifest

_OUT_OF_ORDER = 4096  # packets that may have been written before an earlier one of another interface
#: How the interfaces of an emulated host are called; those of other machines belong to one place together.
_OF_HOST = re.compile(r"(?P<host>.+)-eth\d+")


class Sighting(NamedTuple):
    """A datagram and the place that saw it."""

    datagram: Datagram
    vantage: str  # the host of a run; empty when a file has one place only
    place: int  # its number


class Source:
    """The captures to inspect, read anew by each call of ``sightings``, in constant memory.

    ``keylog`` grows while files with embedded secrets are read. ``run_dir`` is set for a run.
    """

    def __init__(self, path: Path, key_files: tuple[Path, ...] = ()) -> None:
        """Find the captures and secrets of a run's directory, or of a file.

        Without ``key_files`` the run's own secrets are taken, for a file in a run as well. Raises
        ``CaptureError`` when there is no capture, or a key log has no secret in it.
        """
        self.path = path
        self.keylog: KeyLog = {}
        self.run_dir = _run_of(path)
        self.captures = _captures(path)
        self.places: list[str] = []
        self._key_gaps: list[Gap] = []
        self._gaps: dict[tuple[str, str], Gap] = {}
        self._embedded_broken: dict[Path, int] = {}
        self.size_bytes = sum(capture.stat().st_size for capture in self.captures)
        self._readers: list[DatagramReader] = []
        for file in key_files or self._own_keys():
            self._add_keys(file)

    def _own_keys(self) -> list[Path]:
        keys = RunPaths(self.run_dir).keys if self.run_dir is not None else None
        return [keys] if keys is not None and keys.is_file() else []

    def _add_keys(self, file: Path) -> None:
        before = len(self.keylog)
        broken = read_keylog_into(self.keylog, file)
        if len(self.keylog) == before and file.stat().st_size:
            raise CaptureError(
                f"{file} has no secret in it",
                hint="a key log has lines such as `CLIENT_TRAFFIC_SECRET_0 RANDOM SECRET`: see SSLKEYLOGFILE",
            )
        if broken:
            reason = f"lines of the key log {file.name} that are cut off or no secrets"
            self._key_gaps.append(Gap(reason, 0, broken))

    @property
    def read_bytes(self) -> int:
        """How many bytes of the files the reading has passed."""
        return sum(reader.reader.read_bytes for reader in self._readers)

    def sightings(self) -> Iterator[Sighting]:
        """Every UDP and TCP packet of all captures, in the order of their stamps.

        Raises ``CaptureError`` when a file is no capture, or when all has link types that are not read.
        """
        self._gaps.clear()
        self._readers = []
        with ExitStack() as stack:
            streams = []
            for capture in self.captures:
                reader = stack.enter_context(DatagramReader(capture, self._embedded(capture)))
                self._readers.append(reader)
                host = capture.stem if len(self.captures) > 1 else ""
                streams.append(_in_order(self._of_file(reader, host)))
            if len(streams) == 1:
                yield from streams[0]
            else:
                merged = heapq.merge(*streams, key=lambda each: each.datagram.t_ns)
                for number, sighting in enumerate(merged, 1):
                    yield sighting._replace(datagram=sighting.datagram._replace(number=number))
            for reader in self._readers:
                for gap in reader.gaps():
                    name = reader.reader.path.name if len(self.captures) > 1 else ""
                    self._gaps[name, gap.reason] = gap
                if not any(sum(each.unreadable.values()) < each.number for each in self._readers):
                    reader.require_some()

    def _of_file(self, reader: DatagramReader, host: str) -> Iterator[Sighting]:
        places: dict[int, tuple[str, int]] = {}
        for datagram in reader:
            place = places.get(datagram.interface_index)
            if place is None:
                name = host
                if not host:
                    match = _OF_HOST.fullmatch(datagram.interface)
                    name = match["host"] if match else ""
                place = places[datagram.interface_index] = (name, self._place(name))
            yield Sighting(datagram, *place)

    def _place(self, name: str) -> int:
        if name not in self.places:
            self.places.append(name)
        return self.places.index(name)

    def _embedded(self, capture: Path) -> Callable[[bytes], None]:
        def take(log: bytes) -> None:
            broken = add_secrets(self.keylog, log)
            if broken:
                reason = "lines of an embedded key log that are cut off or no secrets"
                self._gaps[capture.name, reason] = Gap(reason, 0, broken)

        return take

    def gaps(self) -> list[Gap]:
        """What could not be read of the files and key logs, as far as the reading has come."""
        return self._key_gaps + [
            gap._replace(reason=f"{name}: {gap.reason}") if name else gap
            for (name, _), gap in self._gaps.items()
        ]

    def events(self) -> list[Event]:
        """The events of the run with realtime stamps, as the captures have them; none for a file alone."""
        if self.run_dir is None or self.path.is_file():
            return []
        try:
            manifest = read_manifest(self.run_dir)
            found = sorted(read_events(RunPaths(self.run_dir).events), key=lambda event: event.t_ns)
        except FerryError:
            return []
        return [_on_real_clock(event, manifest, found) for event in found] if found else []


def _in_order(sightings: Iterator[Sighting]) -> Iterator[Sighting]:
    """By time, where several interfaces were written to one file in turns; one alone is in order already."""
    for sighting in sightings:
        if sighting.datagram.interface_index:
            break
        yield sighting
    else:
        return
    waiting = [(sighting.datagram.t_ns, 0, sighting)]
    for number, each in enumerate(sightings, 1):
        entry = (each.datagram.t_ns, number, each)
        if len(waiting) < _OUT_OF_ORDER:
            heapq.heappush(waiting, entry)
        else:
            yield heapq.heappushpop(waiting, entry)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _on_real_clock(event: Event, manifest: Manifest, events: list[Event]) -> Event:
    if manifest.clock is None:
        return event
    start = manifest.clock.realtime_minus_monotonic_start_ns
    # the conversion goes from real to monotonic: its shift at that moment, the other way round
    convert = ClockConversion(manifest.clock, events[0].t_ns, events[-1].t_ns)
    guess = event.t_ns + start
    return Event(
        t_ns=guess + event.t_ns - convert.to_monotonic_ns(guess),
        vantage=event.vantage,
        name=event.name,
        detail=event.detail,
    )


def _run_of(path: Path) -> Path | None:
    """The run that a path is, or is in: by its manifest."""
    candidates = [path] if path.is_dir() else [path.parent, path.parent.parent]
    return next((each for each in candidates if (each / "manifest.json").is_file()), None)


def _captures(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.exists() else _missing(path)
    found = sorted(RunPaths(path).captures.glob("*.pcapng"))
    if found:
        return found
    whole = RunPaths(path).capture
    if whole.is_file():
        return [whole]
    raise CaptureError(
        f"{path} has no captures", hint="give a run's ID or directory, or a pcap or pcapng file"
    )


def _missing(path: Path) -> list[Path]:
    raise CaptureError(
        f"there is no file {path}", hint="give a run's ID or directory, or a pcap or pcapng file"
    )
