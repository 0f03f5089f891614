"""The server that the CRIU tests move: stands for the real one, with the same sockets and a loop.

``criu_server.py MIB [obstacles]``: holds MIB of random memory, and with the obstacle ``writes`` gives a
page of it new contents every 10 ms. Answers datagrams at port 4433 with
JSON about itself, and orders at 127.0.0.1:4434. An obstacle is something that CRIU cannot dump; with
``threads-16`` it has so many threads besides, with ``child`` a child process, all of which do something. With
``daemon`` a process of its own is no descendant of it any more; with ``locked`` a page of it is locked.
"""

import asyncio
import ctypes
import hashlib
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time

from quicferry.migration.control import Abort, ControlServer, Freeze, Order, Resume, Stop

MIB = int(sys.argv[1])
OBSTACLES = sys.argv[2].split() if len(sys.argv) > 2 else []


class Threads:
    """Threads that count, each in memory of its own."""

    def __init__(self, number: int) -> None:
        self.counts = [0] * number
        for place in range(number):
            threading.Thread(target=self.count, args=(place,), daemon=True).start()

    def count(self, place: int) -> None:
        own = bytearray(os.urandom(1 << 16))
        whole = hashlib.sha256(own).digest()
        while hashlib.sha256(own).digest() == whole:
            self.counts[place] += 1
            time.sleep(0.1)


class Child:
    """A child process with memory of its own, which it hashes when it is asked."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.ours.close()
            memory = os.urandom(4 << 20)
            asked = 0
            while theirs.recv(1):
                asked += 1
                theirs.send(f"{os.getpid()} {asked} {hashlib.sha256(memory).hexdigest()}".encode())
            os._exit(0)
        theirs.close()

    def ask(self) -> str:
        self.ours.send(b"?")
        return self.ours.recv(200).decode()


CHILD = Child() if "child" in OBSTACLES else None
NUMBERS = [int(word.removeprefix("threads-")) for word in OBSTACLES if word.startswith("threads-")]
THREADS = Threads(*NUMBERS) if NUMBERS else None
if "locked" in OBSTACLES:
    LOCKED = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(LOCKED))
    assert ctypes.CDLL(None).mlock(ctypes.c_void_p(address), mmap.PAGESIZE) == 0
if "daemon" in OBSTACLES:
    subprocess.run(["sh", "-c", "sleep 600 &"], check=True)


class Service(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.memory = bytearray(os.urandom(MIB << 20))
        self.requests = 0
        self.latest = b""
        self.ticks = 0
        self.written = 0
        self.frozen = False
        self.orders: list[str] = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        if self.frozen:
            return
        if data != self.latest:  # a repeated request is one request
            self.requests, self.latest = self.requests + 1, data
        answer = {
            "pid": os.getpid(),
            "requests": self.requests,
            "ticks": self.ticks,
            "written": self.written,
            "t_ns": time.monotonic_ns(),
            "loop_s": asyncio.get_running_loop().time(),
            "orders": self.orders,
            "sha256": hashlib.sha256(self.memory).hexdigest(),
            "threads": THREADS.counts if THREADS else [],
            "child": CHILD.ask() if CHILD else "",
        }
        self.transport.sendto(json.dumps(answer).encode(), addr)

    async def obey(self, order: Order) -> dict[str, object]:
        self.orders.append(type(order).__name__)
        match order:
            case Freeze():
                self.frozen = True
            case Resume() | Abort():
                self.frozen = False
            case Stop():
                asyncio.get_running_loop().call_later(0.01, sys.exit)
        return {"t_ns": time.monotonic_ns()}


async def main() -> None:
    loop = asyncio.get_running_loop()
    service = Service()
    await loop.create_datagram_endpoint(lambda: service, local_addr=("0.0.0.0", 4433))
    await loop.create_datagram_endpoint(lambda: ControlServer(service.obey), local_addr=("127.0.0.1", 4434))
    kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) if "mptcp" in OBSTACLES else None
    sys.stdout.write(f"serving {kept}\n")
    sys.stdout.flush()
    while True:
        await asyncio.sleep(0.01)
        service.ticks += 1
        if "writes" in OBSTACLES and not service.frozen:
            start = service.ticks * 4096 % len(service.memory)
            service.memory[start : start + 4096] = os.urandom(4096)
            service.written += 1


asyncio.run(main())
