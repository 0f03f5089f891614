"""Collects all probes of the machine, and checks those that a run needs before it starts.

The probes themselves are defined beside what they are about. They are asked in a private root: they capture,
make namespaces and dump processes, and however the tool ends in the middle of that, nothing of it stays.
As a program, ``python -m quicferry.experiment.preflight PROBE …`` asks in there, a line of JSON for each.
"""

from __future__ import annotations

import os
import select as ready
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import msgspec

from quicferry.capture import probes as capture_probes
from quicferry.emulation import probes as emulation_probes
from quicferry.emulation.links import probes as link_probes
from quicferry.emulation.sandbox import private_root
from quicferry.errors import InvalidInput, last_line
from quicferry.experiment import service_probes
from quicferry.migration.criu import probes as criu_probes
from quicferry.migration.criu import runc_probes
from quicferry.paths import CHECKOUT
from quicferry.probe import Probe, ProbeResult, require
from quicferry.process import DEVNULL, PIPE
from quicferry.slowness import longer_than_emulated

_SOURCES = (
    emulation_probes.PROBES,
    link_probes.PROBES,
    criu_probes.PROBES,
    runc_probes.PROBES,
    capture_probes.PROBES,
    service_probes.PROBES,
)

TOGETHER = "--together"
AT_ONCE = 4  # most probes wait for packets or programs
#: What ``quicferry demo`` cannot do without. netem is not among them: the cable stands in for it.
NEEDED_FOR_DEMO = ("root", "netns", "veth", "shaped-link", "mininet", "criu", "tshark")

#: How long one probe may take before it and what it started are ended, in seconds. On a processor that QEMU
#: emulates the slowest took 35 s; on a real one all of them together take ten.
LIMIT_S = 180.0


def probes() -> dict[str, Probe]:
    """Every probe by its name, in the order in which a doctor would ask."""
    found: dict[str, Probe] = {}
    for source in _SOURCES:
        for probe in source:
            assert probe.name not in found, f"two probes are named {probe.name}"
            found[probe.name] = probe
    return found


def select(names: Iterable[str]) -> list[Probe]:
    """The probes of those names. Raises ``InvalidInput`` for a name that is none."""
    known = probes()
    chosen: list[Probe] = []
    for name in names:
        if name not in known:
            raise InvalidInput(f"there is no probe {name!r}", hint="there are: " + ", ".join(known))
        chosen.append(known[name])
    return chosen


def ask(chosen: Sequence[Probe], *, together: bool = False) -> Iterator[ProbeResult]:
    """Ask probes one after another, or all at once, in a private root; each answer as soon as it is there.

    A probe that gives none within ``LIMIT_S`` seconds (longer where the processor is slower than an emulated
    one) is ended with its private root, and the next are asked in another. Who may not make one, and a probe
    that is not of this machine's list, is answered here: without root there is nothing that could stay.
    """
    ours = {id(probe) for source in _SOURCES for probe in source}
    if os.geteuid() != 0 or any(id(probe) not in ours for probe in chosen):
        yield from (probe.run() for probe in chosen)
        return
    unanswered = list(chosen)
    while unanswered:
        yield from _ask_in_one_root(unanswered, together=together)


def _ask_in_one_root(unanswered: list[Probe], *, together: bool) -> Iterator[ProbeResult]:
    """Ask until one gives no answer in time; takes those that are answered for off the list."""
    # of the private root and in memory: files that probes write must not outlive them either
    env = {**os.environ, "TMPDIR": "/run"}
    argv = [sys.executable, "-m", __name__, *([TOGETHER] * together), *(probe.name for probe in unanswered)]
    with tempfile.TemporaryFile() as log:
        root = private_root.start(argv, stdin=DEVNULL, stdout=PIPE, stderr=log, env=env, cwd=CHECKOUT)
        assert root.process.stdout is not None
        with root, root.process.stdout as stream:
            try:
                for result in _answers(stream):
                    unanswered.pop(0)
                    yield result
            except TimeoutError as error:
                root.kill()
                yield _no_answer(
                    unanswered.pop(0),
                    f"gave no answer within {error} s and was ended",
                    "a machine as slow as an emulated one, or one with a heavy load; ask again with --only",
                )
                return
            status = root.wait()
        log.seek(0)
        why = last_line(log.read().decode(errors="replace"))
    while unanswered:
        yield _no_answer(
            unanswered.pop(0),
            f"the private root that asks ended with status {status}: {why}",
            "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN",
        )


def _answers(stream: IO[bytes]) -> Iterator[ProbeResult]:
    """What is answered, up to the end of the stream.

    Raises ``TimeoutError`` with the limit, in seconds, when one takes too long.
    """
    buffer = b""
    limit_s = LIMIT_S
    deadline = time.monotonic() + limit_s
    while True:
        readable, _, _ = ready.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not readable and limit_s == LIMIT_S and (limit_s := longer_than_emulated(LIMIT_S)) > LIMIT_S:
            deadline += limit_s - LIMIT_S
            continue
        if not readable:
            raise TimeoutError(f"{limit_s:g}")
        data = os.read(stream.fileno(), 65536)
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            try:
                result = msgspec.json.decode(line, type=ProbeResult)
            except msgspec.DecodeError:
                continue  # not an answer: a library's print
            yield result
            deadline = time.monotonic() + limit_s
        if not data:
            return


def _no_answer(probe: Probe, detail: str, hint: str) -> ProbeResult:
    return ProbeResult(
        name=probe.name, works=False, detail=detail, hint=hint, needed_for=probe.needed_for, duration_ms=0.0
    )


def check(names: Iterable[str]) -> list[ProbeResult]:
    """Ask those probes, all at once. Raises ``Unsupported`` for the first of them that says no."""
    results: list[ProbeResult] = []
    for result in ask(select(names), together=True):
        require(result)
        results.append(result)
    return results


def main() -> None:
    """Inside the private root: ask, and print the answers."""
    names = sys.argv[1:]
    together = names[:1] == [TOGETHER]
    with ThreadPoolExecutor(AT_ONCE if together else 1) as threads:
        for result in threads.map(Probe.run, select(names[together:])):
            sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
