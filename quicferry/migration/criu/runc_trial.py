"""Judge runc or Podman by doing: start, checkpoint and restore a small OCI container, and ask for an answer.

Run as ``python -m quicferry.migration.criu.runc_trial runc|podman`` in network, mount and PID namespaces of
its own, as the probes ``oci`` and ``podman`` start it. Prints one JSON object: empty when the
container answers after its restore, else with the keys ``error`` and ``hint``.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from quicferry.errors import FerryError, MigrationError
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.container.podman_container import PodmanContainer
from quicferry.migration.criu.podman import Podman
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


async def runc_and_box() -> tuple[Runc, OciContainer]:
    """A container for runc. Raises ``FerryError``."""
    box = await OciContainer.make("probe")
    return Runc(box), box


async def podman_and_box() -> tuple[Runc, OciContainer]:
    """A container for Podman. Raises ``FerryError``."""
    box = await PodmanContainer.make("probe")
    return Podman(box), box


async def check(make: Callable[[], Awaitable[tuple[Runc, OciContainer]]]) -> None:
    """Start a container, checkpoint, end and restore it, and compare its answers. Raises ``FerryError``."""
    run(["ip", "link", "set", "lo", "up"])
    tool, box = await make()
    try:
        child = CHILD.replace("PORT", str(PORT))
        pid = await box.start([sys.executable, "-S", "-E", "-c", child], env={})
        before = await answer(STEP_S)
        await tool.warm_up(IMAGES)
        await tool.ready_to_dump(IMAGES, memory=True)
        await box.halt(pid)
        await tool.dump(pid, IMAGES, timeout_s=STEP_S)
        await box.stop_service(grace_s=0)
        await tool.restore(IMAGES, timeout_s=STEP_S)
        if await answer(2.0) <= before:
            raise MigrationError("the container forgot what it knew before its checkpoint")
    finally:
        await box.close()


def main() -> None:
    """Run the trial and print its result as JSON."""
    told: dict[str, str | None] = {}
    try:
        asyncio.run(check(podman_and_box if sys.argv[1:] == ["podman"] else runc_and_box))
    except FerryError as error:
        told = {"error": str(error), "hint": error.hint}
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")


if __name__ == "__main__":
    main()
