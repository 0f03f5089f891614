"""The node agent of an edge host.

    python -m apps.agent --config FILE        (quicferry.migration.agent.config.AgentConfig, JSON)

Runs as root in the edge host's namespaces. Its stdout has one JSON object per line: ``{"ready":
{"edge": …, "port": …}}`` once it serves, ``{"event": {…}}`` for its events when they go to no file,
``{"outcome": {…}}`` for moves it ordered itself (SIGUSR1, or a client's request), ``{"recovered": {…}}`` for
a move that an agent before it was killed in. SIGTERM ends it, and with it the container and the server;
SIGKILL does not, if it has a ``container_record``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal

from apps.config import read_config
from apps.reporting import errors_to_stderr, event_log, tell
from quicferry.errors import FerryError
from quicferry.migration.agent.agent import NodeAgent
from quicferry.migration.agent.config import AgentConfig, LocalMove
from quicferry.migration.agent.requests import RequestDesk

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1  # malloc.h of glibc
#: From this size on memory is the kernel's again when it is freed: base images, and memory that was added.
_LARGE_BYTES = 8 << 20
#: So much free memory at the heap's end is kept. With glibc's 128 KiB each piece of a transfer (1 MiB) is new
#: memory, which the kernel clears: a fifth of the processor time that the piece takes at either end.
_KEPT_BYTES = 16 << 20

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log repeats what we raise


async def serve(config: AgentConfig) -> None:
    """Run an agent until SIGTERM."""
    loop = asyncio.get_running_loop()
    events = event_log(config.edge, config.events)
    if not config.failpoints.stop_at:  # such a failpoint stops this process as soon as the event is told
        events.later = loop.call_soon
    agent = NodeAgent(config, events)
    ended = asyncio.Event()
    moves: set[asyncio.Task[None]] = set()
    planned = [*filter(None, [config.on_signal or config.on_request]), *config.later]

    async def move(what: LocalMove) -> None:
        try:
            outcome = await agent.move_locally(what)
            if outcome.outcome == "moved" and len(planned) > 1:
                del planned[0]
            events.flush()  # what led to it comes first
            tell("outcome", outcome)
        except FerryError as error:
            tell("outcome", {"outcome": "refused", "error": str(error), "hint": error.hint})

    async def recover() -> None:
        outcome = await agent.recover()
        if outcome is not None:
            tell("recovered", outcome)

    def begin() -> None:
        task = loop.create_task(move(planned[0]))
        moves.add(task)
        task.add_done_callback(moves.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if config.on_signal is not None:
        loop.add_signal_handler(signal.SIGUSR1, begin)
    await agent.start()
    desk = RequestDesk(
        config,
        is_busy=lambda: bool(moves) or agent.is_moving,
        begin=begin,
    )
    try:
        if config.on_request is not None:
            await desk.open()
        tell("ready", {"edge": config.edge, "port": agent.rpc.port, "init_pid": agent.container.init_pid})
        recovering = loop.create_task(recover())
        await ended.wait()
        recovering.cancel()
    finally:
        desk.close()
        await agent.close()
        events.flush()


def use_one_heap() -> None:
    """Let all threads of this process share one heap.

    glibc gives each thread one of its own, which keeps about the most that a move took; threads take turns,
    until each has it. The environment says so to a program that is started, not to one that is forked.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and one heap
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        # said once, glibc does not raise it to what was freed last
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def main() -> None:
    """Run a node agent until SIGTERM; errors go to stderr, and their exit code is the process's."""
    use_one_heap()
    with errors_to_stderr():
        asyncio.run(serve(read_config("apps.agent", AgentConfig)))


if __name__ == "__main__":
    main()
