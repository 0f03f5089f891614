"""What every server process of a run is, whatever it speaks with its clients.

A server is started with one JSON file, obeys its node agent's orders over a datagram socket, holds the
application service and its ballast, and is standby, serving or frozen. It ends by order or by SIGTERM.
All of that is here. What differs (listening, connections, what crosses a hand-off) is in the subclasses:
``apps.server.server.QuicServer`` and ``baselines.tcp_dns.server.TcpServer``.

    standby ── Import ──► serving ◄── Resume, Abort ── frozen
                             └────────── Freeze ─────────▲
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import signal
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.config import ServerConfig, read_config
from apps.server.ballast import Ballast
from apps.server.service import ApplicationService
from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.migration import control


class ServerShell(control.ControlHandler):
    """One server process. Orders come one at a time through ``obey``; ``run`` returns when it has ended."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.events = EventLog(config.edge, Path(config.events))
        self.service = ApplicationService(config.edge, config.response_bytes)
        self.standby = config.standby
        self.frozen_epoch: int | None = None  # the epoch of the move for which it is frozen; None: it is not
        self.committed_epoch = 0  # of the latest move that a client has committed; 0: none
        self.stopped = asyncio.Event()
        self.ballast = Ballast(config.memory_mib)

    # --- what a subclass says ----------------------------------------------------------------

    @property
    @abstractmethod
    def connections(self) -> int:
        """How many connections there are now."""

    @abstractmethod
    def _start_serving(self) -> None:
        """Called once, at the start of a server that is no standby."""

    def _make_ready(self) -> None:
        """Called once, at the start of a standby: what can be done before it is told to take over."""

    @abstractmethod
    def _hold(self) -> None:
        """Read nothing from clients any more; called by Freeze before anything else."""

    @abstractmethod
    def _after_freeze(self, order: control.Freeze) -> dict[str, Any]:
        """The rest of Freeze, after ``server.frozen`` was told; returns the detail besides ``t_ns``."""

    @abstractmethod
    def _serve_again(self, order: control.Resume) -> dict[str, Any]:
        """The rest of Resume, after the server knows its edge; returns the answer's detail."""

    @abstractmethod
    def _end(self) -> None:
        """Called once, after ``server.stopped`` was told: close what is open."""

    def _before_end(self) -> None:
        """Called once, before ``server.stopped`` is told."""

    # --- the process -------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the order to stop, or SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopped.set)
        endpoint = (self.config.control.host, self.config.control.port)
        transport, _ = await loop.create_datagram_endpoint(
            lambda: control.ControlServer(self.obey), local_addr=endpoint
        )
        if self.standby:
            self._make_ready()
        else:
            self._start_serving()
        if self.events.sink is None:  # who listens to events by a call of their own hears of them at once
            self.events.later = loop.call_soon
        self.events.emit("server.started", pid=os.getpid(), standby=self.standby)
        rewriting = loop.create_task(self.ballast.rewrite(self.config.dirty_mib_s))
        gc.freeze()  # a garbage collection over all objects in the middle of a move would add to the downtime
        await self.stopped.wait()
        rewriting.cancel()
        self._before_end()
        self.events.emit("server.stopped", **self._summary())
        self._end()
        self.events.flush()
        transport.close()

    def _summary(self) -> dict[str, Any]:
        state = self.service.state
        return {"total": state.total, "repeated": state.repeated, "sessions": len(state.sessions)}

    # --- orders ------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "edge": self.service.edge,
            "standby": self.standby,
            "frozen": self.frozen_epoch is not None,
            "connections": self.connections,
            "committed_epoch": self.committed_epoch,
            **self._summary(),
        }

    def _stop(self) -> dict[str, Any]:
        self.stopped.set()
        return self._summary()

    def _freeze(self, order: control.Freeze) -> dict[str, Any]:
        if self.frozen_epoch is not None:
            raise MigrationError(f"already frozen for epoch {self.frozen_epoch}")
        self._hold()
        frozen = self.events.emit("server.frozen", epoch=order.epoch)
        self.frozen_epoch = order.epoch
        answer = {"t_ns": frozen.t_ns, **self._after_freeze(order)}
        if order.state_path is None:
            self.events.flush()  # with the answer the process may be stopped, and copied with what it holds
        return answer

    def _resume(self, order: control.Resume) -> dict[str, Any]:
        if self.frozen_epoch is None:
            raise MigrationError("the server was not frozen")
        # the process was checkpointed as the source's and goes on as the destination's
        self.service.edge = order.edge
        self.events.vantage = order.edge
        return self._serve_again(order)


def write_state(path: str, state: bytes, inline_bytes: int = 0) -> dict[str, Any]:
    """Write the state for a hand-off to a new file of mode 0600; returns its size and hash for the answer.

    What is no longer than ``inline_bytes`` is in the answer instead of the file.
    Raises ``FileExistsError``: the state of one move must not be taken for that of another.
    """
    answer: dict[str, Any] = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    if len(state) <= inline_bytes:
        return {**answer, "state": state}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(state)
    return answer


def read_state(order: control.Import | control.TakeAhead) -> bytes:
    """What ``write_state`` wrote elsewhere. Raises ``MigrationError`` when it is not the same."""
    state = Path(order.state_path).read_bytes() if order.state is None else order.state
    if hashlib.sha256(state).hexdigest() != order.sha256:
        raise MigrationError("the state was damaged on its way")
    return state


def run_server(make: Callable[[ServerConfig], ServerShell], program: str) -> None:
    """The ``main`` of every server: run one with the configuration named on the command line, to its end."""

    async def serve(config: ServerConfig) -> None:
        server = make(config)  # made inside the loop: its ports and events belong to it
        server.lease.by_kernel = True
        await server.run()

    asyncio.run(serve(read_config(program, ServerConfig)))
