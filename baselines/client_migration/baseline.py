"""``client-migration`` for the registry: the client moves at the moment the server would."""

from __future__ import annotations

import queue
import signal
from typing import Any

import msgspec

from apps.config import SERVER_NAME
from apps.deployment.client_service import LoadClient, client_config
from apps.deployment.quic import Credentials
from apps.deployment.services import AgentService, OrchestratorService
from baselines.addresses import free_address
from baselines.client_migration.client import MovingClientConfig
from baselines.registry import Baseline
from quicferry.errors import MigrationError
from quicferry.events import Event
from quicferry.experiment.context import RunContext, Service
from quicferry.record import PLACE_BY_CLIENT

CHANGE_S = 5.0  # until the client says that it has changed its address


class MovingLoadClient(LoadClient):
    """The client with its second address on the same interface."""

    def __init__(self, context: RunContext, config: MovingClientConfig, address: str) -> None:
        super().__init__(context, config, module="baselines.client_migration.client")
        self._address = address
        self._changed: queue.SimpleQueue[None] = queue.SimpleQueue()

    def start(self) -> None:
        context = self._context
        client, emulator = context.part("client"), context.emulator
        link = context.topology.links_of(client)[0]
        interface = emulator.interface(client, link.name)
        emulator.execute(client, ["ip", "address", "add", self._address, "dev", interface])
        shown = emulator.execute(client, ["ip", "-json", "link", "show", "dev", interface]).stdout
        mac = msgspec.json.decode(shown)[0]["address"]
        # as for all addresses of a topology, so that the first packet does not wait for ARP
        neighbour = link.b if link.a == client else link.a
        if context.topology.addresses_of(neighbour):
            host, _, _ = self._address.partition("/")
            there = emulator.interface(neighbour, link.name)
            argv = ["ip", "neighbour", "replace", host, "lladdr", mac, "dev", there, "nud", "permanent"]
            emulator.execute(neighbour, argv)
        super().start()

    def _heard(self, event: Event) -> None:
        super()._heard(event)
        if event.name == "client.address.changed":
            self._changed.put(None)

    def change_address(self) -> None:
        """Make the client continue from its second address. Raises ``MigrationError`` when it does not."""
        assert self.program is not None
        self.program.process.send_signal(signal.SIGUSR1)
        try:
            self._changed.get(timeout=CHANGE_S)
        except queue.Empty:
            raise MigrationError("the client did not change its address", hint="see client.log") from None


class ClientMigrationDeployment:
    """One edge with a server that stays, and a client with two addresses."""

    def __init__(self, context: RunContext) -> None:
        source, destination = context.part("source"), context.part("destination")
        context.endpoints[destination] = context.service_endpoint(source)  # it stays there
        context.place_by = PLACE_BY_CLIENT
        issue = Credentials(context).issue
        tls = issue(SERVER_NAME)
        client = context.part("client")
        address = free_address(context.topology, client)
        common = msgspec.structs.asdict(client_config(context, tls.authority)) | {"extension": False}
        config = MovingClientConfig(
            **common, first=context.emulator.address(client), second=address.partition("/")[0]
        )
        self._client = MovingLoadClient(context, config, address)
        self.services: list[Service] = [
            AgentService(context, source, [destination], issue(source), tls, plain=True),
            OrchestratorService(context, [source], issue(context.part("orchestrator"))),
            self._client,
        ]

    def move(self) -> dict[str, Any]:
        """Let the client change its address; the server stays."""
        self._client.change_address()
        return {}


BASELINE = Baseline(
    name="client-migration",
    title="client migration",
    summary="Stock QUIC; the client changes its address and the server stays: what RFC 9000 has already.",
    deployment=ClientMigrationDeployment,
    moves=False,
    refuses={
        "inter_edge_mbps": "inter_edge_mbps shapes a link that nothing crosses: the server stays where it is"
    },
)
