"""Probes whether this machine can capture and read captures, by doing it."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from quicferry import process
from quicferry.capture.capture import RECORDER, running_packet_sockets
from quicferry.capture.pcap import read_datagrams
from quicferry.errors import Unsupported
from quicferry.probe import Probe

#: unlike that of any other process: probes of two runs may be under way at once
_MARK = b"quicferry probe " + secrets.token_bytes(8)
_HINT = "run `make setup`: it installs tshark and tcpdump, which bring libpcap"


#: the kernel ends the program with the tool, however that ends
_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def _send_marks(count: int, sink: socket.socket) -> None:
    """Datagrams to ourselves: nothing leaves the machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        for number in range(count):
            source.sendto(_MARK + bytes([number]), sink.getsockname())


def _capture_marks(argv: Callable[[str], list[str | Path]], path: Path, linger_s: float) -> int:
    """Capture on lo, send three marks, stop, and say how many the file holds.

    Only datagrams to a port of ours are looked at: what else crosses this interface is nobody's business.
    ``argv`` makes the command for a filter. A machine that is busy may begin to capture late or write late:
    then it is given more time.
    """
    seen = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        words = argv(f"udp dst port {sink.getsockname()[1]} and dst host 127.0.0.1")
        for patience in (1, 4, 12):
            seen = _try_capture(words, path, sink, settle_s=0.2 * patience, linger_s=linger_s * patience)
            if seen == 3:
                break
    return seen


def _try_capture(
    argv: list[str | Path], path: Path, sink: socket.socket, *, settle_s: float, linger_s: float
) -> int:
    running = process.spawn([*_WITH_US, *argv])
    try:
        deadline = time.monotonic() + 5
        while running_packet_sockets(running.pid) == 0:
            if running.poll() is not None or time.monotonic() > deadline:
                who = "libpcap" if argv[0] == sys.executable else argv[0]
                raise Unsupported(f"{who} does not capture", hint="it needs root, or CAP_NET_RAW")
            time.sleep(0.01)
        time.sleep(settle_s)  # the file and the filter are made after the socket
        _send_marks(3, sink)
        time.sleep(linger_s)
        running.send_signal(signal.SIGINT)
        running.wait(5)
    except process.TimeoutExpired as error:
        raise Unsupported(f"{argv[0]} does not end when it is told to") from error
    finally:
        process.stop(running)
    return sum(1 for datagram in read_datagrams(path) if datagram.payload.startswith(_MARK))


def _tcpdump() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.pcap"
        # -Z root: else it gives up its rights and cannot write there
        argv: list[str | Path] = ["tcpdump", "-i", "lo", "-U", "--immediate-mode", "--nano", "-Z", "root"]
        seen = _capture_marks(lambda only: [*argv, "-w", path, only], path, 0.1)
    if seen != 3:
        raise Unsupported(f"tcpdump caught {seen} of 3 packets on lo", hint=_HINT)
    return "caught 3 of 3 packets on lo"


def _tshark() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.pcapng"
        argv: list[str | Path] = [sys.executable, "-m", RECORDER, path, "lo:0"]
        seen = _capture_marks(lambda only: [*argv, "--filter", only], path, 0.1)
        if seen != 3:
            raise Unsupported(f"libpcap caught {seen} of 3 packets on lo", hint=_HINT)
        read = process.run(
            ["tshark", "-n", "-r", path, "-Y", "udp", "-T", "fields", "-e", "udp.payload"], timeout_s=60
        )
        marks = sum(1 for line in read.stdout.splitlines() if line.strip().startswith(_MARK.hex()))
        if marks != 3:
            raise Unsupported(f"tshark read {marks} of 3 packets", hint=_HINT)
    version = re.search(r"[0-9]+(\.[0-9]+)+", process.run(["tshark", "--version"]).stdout)
    return f"libpcap caught and tshark {version[0] if version else ''} read 3 of 3 packets on lo"


PROBES = [
    Probe(name="tcpdump", needed_for="a second opinion on what crossed an interface", ask=_tcpdump),
    Probe(name="tshark", needed_for="the captures of a run, and Wireshark's view of them", ask=_tshark),
]
