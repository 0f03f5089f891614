"""A TCP connection between two edge hosts that is there before either CRIU is: each is given its end.

For the engines that do as the published procedure does. CRIU by itself listens when it has dumped, and makes
its pipes when somebody has connected, which is too late for ``page_server.set_up_pipes``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from quicferry.errors import MigrationError

PORT = 7001
MEET_S = (
    20.0  # both ends get ready at the same time, and either may take seconds on a machine with other work
)
AGAIN_S = 0.02


class MeetingPoint:
    """One end. At the source ``expect``, then ``met``; at the destination ``reach``, then ``take``."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._expected = ""

    def expect(self, address: str) -> None:
        """Listen for a connection from that address. Raises ``MigrationError``."""
        self.close()
        self._expected = address
        try:
            self._listener = socket.create_server(("", PORT), family=_family(address), backlog=4)
        except OSError as error:
            raise MigrationError(f"the port {PORT} for CRIU's page server cannot be had: {error}") from error
        self._listener.setblocking(False)

    async def met(self) -> socket.socket:
        """The connection; who calls has it then. Raises ``MigrationError`` when none comes in time."""
        if self._listener is None:
            raise MigrationError("no connection for CRIU's page server is expected")
        try:
            async with asyncio.timeout(MEET_S):
                while True:
                    connection, peer = await asyncio.get_running_loop().sock_accept(self._listener)
                    if peer[0] == self._expected:
                        return connection
                    connection.close()
        except TimeoutError as error:
            raise MigrationError("CRIU's daemon at the destination does not call") from error
        finally:
            self.close()

    async def reach(self, address: str) -> None:
        """Connect to the other end, which may not be there yet. Raises ``MigrationError``."""
        self.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(MEET_S):
                while self._connection is None:
                    connection = socket.socket(_family(address), socket.SOCK_STREAM)
                    connection.setblocking(False)
                    try:
                        await loop.sock_connect(connection, (address, PORT))
                    except ConnectionRefusedError:
                        connection.close()
                        await asyncio.sleep(AGAIN_S)
                    except BaseException:
                        connection.close()
                        raise
                    else:
                        self._connection = connection
        except (OSError, TimeoutError) as error:
            why = str(error) or f"nobody listens within {MEET_S:g} s"
            raise MigrationError(f"CRIU's page server at {address} cannot be reached: {why}") from error

    def take(self) -> socket.socket | None:
        """The connection that ``reach`` made; who calls has it then."""
        connection, self._connection = self._connection, None
        return connection

    def close(self) -> None:
        """Close what is open here."""
        for file in (self._listener, self._connection):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._listener = self._connection = None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
