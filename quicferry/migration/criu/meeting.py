"""A TCP connection between two edge hosts that is there before either CRIU is: each is given its end.

For the engines that do as the published procedure does. CRIU by itself listens when it has dumped, and makes
its pipes when somebody has connected, which is too late for ``page_server.set_up_pipes``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from quicferry.errors import MigrationError

PORT = 7001
MEET_S = 30.0  # the destination may be ready long before the source is told of the move
AGAIN_S = 0.05


class MeetingPoint:
    """One end. At the source ``expect``, then ``met``; at the destination ``reach``, then ``reached``."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._reaching: asyncio.Task[socket.socket] | None = None
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

    def reach(self, address: str) -> None:
        """Begin to connect to the other end, which may not be there yet."""
        self.close()
        self._reaching = asyncio.create_task(_reach(address))

    async def reached(self) -> socket.socket:
        """The connection; who calls has it then. Raises ``MigrationError`` when there is none in time."""
        reaching, self._reaching = self._reaching, None
        if reaching is None:
            raise MigrationError("no connection to CRIU's page server was begun")
        return await reaching

    def close(self) -> None:
        """Close what is open here."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        reaching, self._reaching = self._reaching, None
        if reaching is not None and not reaching.cancel() and reaching.exception() is None:
            reaching.result().close()


async def _reach(address: str) -> socket.socket:
    """Connect to the source. Raises ``MigrationError``."""
    try:
        async with asyncio.timeout(MEET_S):
            while True:
                connection = socket.socket(_family(address), socket.SOCK_STREAM)
                connection.setblocking(False)
                try:
                    await asyncio.get_running_loop().sock_connect(connection, (address, PORT))
                except ConnectionRefusedError:
                    connection.close()
                    await asyncio.sleep(AGAIN_S)
                except BaseException:
                    connection.close()
                    raise
                else:
                    return connection
    except (OSError, TimeoutError) as error:
        why = str(error) or f"nobody listens within {MEET_S:g} s"
        raise MigrationError(f"CRIU's page server at {address} cannot be reached: {why}") from error


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
