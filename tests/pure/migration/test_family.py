"""The processes that belong to a server: its descendants, which move, and daemons, which cannot."""

import asyncio
import itertools
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.container import container
from quicferry.migration.container.container import (
    FIRST_SERVICE_PID,
    HELPER_PIDS_PER_EDGE,
    Container,
    first_helper_pid_of,
)
from quicferry.migration.container.processes import ContainedProcess
from quicferry.migration.engines.criu.cold import CriuColdEngine

SERVER = 11_000


class Listed(Container):
    """A container with these processes: PID -> PID of the parent and command line."""

    def __init__(self, listed):
        self.edge, self.listed, self._service_pid = "edge-1", listed, SERVER

    def parents(self):
        return {pid: parent for pid, (parent, _) in self.listed.items()}

    def processes(self):
        return [ContainedProcess(pid, "S", argv.split()) for pid, (_, argv) in self.listed.items()]

    def is_alive(self, pid):
        return pid in self.listed


def engine_of(listed):
    context = SimpleNamespace(container=Listed(listed), edge="edge-1", state_dir=PurePosixPath("/run/state"))
    return CriuColdEngine(context)


def test_descendants_are_found_whatever_their_numbers():
    listed = {
        100: (0, "criu"),
        150: (11_001, "child of a child"),
        SERVER: (1, "server"),
        11_001: (SERVER, "child"),
        11_002: (1, "daemon"),
        11_003: (11_002, "its child"),
    }
    assert Listed(listed).descendants(SERVER) == [11_001, 150]
    assert Listed(listed).descendants(11_002) == [11_003]
    assert Listed(listed).descendants(100) == []


@pytest.mark.parametrize(
    "beside",
    [
        {11_001: (SERVER, "worker")},
        {100: (0, "nsenter tar"), 101: (100, "zstd")},  # helpers came from outside
        {200: (1, "/usr/sbin/criu dump -t 11000")},  # left by an agent that was killed
        {11_001: (1, "")},  # a zombie that init is about to reap
    ],
)
def test_what_does_not_hinder_a_move(beside):
    engine_of({SERVER: (1, "server"), **beside})._check_family()


def test_a_daemon_is_named_in_the_refusal():
    engine = engine_of({SERVER: (1, "server"), 11_001: (1, "memcached -d")})
    with pytest.raises(MigrationError, match=r"process 11001 on edge-1 \(memcached -d\)") as caught:
        engine._check_family()
    assert "runc" in caught.value.hint


def test_no_two_edges_give_the_same_pids():
    firsts = sorted(first_helper_pid_of(f"edge-{number}") for number in range(20))
    gaps = [later - earlier for earlier, later in itertools.pairwise(firsts)]
    assert set(gaps) == {HELPER_PIDS_PER_EDGE}
    assert firsts[-1] + HELPER_PIDS_PER_EDGE <= FIRST_SERVICE_PID


class Dying(Container):
    """A container whose process has these states, one each time it is looked at, and then the last again."""

    def __init__(self, *states):
        self.edge, self.states = "edge-1", list(states)

    def _stat(self, pid):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return None if state is None else (state, 1)

    def is_dying(self, pid):
        return self.states[0] == "Z"


def test_a_process_that_is_dead_and_not_yet_reaped_is_waited_for(monkeypatch):
    """Its PID is not free before: a server was told to go on, and never answered."""
    assert asyncio.run(Dying("Z", "Z", "Z", None).has_died(SERVER))
    assert asyncio.run(Dying(None).has_died(SERVER))
    assert not asyncio.run(Dying("T").has_died(SERVER))
    monkeypatch.setattr(container, "REAPED_S", 0.01)
    with pytest.raises(MigrationError, match="nobody reaps it"):
        asyncio.run(Dying("Z").has_died(SERVER))


class Recorded(Container):
    """A container whose ``/proc`` is a folder."""

    def __init__(self, folder):
        self.edge, self.folder = "edge-1", folder

    def path(self, inside):
        return self.folder / inside.lstrip("/")


NOTHING = "0" * 16


@pytest.mark.parametrize(
    ("state", "flags", "own", "shared", "dying"),
    [
        ("T", 0x400140, NOTHING, NOTHING, False),
        ("t", 0x400140, NOTHING, f"{1 << 17:016x}", False),  # SIGCONT
        ("T", 0x400140, NOTHING, f"{1 << 8:016x}", True),  # SIGKILL, for all of its threads
        ("R", 0x400140, f"{1 << 8:016x}", NOTHING, True),  # for this one
        ("R", 0x400144, NOTHING, NOTHING, True),  # on its way out
        ("Z", 0x400144, NOTHING, NOTHING, True),
    ],
)
def test_a_process_that_sigkill_awaits_is_dying(tmp_path, state, flags, own, shared, dying):
    """It still stands there, stopped as before: on a busy machine one was told to go on, not restored."""
    proc = tmp_path / "proc" / str(SERVER)
    proc.mkdir(parents=True)
    (proc / "stat").write_text(f"{SERVER} (python3 -m x) {state} 1 5 5 0 -1 {flags} 0 0\n")
    (proc / "status").write_text(f"Name:\tpython3\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{'f' * 16}\n")
    assert Recorded(tmp_path).is_dying(SERVER) == dying
    assert not Recorded(tmp_path).is_dying(SERVER + 1)
