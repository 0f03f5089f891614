"""The fence in the server's process: it serves within its lease, whatever becomes of everybody else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from unittest import mock

import pytest

from quicferry import units
from quicferry.errors import MigrationError
from quicferry.migration.order import Lease
from quicferry.migration.serving_lease import KILL_AFTER_NS, ServingLease
from quicferry.units import NS_PER_MS, NS_PER_S, now_ns
from simulation.clock import VirtualLoop


def lease(begin_ms: float, serve_ms: float) -> Lease:
    now = now_ns()
    return Lease(
        begin_before_ns=now + round(begin_ms * NS_PER_MS), serve_until_ns=now + round(serve_ms * NS_PER_MS)
    )


def play(story: Callable[[VirtualLoop], Awaitable[None]]) -> None:
    """In virtual time: what a lease is worth does not depend on how fast this machine is."""
    loop = VirtualLoop()
    try:
        with mock.patch.object(units, "time", loop.clock):
            loop.run_until_complete(story(loop))
    finally:
        loop.close()


class Server:
    """What a lease holds back and lets go on."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.lease = ServingLease(lambda: self.log.append("held"), lambda: self.log.append("goes on"))


def test_a_lease_that_is_over_begins_nothing() -> None:
    """A Resume that was on its way while its sender was stopped for 25 s."""

    async def story(_: VirtualLoop) -> None:
        server = Server()
        with pytest.raises(MigrationError, match=r"the lease of epoch 3 ended .* ms ago"):
            server.lease.begin(3, lease(-1, 1000))
        assert server.lease.described() == {"epoch": 0, "kept": True, "held": False}

    play(story)


def test_it_ends_by_itself_and_goes_on_when_the_move_was_committed() -> None:
    async def story(_: VirtualLoop) -> None:
        server = Server()
        server.lease.begin(1, lease(50, 80))
        assert server.lease.may_send()
        with pytest.raises(MigrationError, match="is not committed yet"):
            server.lease.check_kept()
        await asyncio.sleep(0.2)
        assert server.log == ["held"]
        assert not server.lease.may_send()
        server.lease.keep(1)
        assert server.log == ["held", "goes on"]
        assert server.lease.may_send()
        server.lease.check_kept()
        await asyncio.sleep(0.1)
        server.lease.keep(1)  # said again
        assert server.log == ["held", "goes on"]

    play(story)


def test_a_process_that_did_not_run_in_time_sends_nothing_all_the_same() -> None:
    """The loop's timer could not fire: whoever wants to send finds out himself."""

    async def story(loop: VirtualLoop) -> None:
        server = Server()
        server.lease.begin(1, lease(10, 20))
        loop.clock.now_s += 0.05  # the process is stopped
        assert not server.lease.may_send()
        assert server.log == ["held"]

    play(story)


def test_a_commit_in_time_and_of_other_epochs() -> None:
    async def story(_: VirtualLoop) -> None:
        server = Server()
        server.lease.begin(2, lease(50, 60))
        with pytest.raises(MigrationError, match="has not begun epoch 3"):
            server.lease.keep(3)
        server.lease.keep(1)  # an old one comes late
        assert not server.lease.described()["kept"]
        server.lease.keep(2)
        await asyncio.sleep(0.1)
        assert server.log == []
        assert server.lease.may_send()

    play(story)


SENDER = """
import asyncio, os, sys, signal
from quicferry.migration.order import Lease
from quicferry.migration.serving_lease import ServingLease
from quicferry.units import now_ns

async def main():
    lease = ServingLease(lambda: None, lambda: None)
    lease.by_kernel = True
    now = now_ns()
    lease.begin(1, Lease(begin_before_ns=now + 10**9, serve_until_ns=now + 10**9))
    if "keep" in sys.argv:
        lease.keep(1)
    assert lease.may_send()
    os.kill(os.getpid(), signal.SIGSTOP)  # between the question and the system call
    os.write(1, b"sent")

asyncio.run(main())
"""


@pytest.mark.parametrize(("argument", "status", "said"), [("", -signal.SIGALRM, b""), ("keep", 0, b"sent")])
def test_the_kernel_ends_a_process_that_was_stopped_before_it_sent(
    argument: str, status: int, said: bytes
) -> None:
    process = subprocess.Popen([sys.executable, "-c", SENDER, argument], stdout=subprocess.PIPE)
    try:
        _, stopped = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(stopped)
        time.sleep(1.0 + KILL_AFTER_NS / NS_PER_S + 0.1)
    finally:
        process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, said)
