"""Judge runc by doing: start, checkpoint and restore a small OCI container, and ask it for an answer.

Run as ``python -m quicferry.migration.criu.runc_trial`` in network, mount and PID namespaces of its own, as
the probe ``oci`` starts it. Prints one JSON object: empty when the
container answers after its restore, else with the keys ``error`` and ``hint``.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import msgspec

from quicferry.errors import FerryError, MigrationError
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.criu.runc import Runc
from quicferry.process import run

IMAGES = Path("/run/images")
PORT = 4000
STEP_S = 10.0
ASK_S = 0.02

#: Answers every datagram with the number of those before.
CHILD = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", PORT))
count = 0
while True:
    _, who = s.recvfrom(100)
    count += 1
    s.sendto(str(count).encode(), who)
"""


async def answer(within_s: float) -> int:
    """Ask the child until it answers. Raises ``MigrationError`` when it is silent for ``within_s``."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(("127.0.0.1", PORT))
        deadline = loop.time() + within_s
        while loop.time() < deadline:
            try:
                client.send(b"?")
                return int(await asyncio.wait_for(loop.sock_recv(client, 100), ASK_S))
            except OSError:  # nobody listens yet, or a time-out, which is an OSError, too
                await asyncio.sleep(ASK_S)
    raise MigrationError("the container does not answer")


async def check() -> None:
    """Start a container, checkpoint, end and restore it, and compare its answers. Raises ``FerryError``."""
    run(["ip", "link", "set", "lo", "up"])
    box = await OciContainer.make("probe")
    try:
        runc = Runc(box)
        child = CHILD.replace("PORT", str(PORT))
        pid = await box.start([sys.executable, "-S", "-E", "-c", child], env={})
        before = await answer(STEP_S)
        await runc.warm_up(IMAGES)
        await runc.dump(pid, IMAGES, timeout_s=STEP_S)
        await box.stop_service(grace_s=0)
        await runc.restore(IMAGES, timeout_s=STEP_S)
        if await answer(2.0) <= before:
            raise MigrationError("the container forgot what it knew before its checkpoint")
    finally:
        await box.close()


def main() -> None:
    """Run the trial and print its result as JSON."""
    told: dict[str, str | None] = {}
    try:
        asyncio.run(check())
    except FerryError as error:
        told = {"error": str(error), "hint": error.hint}
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")


if __name__ == "__main__":
    main()
