"""Starts the cable process, asks it for its counters, ends it."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from pathlib import Path

import msgspec

from quicferry import process
from quicferry.emulation.links.cable import native
from quicferry.emulation.links.cable.config import CableConfig, CableLink, CableStats
from quicferry.errors import EmulationError
from quicferry.fork_server import ForkServer
from quicferry.slowness import longer

PROGRAM = "quicferry.emulation.links.cable.__main__"
READY_WITHIN_S = 20.0
ANSWER_WITHIN_S = 5.0


class CableProcess:
    """The one cable process of a run. It works in the network namespace of the thread that starts it.

    Its files in ``work_dir``: ``cable.json`` (configuration), ``cable-stats.json`` (counters) and
    ``cable.log`` (what it says on stderr). With ``forks`` that have loaded it, it is forked; then it works in
    the namespace of this process.
    """

    def __init__(
        self, links: tuple[CableLink, ...], *, seed: int, work_dir: Path, forks: ForkServer | None = None
    ) -> None:
        self._forks = forks if forks is not None and PROGRAM in forks.modules else None
        self._config_path = work_dir / "cable.json"
        self._stats_path = work_dir / "cable-stats.json"
        self._log_path = work_dir / "cable.log"
        self._links = links
        self._seed = seed
        self._process: process.Popen[bytes] | None = None
        self._stillness = process.Stillness()

    def start(self) -> None:
        """Start it and wait until it carries frames. Raises ``EmulationError``."""
        native.prepared()
        config = CableConfig(
            links=self._links, seed=self._seed, stats_path=str(self._stats_path), parent_pid=os.getpid()
        )
        self._config_path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        arguments = ["--config", str(self._config_path)]
        with self._log_path.open("wb") as log:
            if self._forks is not None:
                self._process = self._forks.spawn(
                    PROGRAM,
                    arguments,
                    namespaces_of=os.getpid(),
                    env=os.environ,
                    stdout=process.PIPE,
                    stderr=log,
                )
            else:
                self._process = process.spawn(
                    [sys.executable, "-m", PROGRAM, *arguments], stdout=process.PIPE, stderr=log
                )
        assert self._process.stdout is not None
        # with a thousand nodes its number may be beyond what select() can wait for
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            readable = waiting.select(longer(READY_WITHIN_S))
        line = self._process.stdout.readline().decode() if readable else ""
        if not line.startswith("ready"):
            process.stop(self._process)
            self._process.stdout.close()
            said = self._log_path.read_text(errors="replace").strip().splitlines()
            raise EmulationError(
                f"the cable did not start: {said[-1] if said else 'it said nothing'}",
                hint=f"see {self._log_path}",
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def ended(self) -> EmulationError | None:
        """The error of a cable that has ended by itself or stands still; None while it carries frames."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is not None:
            how = process.how_ended(status)
        elif self._stillness.is_for_good(self._process.pid):
            how = "stands still (SIGSTOP)"
        else:
            return None
        return EmulationError(
            f"the cable {how} in the middle of the run: no frame crosses a shaped link any more",
            hint=f"see {self._log_path.name} in links/",
        )

    def stats(self) -> CableStats:
        """Its counters as of now, or the last ones when it has ended.

        Raises ``EmulationError`` when it died without a word or does not answer.
        """
        assert self._process is not None
        if self._process.poll() is None:
            self._stats_path.unlink(missing_ok=True)
            self._process.send_signal(signal.SIGUSR1)
            deadline_s = time.monotonic() + ANSWER_WITHIN_S
            while not self._stats_path.exists() and self._process.poll() is None:
                if time.monotonic() > deadline_s or self._stillness.is_for_good(self._process.pid):
                    raise EmulationError("the cable does not answer", hint=f"see {self._log_path}")
                time.sleep(0.002)
        if not self._stats_path.exists():
            raise EmulationError(
                f"the cable ended with status {self._process.returncode} and left no counters",
                hint=f"see {self._log_path}",
            )
        return msgspec.json.decode(self._stats_path.read_bytes(), type=CableStats)

    def begin(self) -> None:
        """Tell it that the load begins: outages and traces of rates count from now."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR2)

    def ask_to_end(self) -> None:
        """Let it carry no frame any more; returns when its last counters are written.

        To close its sockets takes it a tenth of a second more, as the kernel waits for each; ``stop`` waits
        for that. Raises ``EmulationError`` when it does not answer.
        """
        assert self._process is not None
        if self._process.poll() is None:
            self._stats_path.unlink(missing_ok=True)
            self._process.terminate()
            deadline_s = time.monotonic() + ANSWER_WITHIN_S
            while not self._stats_path.exists() and self._process.poll() is None:
                if time.monotonic() > deadline_s:
                    raise EmulationError("the cable does not end", hint=f"see {self._log_path}")
                time.sleep(0.002)

    def stop(self) -> None:
        """End it; its last counters stay readable by ``stats``."""
        if self._process is not None:
            process.stop(self._process)
            if self._process.stdout is not None:
                self._process.stdout.close()
