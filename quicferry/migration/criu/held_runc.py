"""A runc that is started before the downtime and waits for the word to begin, with CRIU at a ``gate``.

The same for Podman, which starts runc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.container import oci_bundle
from quicferry.migration.container.oci_container import OciContainer, last_words
from quicferry.migration.container.processes import Completed
from quicferry.migration.criu import gate
from quicferry.slowness import longer

READY_S = 6.0  # an idle machine needs 0.15 s; a move goes on without it
HELD_S = 3600.0
CLOSE_S = 5.0
#: A directory in it for each gate: before all else on runc's PATH. Podman hands on no other variable.
DIRECTORY = oci_bundle.HOME / "bin"


class HeldRunc:
    """One runc. ``await begin()``, later ``await go(timeout_s)``, or ``await close()`` instead."""

    def __init__(
        self,
        box: OciContainer,
        criu: Path,
        name: str,
        words: Sequence[str],
        descriptors: Sequence[int] = (),
        before: Sequence[str] = (),
    ) -> None:
        """``name``: of the gate, one for each runc that may wait at the same time on this host.

        ``before``: words of a program that becomes runc.
        """
        self._box = box
        self._criu = criu
        self._gate = oci_bundle.HOME / f"{name}.gate"
        self._directory = DIRECTORY / name
        self.words = list(words)
        self._descriptors = descriptors
        self._before = before
        self._running: asyncio.Task[Completed] | None = None
        self._connection: socket.socket | None = None

    async def begin(self) -> None:
        """Start runc and wait until it is at the gate. Raises ``MigrationError`` when it never is."""
        self._lay_out()
        path = self._box.inside(self._gate)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.setblocking(False)
            listener.bind(str(path))
            listener.listen(1)
            search = os.pathsep.join((str(self._directory), os.environ.get("PATH", "/usr/bin:/bin")))
            self._running = asyncio.create_task(
                self._box.run_tool(
                    *self.words,
                    timeout_s=HELD_S,
                    path=search,
                    descriptors=self._descriptors,
                    before=self._before,
                )
            )
            coming = asyncio.create_task(_accept(listener))
            try:
                await asyncio.wait(
                    [self._running, coming], timeout=longer(READY_S), return_when=asyncio.FIRST_COMPLETED
                )
                if coming.done():
                    self._connection = coming.result()
            finally:
                coming.cancel()
                path.unlink(missing_ok=True)
        if self._connection is None:
            said = self._running.result() if self._running.done() else None
            if said is None:
                self._running.cancel()
                await asyncio.wait([self._running])
            why = last_words(said) if said is not None else "it says nothing"
            raise MigrationError(f"{self._box.tool} on {self._box.edge} does not get ready: {why}")

    def _lay_out(self) -> None:
        """Put the program that waits at the gate where runc finds it."""
        directory = self._box.inside(self._directory)
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        script = directory / "criu"
        if not script.exists():
            python, program = sys.executable, Path(gate.__file__)
            script.write_text(f'#!/bin/sh\nexec {python} -I -S {program} {self._criu} {self._gate} "$@"\n')
            script.chmod(0o755)

    @property
    def waits(self) -> bool:
        """Whether it is at the gate and may go on."""
        return self._connection is not None and self._running is not None and not self._running.done()

    async def go(self, timeout_s: float) -> Completed:
        """Let it do its work, and wait for its end. Raises ``MigrationError`` when that takes longer."""
        try:
            return await asyncio.wait_for(self.release(), timeout_s)
        except TimeoutError as error:
            raise MigrationError(
                f"{self._box.tool} on {self._box.edge} still ran after {timeout_s} s"
            ) from error

    def release(self) -> asyncio.Task[Completed]:
        """Let it do its work; the task is done at its end, and ends it when it is cancelled."""
        assert self._running is not None and self._connection is not None
        connection, self._connection = self._connection, None
        with connection, contextlib.suppress(BrokenPipeError):  # its end says why
            connection.send(gate.GO)
        return self._running

    async def close(self) -> None:
        """End it if it still waits, and leave nothing of it; nothing when it was let go."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        assert self._running is not None
        await asyncio.wait([self._running], timeout=CLOSE_S)
        if not self._running.done():
            self._running.cancel()
            await asyncio.wait([self._running])


async def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    return connection
