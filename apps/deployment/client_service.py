"""The client of a run, as a service of a deployment: its configuration, its start and its orderly end."""

from __future__ import annotations

import queue

import msgspec

from apps.client.multi_client import TOLD, one_in_turn, sum_up
from apps.config import ClientConfig
from quicferry.errors import MigrationError
from quicferry.events import Event
from quicferry.experiment.context import Program, RunContext
from quicferry.process import TimeoutExpired
from quicferry.quic import Congestion, Probing
from quicferry.record import ClientSummary, write_json
from quicferry.slowness import longer
from quicferry.spec import RunSpec
from quicferry.strategies import Carrier, StrategyName, rules_of, strategies
from quicferry.units import BYTES_PER_MIB

ANSWER_S = 20.0  # a request for a move is lost and sent again a few times at most
PATIENCE_S = 15.0  # how long a client waits at the end for what is still open
PATIENCE_RTTS = 5  # besides: a request that was lost twice


def patience_of_path_s(context: RunContext) -> float:
    """How much longer clients are patient, as their path is long."""
    return PATIENCE_RTTS * context.longest_rtt_ms / 1e3


def client_config(context: RunContext, authority: str) -> ClientConfig:
    """The configuration of every client of a run; the file for its TLS secrets is made."""
    spec = context.spec
    context.paths.keys.touch(mode=0o600)
    return ClientConfig(
        server=context.service_endpoint(context.part("source")),
        authority=authority,
        keys=str(context.paths.keys),
        summary=str(context.paths.client),
        workload=spec.workload,
        bit_rate_mbps=spec.bit_rate_mbps,
        own_load=spec.load == "own",
        interval_ms=spec.interval_ms,
        request_bytes=spec.request_bytes,
        download_bytes=round(spec.download_mib * BYTES_PER_MIB),
        upload_bytes=round(spec.upload_mib * BYTES_PER_MIB),
        seed=spec.seed,
        congestion=Congestion(spec.congestion),
        probing=Probing(spec.probing),
        clients=spec.clients,
        plain_clients=spec.plain_clients,
        mixed_strategies=spec.mixed_strategies,
        patience_s=PATIENCE_S + patience_of_path_s(context),
        strategies=strategies_in(spec),
    )


def strategies_in(spec: RunSpec) -> tuple[StrategyName, ...]:
    """What client and server of a run can do: all; a standard is run without the extension beside it.

    Clients of which each has one strategy get none that cannot carry all moves of the run: to a preferred
    address a client goes once.
    """
    if spec.mixed_strategies and spec.moves > 1:
        return tuple(each for each in strategies() if rules_of(each).carrier is not Carrier.PREFERRED_ADDRESS)
    if rules_of(spec.strategy).extended or spec.mixed_strategies:
        return tuple(strategies())
    return (spec.strategy,)


class LoadClient:
    """The client and its load."""

    name: str = "client"

    def __init__(
        self,
        context: RunContext,
        config: ClientConfig,
        *,
        module: str = "apps.client.client",
        connections: int = 1,
        host: str | None = None,
        number: int = 0,
    ) -> None:
        if number > 1:
            self.name = f"client-{number}"
        self._host = host if host is not None else context.part("client")
        self._number = number
        self._context = context
        self._config = config
        self._module = module
        self._connections = connections
        self._connected: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        argv = context.module(self._module, context.write_config(self.name, self._config))
        self.program = context.start(self.name, self._host, argv, self._line)

    def _line(self, line: bytes) -> None:
        event = self._of_one_among_many(line) if self._number else self._context.collect_line(line)
        if event is not None:
            self._heard(event)

    def _of_one_among_many(self, line: bytes) -> Event | None:
        """Take in an event with the client's number; of later clients only those that are told of many."""
        try:
            event = msgspec.json.decode(line, type=Event)
        except msgspec.DecodeError:
            return None
        if self._number == 1 or event.name in TOLD:
            detail = {**event.detail, "client": self._number}
            self._context.collect(msgspec.structs.replace(event, detail=detail))
        return event

    def _heard(self, event: Event) -> None:
        if event.name == "client.connected":
            self._connected.put(None)
        elif event.name == "client.move.answered":
            self._answered.put(str(event.detail.get("reply")))

    def ask_for_move(self) -> None:
        """Have the client ask the server to move. Raises ``MigrationError`` when that does not accept."""
        assert self.program is not None
        while not self._answered.empty():
            self._answered.get()
        self.program.tell(b"ask")
        try:
            reply = self._answered.get(timeout=longer(ANSWER_S))
        except queue.Empty:
            raise MigrationError(
                f"the client's request for a move was not answered within {ANSWER_S:g} s",
                hint="see client.log",
            ) from None
        if reply != "accepted":
            raise MigrationError(
                f"the server did not accept the client's request for a move: {reply}",
                hint="ask again later, or let the orchestrator decide: --trigger orchestrator",
            )

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        try:
            for _ in range(self._connections):
                self._connected.get(timeout=timeout_s)
        except queue.Empty:
            raise MigrationError(
                f"the client did not connect: {self.program.last_words()}",
                hint=f"see {self.program.log.name} in the run directory",
            ) from None

    def tell_to_stop(self) -> None:
        """Let it end its load, without waiting for it."""
        if self.program is not None:
            self.program.tell(b"stop")

    def stop(self) -> None:
        """Tell it to stop; it waits for open requests and writes its summary."""
        if self.program is None:
            return
        self.program.tell(b"stop")
        try:
            status = self.program.wait(self._context.patience_s(self._config.end_s))
        except TimeoutExpired:
            self.program.end()
            raise MigrationError("the client did not end in good order", hint="see client.log") from None
        if status != 0:
            raise MigrationError(f"the client failed: {self.program.last_words()}", hint="see client.log")


def clients_of(context: RunContext, config: ClientConfig, *, module: str) -> LoadClient | ClientsApart:
    """The client of a run, or its many clients as so many processes."""
    if config.clients == 1:
        return LoadClient(context, config, module=module)
    return ClientsApart(context, config, module=module)


class ClientsApart:
    """Many clients, each a process, on hosts of their own if the topology has them.

    Together they are one service of a deployment.
    """

    name = "client"

    def __init__(
        self,
        context: RunContext,
        config: ClientConfig,
        *,
        module: str = "apps.client.client",
    ) -> None:
        hosts = context.topology.clients
        if len(hosts) == 1:
            hosts *= config.clients
        self._context = context
        self._summaries = [
            context.paths.root / f"client-{number}.json" for number in range(1, config.clients + 1)
        ]
        replace = msgspec.structs.replace
        shared_ms = config.interval_ms * config.clients
        self._clients = [
            LoadClient(
                context,
                replace(
                    config,
                    session=f"client-{number}",
                    summary=str(summary),
                    seed=config.seed + number,
                    interval_ms=config.interval_ms if config.own_load else shared_ms,
                    strategies=(
                        one_in_turn(config.strategies, number)
                        if config.mixed_strategies
                        else config.strategies
                    ),
                ),
                module=module,
                host=host,
                number=number,
            )
            for number, (host, summary) in enumerate(zip(hosts, self._summaries, strict=True), 1)
        ]

    @property
    def program(self) -> Program | None:
        """The process of the first client."""
        return self._clients[0].program

    def ask_for_move(self) -> None:
        """Let the first client ask its server to move."""
        self._clients[0].ask_for_move()

    def start(self) -> None:
        for client in self._clients:
            client.start()

    def wait_ready(self, timeout_s: float) -> None:
        for client in self._clients:
            client.wait_ready(timeout_s)

    def stop(self) -> None:
        """End all of them, and sum their summaries up."""
        for client in self._clients:
            client.tell_to_stop()
        problems: list[MigrationError] = []
        for client in self._clients:
            try:
                client.stop()
            except MigrationError as error:
                problems.append(error)
        written = [path for path in self._summaries if path.is_file()]
        summaries = [msgspec.json.decode(path.read_bytes(), type=ClientSummary) for path in written]
        if summaries:
            write_json(self._context.paths.client, sum_up(summaries))
        if problems:
            raise problems[0]
