"""A fake emulator for tests: the interface of an emulator without a network.

It records what it was asked, answers as it was told to, and fails where it was told to.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self, cast

from quicferry.emulation import routing
from quicferry.emulation.emulator import DeployPhase, Progress
from quicferry.errors import CommandFailed, EmulationError, InvalidInput
from quicferry.model import LinkReading, Topology
from quicferry.process import Popen, Result, TimeoutExpired


class Call(NamedTuple):
    """One call of the fake: the method's name and its arguments in words."""

    method: str
    host: str
    argv: tuple[str, ...] = ()


class FakeProcess:
    """What ``FakeEmulator.spawn`` returns: it runs until it is told to end, or ends with ``exits_with``."""

    def __init__(self, pid: int, argv: list[str], exits_with: int | None) -> None:
        self.pid = pid
        self.args = argv
        self.returncode: int | None = exits_with
        self.signals: list[int] = []
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises ``TimeoutExpired`` at once when it would not end."""
        if self.returncode is None:
            raise TimeoutExpired(self.args, timeout if timeout is not None else 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Note the signal; TERM, INT and KILL end it."""
        if self.returncode is None:
            self.signals.append(number)
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                self.returncode = -number

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class FakeEmulator:
    """An ``Emulator`` that deploys nothing.

    ``failures`` maps a phase of the deployment or the name of a method (``spawn``, ``execute``,
    ``calibrate``, ``set_link``, ``destroy``) to the exception that it raises. ``answers`` maps (host,
    program) to the result of ``execute``; without one it is success with no output. ``exits`` maps
    (host, program) to the status with which a spawned program ends at once.
    """

    def __init__(
        self,
        *,
        failures: Mapping[str, Exception] | None = None,
        answers: Mapping[tuple[str, str], Result] | None = None,
        exits: Mapping[tuple[str, str], int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.processes: list[FakeProcess] = []
        self.links_down: set[str] = set()
        self.destroyed = 0
        self._failures = dict(failures or {})
        self._answers = dict(answers or {})
        self._exits = dict(exits or {})
        self._progress: Progress = progress if progress is not None else lambda _: None
        self._topology: Topology | None = None
        self._pids = itertools.count(1000)
        self._host_pids: dict[str, int] = {}
        self._measured = False

    @property
    def topology(self) -> Topology:
        if self._topology is None:
            raise EmulationError("no topology is deployed")
        return self._topology

    def deploy(self, topology: Topology) -> None:
        if self._topology is not None:
            raise EmulationError(f"topology {self._topology.name} is deployed already")
        self._topology = topology
        self._host_pids = {node.name: next(self._pids) for node in topology.nodes}
        self._measured = False
        for phase in DeployPhase:
            try:
                self._perhaps_fail(phase)
            except Exception:  # whatever it was: nothing may be left
                self.destroy()
                raise
            self._progress(phase)

    def spawn(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        cwd: Path | None = None,
    ) -> Popen[bytes]:
        words = self._note("spawn", host, argv)
        process = FakeProcess(next(self._pids), words, self._exits.get((host, words[0])))
        self.processes.append(process)
        return cast("Popen[bytes]", process)

    def execute(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        timeout_s: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        words = self._note("execute", host, argv)
        answer = self._answers.get((host, words[0]), Result(words, 0, "", ""))
        if check and answer.status != 0:
            raise CommandFailed(words, answer.status, answer.stderr)
        return answer

    def pid(self, host: str) -> int:
        self.topology.node(host)
        return self._host_pids[host]

    def interface(self, host: str, link_name: str) -> str:
        self.topology.node(host)
        routing.link_between(self.topology, link_name)
        for end in routing.attachments(self.topology):
            if (end.node, end.link) == (host, link_name):
                return end.interface
        raise InvalidInput(f"{host} is not at link {link_name}")

    def address(self, host: str) -> str:
        return routing.first_address(self.topology, host)

    def link_readings(self) -> list[LinkReading]:
        return [
            LinkReading(
                link=link.name,
                sender=sender,
                receiver=receiver,
                backend="plain" if link.is_plain else "cable",
                asked=shape,
                measured_delay_ms=shape.delay_ms if self._measured else None,
                measured_loss_percent=shape.loss_percent if self._measured else None,
                measured_rate_mbps=shape.rate_mbps if self._measured else None,
            )
            for link in self.topology.links
            for sender, receiver, shape in ((link.a, link.b, link.a_to_b), (link.b, link.a, link.b_to_a))
        ]

    def calibrate(self) -> list[LinkReading]:
        self._perhaps_fail("calibrate")
        self._measured = True
        return self.link_readings()

    def begin(self) -> None:
        self._perhaps_fail("begin")
        self.calls.append(Call("begin", ""))

    def ended(self) -> EmulationError | None:
        return None

    def set_link(self, link_name: str, *, up: bool) -> None:
        routing.link_between(self.topology, link_name)
        self._perhaps_fail("set_link")
        self.calls.append(Call("set_link", link_name, ("up" if up else "down",)))
        (self.links_down.discard if up else self.links_down.add)(link_name)

    def hand_over(self, host: str, link_name: str) -> None:
        self._topology = routing.handed_over(self.topology, host, link_name)
        self._perhaps_fail("hand_over")
        self.calls.append(Call("hand_over", host, (link_name,)))

    def destroy(self) -> None:
        self.destroyed += 1
        self._topology = None
        self.links_down.clear()
        for process in self.processes:
            process.kill()
        self._perhaps_fail("destroy")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.destroy()

    def _note(self, method: str, host: str, argv: Sequence[str | Path]) -> list[str]:
        self.topology.node(host)
        words = [str(word) for word in argv]
        self.calls.append(Call(method, host, tuple(words)))
        self._perhaps_fail(method)
        return words

    def _perhaps_fail(self, where: str) -> None:
        if where in self._failures:
            raise self._failures[where]
