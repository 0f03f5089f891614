"""Judge CRIU's page server and lazy-pages daemon by doing: move a child whose memory follows it.

Run as a program in namespaces of its own (see ``criu.probes``). Exit status 0 when the child finds its
memory as it was; the last line printed says what went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from quicferry.errors import FerryError, MigrationError
from quicferry.migration.container.container import Container
from quicferry.migration.criu.page_server import BackgroundCriu, MemoryCriu, PageServer
from quicferry.process import run

IMAGES = Path("/run/images")
LIMIT_S = 60.0  # half a second on a machine of its own
POLL_S = 0.01
#: 4 MiB are more than one pipe of CRIU holds without CAP_SYS_RESOURCE.
CHILD = """
import hashlib, os, signal, sys
memory = os.urandom(4 << 20)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
while True:
    signal.sigwait([signal.SIGUSR1])
    print(hashlib.sha256(memory).hexdigest(), flush=True)
"""


async def said(container: Container, pid: int, lines: int) -> str:
    """Wait for the line of that number (from 1) in the child's output."""
    log = container.path(container.log_path(pid))
    async with asyncio.timeout(LIMIT_S):
        while len(printed := log.read_text().splitlines()) < lines:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(POLL_S)
    return printed[lines - 1]


@contextlib.asynccontextmanager
async def carried(server: PageServer, daemon: BackgroundCriu) -> AsyncIterator[None]:
    """Carry bytes between page server and daemon, as the agents' tunnel does in a move."""
    loop = asyncio.get_running_loop()

    async def carry(source: PageServer, target: PageServer) -> None:
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source.socket, 1 << 16):
                await loop.sock_sendall(target.socket, data)

    pumps = [asyncio.create_task(carry(server, daemon)), asyncio.create_task(carry(daemon, server))]
    try:
        yield
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        server.socket.close()
        daemon.socket.close()


async def check() -> None:
    """Dump a child, serve its memory, restore it, compare. Raises ``MigrationError``."""
    async with await Container.create("edge-1") as here, await Container.create("edge-2") as there:
        source, destination = MemoryCriu(here), MemoryCriu(there)
        await source.warm_up(IMAGES)
        await destination.warm_up(IMAGES)
        pid = await here.start([sys.executable, "-S", "-E", "-c", CHILD])
        await said(here, pid, 1)
        await here.signal(pid, signal.SIGUSR1)
        before = await said(here, pid, 2)
        await here.signal(pid, signal.SIGSTOP)
        server = await source.dump_and_serve(pid, IMAGES, None, timeout_s=LIMIT_S)
        shutil.copytree(here.path(str(IMAGES)), there.path(str(IMAGES)), dirs_exist_ok=True)
        shutil.copy(here.path(here.log_path(pid)), there.path(there.log_path(pid)))
        daemon = await destination.fetch_lazily(IMAGES, timeout_s=LIMIT_S)
        async with carried(server, daemon), asyncio.timeout(LIMIT_S):
            await destination.restore(IMAGES, timeout_s=LIMIT_S, lazy=True)
            await there.signal(pid, signal.SIGCONT)
            await there.signal(pid, signal.SIGUSR1)
            after = await said(there, pid, 3)
            statuses = [await daemon.end(), await server.end()]
        if statuses != [0, 0]:
            raise MigrationError(f"CRIU's lazy-pages and page server ended with the statuses {statuses}")
        if after != before:
            raise MigrationError("the child's memory is not what it was")


def main() -> None:
    """Run the trial; exit with one line that says what is wrong."""
    try:
        run(["ip", "link", "set", "lo", "up"])
        asyncio.run(check())
    except (FerryError, OSError, TimeoutError) as error:
        sys.exit(str(error) or "it took too long")


if __name__ == "__main__":
    main()
