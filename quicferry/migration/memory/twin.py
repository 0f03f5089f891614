"""The twin of a server: a process of the same version that is started, read, and ended without ever serving.

Its memory is the base image (``base_image``). It lives in a network namespace of its own, where it may
listen at the addresses of the server; nobody can reach it. It lives in a container of the server's kind:
where a program finds other files and variables, its heap is laid out in another way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from quicferry.errors import MigrationError
from quicferry.migration.container.beneath import write_beneath
from quicferry.migration.container.container import Container
from quicferry.migration.memory import base_image
from quicferry.migration.memory.base_image import BaseImage
from quicferry.migration.memory.pagemap import Pages
from quicferry.migration.memory.process_memory import ProcessMemory, Snapshot
from quicferry.slowness import longer

NAME = "base-image"
OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
READY_S = 15.0
POLL_S = 0.02
QUIET_POLLS = 5  # so often in a row it waits for something: it has come to rest


Maker = Callable[[], Awaitable[Container]]


def in_a_container() -> Awaitable[Container]:
    """Make the container of a twin: with a network of its own."""
    return Container.create(NAME, enter=OWN_NETWORK)


async def base_of(
    argv: Sequence[str],
    env: Mapping[str, str],
    files: Mapping[str, bytes],
    ready: str,
    make: Maker = in_a_container,
    kind: str = "",
) -> BaseImage:
    """The base image of servers that are started so; made if there is none yet.

    ``files``: what is put into the container before, by path; ``ready``: the file inside the container that
    the server writes when it is ready; ``make``: makes the container, and ``kind`` tells it from containers
    of other kinds. Raises ``MigrationError``.
    """
    version = await asyncio.to_thread(base_image.version_of, argv, env, kind)
    # another agent may be making it: its lock is waited for in a thread
    holding = base_image.held(version)
    directory = await asyncio.to_thread(holding.__enter__)
    try:
        known = await asyncio.to_thread(base_image.read, directory)
        if known is not None:
            return known
        snapshot, of_files = await _memory_of_twin(argv, env, files, ready, make)
        return await asyncio.to_thread(base_image.write, directory, snapshot, of_files)
    except OSError as error:
        raise MigrationError(
            f"the base image cannot be kept in {directory}: {error.strerror or error}",
            hint="--no-base-image does without",
        ) from error
    finally:
        await asyncio.to_thread(holding.__exit__, None, None, None)


async def _memory_of_twin(
    argv: Sequence[str], env: Mapping[str, str], files: Mapping[str, bytes], ready: str, make: Maker
) -> tuple[Snapshot, Pages]:
    """Start a twin, and read its memory when it has come to rest; and which pages are of mapped files."""
    async with await make() as container:
        write_beneath(container.path("/"), {container.place_of(name): data for name, data in files.items()})
        pid = await container.start(argv, env=env)
        try:
            async with asyncio.timeout(longer(READY_S)):
                await _until_at_rest(container, pid, container.path(container.place_of(ready)))
        except TimeoutError:
            raise MigrationError(
                f"the server for the base image was not ready within {READY_S:g} s",
                hint="--no-base-image does without",
            ) from None
        await container.halt(pid)
        with ProcessMemory(container.path(f"/proc/{pid}")) as memory:
            snapshot = await asyncio.to_thread(lambda: memory.read(memory.anonymous_pages()))
            lazy = memory.without_files(snapshot.pages)
        return snapshot, np.setdiff1d(snapshot.pages, lazy, assume_unique=True)


async def _until_at_rest(container: Container, pid: int, ready: Path) -> None:
    """Wait until the server has said that it is ready, and sleeps. Raises ``MigrationError`` if it ends."""
    quiet = 0
    while quiet < QUIET_POLLS:
        await asyncio.sleep(POLL_S)
        state = container.state(pid)
        if state is None:
            log = container.path(container.log_path(pid)).read_text(errors="replace").strip()
            why = log.splitlines()[-1] if log else "no message"
            raise MigrationError(
                f"the server for the base image ended at once: {why}",
                hint="--no-base-image does without",
            )
        quiet = quiet + 1 if state == "S" and _is_written(ready) else 0


def _is_written(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
