"""The name server and the updater as services of a deployment, and what the client's resolver is told."""

from __future__ import annotations

import base64
import queue
import random
import secrets
from pathlib import Path

import msgspec

from apps.deployment.replies import Replies
from baselines.dns.config import DNS_PORT, NameServerConfig, ResolverConfig, UpdaterConfig, kind_of
from baselines.dns.updater import Update
from quicferry.errors import FerryError, MigrationError
from quicferry.experiment.context import Program, RunContext
from quicferry.model import Endpoint

UPDATE_S = 10.0


def make_key(context: RunContext) -> Path:
    """A fresh TSIG secret, in a file among the run's credentials, which are deleted at its end."""
    context.credentials.mkdir(mode=0o700, exist_ok=True)
    path = context.credentials / "tsig.key"
    path.touch(mode=0o600)
    path.write_text(base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
    return path


def resolver_config(context: RunContext) -> ResolverConfig:
    """The client's resolver; where in the record's life the run begins is drawn from the seed."""
    spec = context.spec
    return ResolverConfig(
        server=Endpoint(context.emulator.address(context.part("dns")), DNS_PORT),
        kind=kind_of(context.service_endpoint(context.part("source")).host),
        warm=spec.dns_cache == "warm",
        age_share=random.Random(f"dns-cache:{spec.seed}").random(),
    )


class NameServer:
    """BIND on the DNS host."""

    name = "nameserver"

    def __init__(self, context: RunContext, key: Path) -> None:
        self._context = context
        self._key = key
        self._started: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        host = context.part("dns")
        config = NameServerConfig(
            vantage=host,
            listen=context.emulator.address(host),
            address=context.service_endpoint(context.part("source")).host,
            ttl_s=context.spec.dns_ttl_s,
            key=str(self._key),
            other_address=context.topology.other_service_addresses.get(context.part("source"), ""),
        )
        argv = context.module("baselines.dns.nameserver", context.write_config(self.name, config))
        self.program = context.start(self.name, host, ["unshare", "--mount", *argv], self._line)

    def _line(self, line: bytes) -> None:
        event = self._context.collect_line(line)
        if event is not None and event.name == "dns.started":
            self._started.put(None)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        waited_s = 0.0
        while waited_s < timeout_s:
            try:
                self._started.get(timeout=0.1)
            except queue.Empty:
                waited_s += 0.1
                if self.program.process.poll() is None:
                    continue
                break
            return
        raise FerryError(
            f"the name server did not start: {self.program.last_words()}",
            hint="see nameserver.log in the run directory; `quicferry doctor --only dns` tries it out",
        )

    def stop(self) -> None:
        if self.program is not None:
            self.program.end()


class NameUpdater:
    """The process at the orchestrator's host that tells the name server of a move."""

    name = "updater"

    def __init__(self, context: RunContext, key: Path) -> None:
        self._context = context
        self._key = key
        self.replies = Replies(context)
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        host = context.part("orchestrator")
        config = UpdaterConfig(
            vantage=host,
            server=Endpoint(context.emulator.address(context.part("dns")), DNS_PORT),
            ttl_s=context.spec.dns_ttl_s,
            key=str(self._key),
        )
        argv = context.module("baselines.dns.updater", context.write_config(self.name, config))
        self.program = context.start(self.name, host, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        self.replies.wait(self.program, {"ready"}, timeout_s)

    def update(self, address: str, other_address: str = "") -> None:
        """Change the record, with dual stack both. Raises ``MigrationError`` when that is refused."""
        if self.program is None:
            raise MigrationError("the updater does not run")
        self.program.tell(msgspec.json.encode(Update(address=address, other_address=other_address)))
        self.replies.wait(self.program, {"updated"}, UPDATE_S)

    def stop(self) -> None:
        if self.program is not None:
            self.program.end()
