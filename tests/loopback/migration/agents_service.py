"""A service for the agents' tests: it has a state, obeys control orders, and speaks no QUIC.

python agents_service.py EDGE CONTROL_PORT EVENTS [--standby] [--break ORDER]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.migration import control
from quicferry.units import now_ns


class Service:
    def __init__(self, edge: str, events: EventLog, *, standby: bool, broken: str | None) -> None:
        self.edge = edge
        self.events = events
        self.standby = standby
        self.broken = broken
        self.state = b"" if standby else b"what must survive"
        self.stopped = asyncio.Event()

    async def obey(self, order: control.Order) -> dict[str, Any]:
        return self._obey(order)

    def _obey(self, order: control.Order) -> dict[str, Any]:
        if type(order).__name__.lower() == self.broken:
            raise MigrationError("this order is broken here")
        t_ns = now_ns()
        match order:
            case control.Prepare():
                self.events.emit("server.prepare.sent", epoch=order.epoch)
                return {"ready": 1, "refused": 0, "silent": 0}
            case control.Freeze():
                self.events.emit("server.frozen", t_ns=t_ns, epoch=order.epoch)
                assert order.state_path is not None
                descriptor = os.open(order.state_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self.state)
                return {"t_ns": t_ns, "sha256": hashlib.sha256(self.state).hexdigest()}
            case control.Import():
                self.state = Path(order.state_path).read_bytes() if order.state is None else order.state
                assert hashlib.sha256(self.state).hexdigest() == order.sha256
                self.standby = False
                self.events.emit("server.resumed", epoch=order.epoch, edge=order.edge)
                return {"t_ns": now_ns(), "connections": 0}
            case control.Abort():
                self.events.emit("server.aborted", epoch=order.epoch, reason=order.reason)
            case control.Stop():
                self.stopped.set()
        return {"t_ns": t_ns, "standby": self.standby, "state": self.state.decode(), "pid": os.getpid()}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("edge")
    parser.add_argument("control_port", type=int)
    parser.add_argument("events", type=Path)
    parser.add_argument("--standby", action="store_true")
    parser.add_argument("--break", dest="broken")
    given = parser.parse_args()
    service = Service(
        given.edge, EventLog(given.edge, given.events), standby=given.standby, broken=given.broken
    )
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: control.ControlServer(service.obey), local_addr=("127.0.0.1", given.control_port)
    )
    service.events.emit("server.started", pid=os.getpid(), standby=given.standby)
    await service.stopped.wait()
    await asyncio.sleep(0.05)  # the answer leaves first
    service.events.emit("server.stopped")
    transport.close()


if __name__ == "__main__":
    asyncio.run(main())
