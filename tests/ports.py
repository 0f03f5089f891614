"""Ports for servers of tests that are told theirs beforehand."""

from __future__ import annotations

import contextlib
import random
import socket

#: Below those that Linux gives to whoever asks for any (ip_local_port_range): a connection of another test
#: may take one of those between the choice and its use.
CHOICE = range(10_000, 32_000)
HOSTS = ("127.0.0.1", "127.0.0.2")


def free_port() -> int:
    """A port that nobody has at either loopback address, of TCP or UDP."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(CHOICE)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for host in HOSTS:
                    probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
                    probe.bind((host, port))
            return port
