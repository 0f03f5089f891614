"""Waiting for what asyncio has no stream for: messages with descriptors, a pipe that others inherit."""

from __future__ import annotations

import asyncio
import socket


async def until_readable(file: socket.socket | int) -> None:
    """Wait until reading does not block: there is data, or the end of it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)
