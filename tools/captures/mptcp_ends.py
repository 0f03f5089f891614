"""A server and a client of the kernel's MPTCP, for tools/make_captures.py: an echo of 30,000 bytes, twice."""

from __future__ import annotations

import socket
import sys
import time

MPTCP = 262
ADDRESS = ("127.0.0.1", 4433)


def _answer(connection: socket.socket) -> None:
    while data := connection.recv(65_536):
        connection.sendall(data)


if sys.argv[1] == "server":
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as listener:
        listener.bind(("0.0.0.0", ADDRESS[1]))
        listener.listen()
        accepted, _ = listener.accept()
        with accepted:
            _answer(accepted)
else:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as client:
        client.connect(ADDRESS)
        for _ in range(2):
            client.sendall(bytes(30_000))
            got = 0
            while got < 30_000:
                got += len(client.recv(65_536))
            time.sleep(0.3)  # time for the second subflow to join
