"""The orchestrator, a process on a host of the topology.

    python -m apps.orchestrator --config FILE    (quicferry.migration.orchestrator.OrchestratorConfig)

Reads commands as JSON lines on stdin (``{"type": "move", …}``, see ``MoveCommand``, ``StartCommand``
and ``EndCommand``) and carries them out one after another. Its stdout has one JSON object per line:
``{"ready": {…}}`` once all agents are reached, ``{"event": {…}}`` for its events when they go to no
file, and one of ``{"outcome": {…}}``, ``{"started": {…}}``, ``{"ended": {…}}`` for every command. An
outcome also comes directly after ``ready``, of a move that an orchestrator before it was killed in.
The end of stdin ends it.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from apps.config import read_config
from apps.reporting import errors_to_stderr, event_log, tell
from quicferry.errors import FerryError
from quicferry.migration.orchestrator import (
    Command,
    EndCommand,
    MoveCommand,
    Orchestrator,
    OrchestratorConfig,
    StartCommand,
)

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log repeats what we raise


async def obey(orchestrator: Orchestrator, line: bytes) -> None:
    """Carry out one command, a JSON line; its answer or its error goes to stdout."""
    try:
        match msgspec.json.decode(line, type=Command):
            case MoveCommand() as command:
                tell("outcome", await orchestrator.move(command))
            case StartCommand() as command:
                tell("started", await orchestrator.start_service(command))
            case EndCommand() as command:
                tell("ended", await orchestrator.end_services(command))
    except msgspec.DecodeError as error:
        tell("outcome", {"outcome": "invalid", "error": str(error), "hint": None})
    except FerryError as error:
        tell("outcome", {"outcome": "refused", "error": str(error), "hint": error.hint})


async def serve(config: OrchestratorConfig) -> None:
    """Carry out the commands on stdin until its end."""
    orchestrator = Orchestrator(config, event_log(config.name, config.events))
    try:
        await orchestrator.connect()
        tell("ready", {"name": config.name})
        unfinished = await orchestrator.recover()
        if unfinished is not None:
            tell("outcome", unfinished)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
        )
        async for line in reader:
            if line.strip():
                await obey(orchestrator, line)
        transport.close()
    finally:
        await orchestrator.close()


def main() -> None:
    """Carry out the commands on stdin until its end; errors go to stderr, with their exit code."""
    with errors_to_stderr():
        asyncio.run(serve(read_config("apps.orchestrator", OrchestratorConfig)))


if __name__ == "__main__":
    main()
