"""The cable process: ``python -m quicferry.emulation.links.cable --config FILE``.

Prints one line that begins with ``ready`` when all wire ends are open. SIGUSR1 writes the counters,
SIGTERM and SIGINT end it, and so does the end of its parent. Exit codes are those of
``quicferry.errors``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from quicferry.emulation.links.cable import native
from quicferry.emulation.links.cable.config import CableConfig
from quicferry.emulation.links.cable.relay import Relay
from quicferry.errors import FerryError, InvalidInput

PR_SET_TIMERSLACK = 29
FIFO_PRIORITY = 20


def load_ahead() -> None:
    """What a fork server may load for all cables that are forked from it."""
    if native.found() is not None:
        native.load()


def become_punctual() -> str:
    """Ask for everything that lets a process act on time. Returns the scheduler that it got.

    SCHED_FIFO matters most: without it a busy machine delays a frame by a whole scheduler slice.
    The default timer slack would add 50 us to each sleep. The collector of cyclic garbage would stop
    the loop for milliseconds; the loop makes no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except PermissionError:
        return "other"
    return "fifo"


def read_config(path: Path) -> CableConfig:
    """Raises ``InvalidInput`` when the file is missing or not a configuration."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CableConfig)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InvalidInput(f"{path}: {error}", hint="the link layer writes this file") from error


def write_stats(relay: Relay, path: Path, *, scheduler: str, final: bool) -> None:
    """Write the counters so that a reader sees either the old file or all of the new one."""
    fresh = path.with_name(path.name + ".partial")
    fresh.write_bytes(msgspec.json.encode(relay.stats(scheduler=scheduler, final=final)))
    fresh.replace(path)


def serve(config: CableConfig) -> None:
    """Carry frames until a signal or the end of the parent."""
    relay = Relay(config)
    stats_path = Path(config.stats_path)
    scheduler = become_punctual()
    inbox, outbox = socket.socketpair()
    inbox.setblocking(False)
    outbox.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)

    def react_to_signals() -> None:
        numbers = set(inbox.recv(4096))
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            relay.stop()
        if signal.SIGUSR2 in numbers:
            relay.begin()
        if signal.SIGUSR1 in numbers:
            write_stats(relay, stats_path, scheduler=scheduler, final=False)

    relay.watch(inbox.fileno(), react_to_signals)
    if config.parent_pid is not None:
        # Not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends.
        if os.getppid() != config.parent_pid:
            return
        relay.watch(os.pidfd_open(config.parent_pid), relay.stop)
    sys.stdout.write(f"ready: {len(config.links)} links, scheduler {scheduler}\n")
    sys.stdout.flush()
    try:
        relay.run()
    finally:
        write_stats(relay, stats_path, scheduler=scheduler, final=True)
        relay.close()


def main() -> int:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(
        prog="quicferry.emulation.links.cable", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON file: see config.CableConfig")
    arguments = parser.parse_args()
    try:
        serve(read_config(arguments.config))
    except FerryError as error:
        sys.stderr.write(f"cable: {error}\n")
        return error.exit_code
    except PermissionError as error:
        sys.stderr.write(f"cable: {error}: it needs CAP_NET_RAW\n")
        return 127
    return 0


if __name__ == "__main__":
    sys.exit(main())
