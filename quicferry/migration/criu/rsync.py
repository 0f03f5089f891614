"""rsync between two edge hosts: a daemon at the destination, a call at the source.

For the engines that do as the published procedure does; ours need none. The daemon neither speaks TLS nor
asks who calls: it lives on the emulated link, for the time of one move. rsyncd.conf(5).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container.container import Container
from quicferry.migration.container.oci_container import last_words
from quicferry.model import Endpoint
from quicferry.process import find_program

PORT = 8873
MODULE = "run"
CONFIG = Path("/run/rsyncd.conf")
INSTALL_HINT = "run `make setup` as root, or `apt-get install rsync`"
ASK_S = 0.01
UP_S = 5.0

#: Without chroot a daemon changes the symbolic links that it takes ("munge symlinks"): the link to the images
#: of a pre-dump would lead nowhere. In chroot they stay as they are, absolute ones of a container too. And it
#: asks for the name of whoever calls: an edge host has no server of names to ask, the answer is a time-out.
CONFIGURATION = """\
use chroot = yes
reverse lookup = no
pid file = /run/rsyncd.pid
[run]
path = /run
read only = no
uid = root
gid = root
"""


def find_rsync() -> Path:
    """The rsync to use. Raises ``Unsupported``."""
    found = find_program("rsync")
    if found is None:
        raise Unsupported("there is no rsync on the PATH", hint=INSTALL_HINT)
    return found


class RsyncDaemon:
    """A daemon in a container, which takes files below its ``/run``. It does not outlive this agent."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, unless it runs, and wait until it listens. Raises ``MigrationError``, ``Unsupported``."""
        if self._process is not None and self._process.returncode is None:
            return
        self._container.path(str(CONFIG)).write_text(CONFIGURATION)
        pid_file = self._container.path("/run/rsyncd.pid")
        pid_file.unlink(missing_ok=True)
        words = [str(find_rsync()), "--daemon", "--no-detach", f"--config={CONFIG}", f"--port={PORT}"]
        process = self._process = await self._container.begin(words)
        try:
            async with asyncio.timeout(UP_S):
                # written before it listens: the pause is for what comes between
                while not pid_file.exists():
                    if process.returncode is not None:
                        raise MigrationError(f"rsync's daemon on {self._container.edge} ended at once")
                    await asyncio.sleep(ASK_S)
        except TimeoutError as error:
            raise MigrationError(f"rsync's daemon on {self._container.edge} does not come up") from error

    async def stop(self) -> None:
        """End it; nothing when none runs."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def copy(container: Container, paths: Sequence[str], host: str, *, timeout_s: float) -> int:
    """Copy files and directories below ``/run`` to the same place at another host, and wait for it.

    Returns the bytes that were sent, as rsync counts them. Raises ``MigrationError``.
    """
    # the part after /./ is what the other end makes below its module's directory
    sources = [f"/run/./{path.removeprefix('/run/')}" for path in paths]
    words = [
        str(find_rsync()),
        "-aRX",
        "--delete",
        "--stats",
        *sources,
        f"rsync://{Endpoint(host, PORT)}/{MODULE}/",
    ]
    done = await container.run(words, timeout_s=timeout_s)
    if done.status != 0:
        raise MigrationError(
            f"rsync to {host} failed with status {done.status}: {last_words(done)}",
            hint="rsync(1) lists its exit values; 11 is a full disk or another error of input and output",
        )
    for line in done.stdout.splitlines():
        if line.startswith("Total bytes sent:"):
            return int(line.partition(":")[2].replace(",", ""))
    return 0
