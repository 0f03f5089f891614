"""Orders to a server in another network namespace, from a thread that runs no event loop."""

from __future__ import annotations

import secrets
import socket
import time
from typing import Any

import msgspec

from quicferry.emulation.sandbox.namespaces import network_of
from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.model import Endpoint


class Orders:
    """As ``control.ControlClient``, blocking, to a server in the network namespace of a process."""

    def __init__(self, pid: int, server: Endpoint) -> None:
        with network_of(pid):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server = (server.host, server.port)

    def ask(self, order: control.Order, timeout_s: float) -> dict[str, Any]:
        """Give an order and return the answer's detail. Raises ``MigrationError``."""
        number = secrets.randbits(53)
        data = msgspec.json.encode(control.Envelope(number, order))
        deadline = time.monotonic() + timeout_s
        self._socket.settimeout(control.REPEAT_S)
        while time.monotonic() < deadline:
            try:
                self._socket.sendto(data, self._server)
                answer = msgspec.json.decode(self._socket.recv(65_535), type=control.Answer)
            except (TimeoutError, ConnectionError):
                continue
            if answer.number != number:
                continue
            if answer.error is not None:
                raise MigrationError(f"the server refuses: {answer.error}")
            return answer.detail
        raise MigrationError(f"the server did not answer {type(order).__name__} in {timeout_s:g} s")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
