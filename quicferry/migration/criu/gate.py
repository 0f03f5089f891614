"""Stands where runc looks for CRIU, and has CRIU wait at a gate before a dump or a restore.

runc starts, reads its state, asks CRIU for its version and its features, and only then for the dump or
the restore: 100 ms and more, of which nothing depends on the server standing still, or on its images. So the
agent starts runc before the downtime. This program takes CRIU's place whenever runc calls; it looks at the
request that waits in the socket, and where that is a dump or a restore, it tells the agent so and waits for
its word.

Without a word (the agent has closed the gate, or was killed) it ends with status 1, and runc cleans up.

``python -I -S gate.py CRIU GATE swrk DESCRIPTOR``: only the standard library, and little of it.
"""

from __future__ import annotations

import os
import socket
import sys

#: ``criu_req_type`` of CRIU's rpc.proto: DUMP and RESTORE; the type is the first field of a request.
HELD_BACK = (b"\x08\x01", b"\x08\x02")
GO = b"g"


def is_held_back(request: int) -> bool:
    """Whether the request that waits in the socket with that descriptor is one to wait with."""
    with socket.socket(fileno=os.dup(request)) as connection:
        return connection.recv(2, socket.MSG_PEEK) in HELD_BACK


def wait_for_word(gate: str) -> bool:
    """Tell the agent that CRIU is about to begin; whether it may."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(gate)
            return connection.recv(1) == GO
        except OSError:
            return False


def main() -> None:
    """Wait if that is called for, then become CRIU."""
    criu, gate, *words = sys.argv[1:]
    if words[:1] == ["swrk"] and is_held_back(int(words[1])) and not wait_for_word(gate):
        sys.exit(1)
    os.execv(criu, [criu, *words])  # noqa: S606 - it is what this program is for


if __name__ == "__main__":
    main()
