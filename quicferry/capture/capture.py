"""Captures on the hosts of an emulation: one recorder per host, on all interfaces that matter.

The recorder (``quicferry.capture.recorder``) catches every packet sent after the ready signal used here: its
own word that it captures *and* the kernel's that its sockets run. All that was sent before it is told to end
is in its file: it knows from the kernel how many packets that are.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from quicferry.capture.recorder import gather, part
from quicferry.errors import CaptureError, last_line
from quicferry.model import NodeKind, Topology
from quicferry.process import Popen, Stillness, TimeoutExpired, children_of, how_ended
from quicferry.slowness import longer

RECORDER = "quicferry.capture.recorder"
READY_S = 30.0
STOP_S = 60.0  # it makes one file of those of its interfaces: some seconds for a gigabyte
POLL_S = 0.003
#: Between edges the image itself is not kept, only that it passed: headers with all their options.
HEADER_BYTES = 128


class Spawn(Protocol):
    """Starts a program in the network namespace of a host, as ``Emulator.spawn`` does."""

    def __call__(
        self, host: str, argv: Sequence[str | Path], *, stderr: int | IO[bytes] | None = None
    ) -> Popen[bytes]: ...


class Emulation(Protocol):
    """What a capture session needs of an emulator."""

    @property
    def topology(self) -> Topology: ...

    @property
    def spawn(self) -> Spawn: ...

    def interface(self, host: str, link_name: str) -> str:
        """The name of the host's interface at a link."""


class Interface(NamedTuple):
    """An interface to capture on, and how many bytes of each frame to keep (0: all)."""

    name: str
    snapshot_bytes: int = 0


class CaptureCounts(NamedTuple):
    """The packet counts that the recorder (and dumpcap) prints at its end."""

    captured: int
    dropped: int


class Capture:
    """The recorder of one host: ``start``, ``wait_ready``, later ``stop``."""

    def __init__(self, spawn: Spawn, host: str, interfaces: Sequence[Interface], path: Path) -> None:
        self.host = host
        self.interfaces = tuple(interfaces)
        self.path = path
        self.log = path.with_suffix(".log")
        self._spawn = spawn
        self._process: Popen[bytes] | None = None
        self._asked_to_end = False
        self._stillness = Stillness()

    def start(self) -> None:
        """Start the recorder. Raises ``Unsupported`` when that cannot be."""
        words = [f"{each.name}:{each.snapshot_bytes}" for each in self.interfaces]
        with self.log.open("wb") as log:
            argv: list[str | Path] = [sys.executable, "-m", RECORDER, self.path, *words]
            self._process = self._spawn(self.host, argv, stderr=log)

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until the kernel hands packets to it. Raises ``CaptureError``."""
        assert self._process is not None, "start comes first"
        deadline = time.monotonic() + longer(timeout_s)
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if "File:" in self._printed() and running_packet_sockets(self._process.pid) >= len(
                self.interfaces
            ):
                return
            time.sleep(POLL_S)
        last = last_line(self._printed())
        self._end(signal.SIGKILL)
        names = ", ".join(interface.name for interface in self.interfaces)
        raise CaptureError(
            f"the capture on {names} of {self.host} did not begin: {last}",
            hint="`quicferry doctor` tries to capture",
        )

    def ended(self) -> CaptureError | None:
        """The error of a capture that has ended by itself or stands still; None while it captures."""
        if self._process is None or self._asked_to_end:
            return None
        status = self._process.poll()
        if status is not None:
            how = how_ended(status)
        elif self._stillness.is_for_good(self._process.pid):
            how = "stands still (SIGSTOP)"
        else:
            return None
        return CaptureError(
            f"the capture of {self.host} {how} in the middle of the run: what crossed there is not known",
            hint=f"see {self.log.name} in captures/",
        )

    def ask_to_end(self) -> None:
        """Ask it to end, and do not wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            # one that stands still hears of it only when it goes on
            self._process.send_signal(signal.SIGCONT)
            self._asked_to_end = True

    def stop(self) -> list[str]:
        """End the capture; returns warnings when it had ended early or dropped packets."""
        if self._process is None:
            return []
        warnings = []
        if self._process.poll() is not None and not self._asked_to_end:
            said = self._printed().strip().rpartition("\n")[2]  # the lines above name files by passing names
            warnings.append(f"the capture of {self.host} ended early: {said[-200:]}")
        else:
            self._end(signal.SIGINT)
        self._process = None
        if any(part(self.path, each.name).exists() for each in self.interfaces):
            self._rescue()
        counts = read_counts(self._printed())
        if counts is None:
            warnings.append(f"the capture of {self.host} did not say how many packets it lost")
        elif counts.dropped:
            warnings.append(f"the capture of {self.host} lost {counts.dropped} packets")
        return warnings

    def _rescue(self) -> None:
        """Keep what a recorder that did not come to its end has written."""
        with contextlib.suppress(OSError, CaptureError):  # it is told already that the capture ended early
            gather(self.path, [each.name for each in self.interfaces])

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        if not self._asked_to_end:
            process.send_signal(number)
        try:
            process.wait(longer(STOP_S))
        except TimeoutExpired:
            process.kill()
            process.wait()

    def _printed(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")
        return ""


class CaptureSession:
    """The captures of a run: the client's and the edges', in ``folder``, one pcapng per host.

    ``warnings`` is filled by ``stop``.
    """

    def __init__(self, emulator: Emulation, folder: Path) -> None:
        self.warnings: list[str] = []
        self._emulator = emulator
        self._folder = folder
        self._captures: list[Capture] = []
        self._between_edges: set[str] = set()
        self._names: dict[str, str] = {}

    def start(self, hosts: Iterable[str]) -> dict[str, str]:
        """Begin capturing on the interfaces of these hosts; returns their names by host. See ``begin``.

        Returns when every capture really runs. Raises ``CaptureError`` and leaves none behind.
        """
        names = self.begin(hosts)
        self.wait_ready()
        return names

    def begin(self, hosts: Iterable[str]) -> dict[str, str]:
        """Start the captures on the interfaces of these hosts, once; returns their names by host.

        A link between two edges is captured at the end that is named first: the image crosses it at
        full speed, and to count it twice would slow down what is being measured. What is sent before
        ``wait_ready`` returns may be missing. Raises ``CaptureError`` and leaves none behind.
        """
        if self._captures:
            return self._names
        self._folder.mkdir(parents=True, exist_ok=True)
        interfaces = {host: self._interfaces(host) for host in dict.fromkeys(hosts)}
        self._names = {host: " ".join(each.name for each in found) for host, found in interfaces.items()}
        try:
            for host, found in interfaces.items():
                capture = Capture(self._emulator.spawn, host, found, self._folder / f"{host}.pcapng")
                self._captures.append(capture)
                capture.start()
        except BaseException:
            self.stop()
            raise
        return self._names

    def wait_ready(self) -> None:
        """Wait until every capture really runs. Raises ``CaptureError`` and leaves none behind."""
        try:
            for capture in self._captures:
                capture.wait_ready()
        except BaseException:
            self.stop()
            raise

    def ended(self) -> CaptureError | None:
        """The error of the first capture that has ended by itself or stands still; None while all run."""
        return next((why for capture in self._captures if (why := capture.ended()) is not None), None)

    def ask_to_end(self) -> None:
        """Let all captures end, with what was sent until now in their files; ``stop`` waits for that."""
        for capture in self._captures:
            capture.ask_to_end()

    def stop(self) -> None:
        """End all captures. May be called again."""
        self.ask_to_end()  # all of them, so that they end at the same time
        while self._captures:
            self.warnings += self._captures.pop().stop()

    def _interfaces(self, host: str) -> list[Interface]:
        topology = self._emulator.topology
        found = []
        for link in topology.links_of(host):
            between_edges = {topology.node(end).kind for end in (link.a, link.b)} == {NodeKind.EDGE}
            if between_edges and link.name in self._between_edges:
                continue
            if between_edges:
                self._between_edges.add(link.name)
            name = self._emulator.interface(host, link.name)
            found.append(Interface(name, HEADER_BYTES if between_edges else 0))
        return found


def read_counts(words: str) -> CaptureCounts | None:
    """Read the counts that a recorder or dumpcap printed at its end; None when they are not there."""
    lines = re.findall(r"Packets received/dropped on interface '[^']*': (\d+)/(\d+)", words)
    if not lines:
        return None
    return CaptureCounts(sum(int(got) for got, _ in lines), sum(int(lost) for _, lost in lines))


def running_packet_sockets(pid: int) -> int:
    """How many packet sockets of a process and its children the kernel feeds now (packet(7)).

    0 when there is no such process any more.
    """
    inodes: set[str] = set()
    table = ""
    try:
        for each in (pid, *children_of(pid)):
            for descriptor in Path(f"/proc/{each}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed in between
                    target = str(descriptor.readlink())
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
            table = Path(f"/proc/{each}/net/packet").read_text()
    except OSError:
        return 0
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(1 for row in rows if len(row) >= 9 and row[5] == "1" and row[8] in inodes)
