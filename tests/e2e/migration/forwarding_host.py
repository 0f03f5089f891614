"""One host of the forwarding test: obeys one JSON command per line on stdin, answers one per line.

python forwarding_host.py source|destination|client
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

from quicferry.migration.datagrams import forwarder
from quicferry.migration.datagrams.forwarder import Forwarder
from quicferry.migration.datagrams.icmp import hold_back_port_unreachable
from quicferry.migration.datagrams.waiting_room import WaitingRoom
from quicferry.model import Endpoint
from quicferry.units import NS_PER_MS

PORT = 4433
# a busy machine looks like one that does not look back far enough
forwarder.LOOK_BACK_NS = 500 * NS_PER_MS


class Source:
    def __init__(self) -> None:
        self.forwarder = Forwarder(["client"], PORT)

    def open(self) -> None:
        self.forwarder.open()

    def start(self) -> None:
        self.forwarder.start(Endpoint("10.0.90.2", 4436))

    def close(self) -> dict[str, int]:
        self.forwarder.close()
        return {"forwarded": self.forwarder.forwarded, "dropped": self.forwarder.dropped}


class Destination:
    def __init__(self) -> None:
        self.room = WaitingRoom(
            Endpoint("10.0.90.2", 4436), ["10.0.90.1"], Endpoint("10.0.2.2", PORT), ["client"], capacity=8
        )
        self.seen: list[tuple[str, int, str, float]] = []

    def silence(self) -> None:
        hold_back_port_unreachable(PORT)

    def prepare(self, await_client: bool = False) -> None:
        self.room.prepare(await_client=await_client)

    def serve(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(("0.0.0.0", PORT))
        asyncio.get_running_loop().add_reader(self.socket, self.read)

    def read(self) -> None:
        data, sender = self.socket.recvfrom(2048)
        name, _, sent = data.partition(b" ")
        late_ms = (time.monotonic_ns() - int(sent)) / 1e6
        self.seen.append((sender[0], sender[1], name.decode(), late_ms))
        self.socket.sendto(b"reply to " + name, sender)

    def open(self) -> int:
        return self.room.open()

    def report(self) -> dict[str, Any]:
        room = self.room
        counters = {name: getattr(room, name) for name in ("handed_on", "early", "replayed", "passed")}
        return {"seen": self.seen, **counters}


class Client:
    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("0.0.0.0", 50000))
        self.socket.settimeout(1.0)

    def send(self, to: str, name: str, port: int = PORT, padding: int = 0) -> None:
        # padding in front of the stamp: int() takes leading spaces
        stamp = str(time.monotonic_ns()).encode()
        self.socket.sendto(name.encode() + b" " + b" " * padding + stamp, (to, port))

    def replies(self, count: int) -> list[list[Any]]:
        return sorted(
            [data.decode(), sender[0]] for data, sender in (self.socket.recvfrom(2048) for _ in range(count))
        )

    def knock(self, to: str) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected:
            connected.settimeout(0.3)
            connected.connect((to, PORT))
            connected.send(b"knock 0")
            try:
                connected.recv(10)
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silent"
            return "answered"


async def main(part: str) -> None:
    host = {"source": Source, "destination": Destination, "client": Client}[part]()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        name, *arguments = json.loads(line)
        answer = getattr(host, name)(*arguments)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
