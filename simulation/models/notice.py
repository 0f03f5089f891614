"""The model of client and server in one move: who restarts the traffic, when notices and packets are lost?

Steps come from ``quic/tables.py``; what makes a client probe comes from ``strategies.RULES``. The question
is liveness: whatever was lost, can client and server still meet when nothing more is lost?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from quicferry.quic.tables import (
    CLIENT,
    SERVER,
    ClientInput,
    ClientState,
    Machine,
    ServerInput,
    ServerState,
)
from quicferry.strategies import RULES, ProbeOn, Strategy, speaks_first
from simulation.models.explorer import Edge, Model

OLD, NEW, NOWHERE = "old", "new", "nowhere"


class Pair(NamedTuple):
    """Both ends and what is on its way between them."""

    client: ClientState = ClientState.IDLE
    server: ServerState = ServerState.IDLE
    at: str = OLD  # where the server is
    path: str = OLD  # where the client sends to
    mute: bool = False
    noticed: bool = False  # the client has noticed the silence of the old address
    waits: bool = False  # the client waits for an acknowledgement
    heard: bool = False  # the client has heard the server at the new address
    messages: frozenset[str] = frozenset()
    losses: int = 1


def model(strategy: Strategy, server_first: bool, client_asks: bool, losses: int = 1) -> Model[Pair]:
    """``client_asks``: the client has something to send during the move; else it only acknowledges."""
    first = speaks_first(strategy, server_first)
    return Model(
        name=f"{strategy}, {'server' if first else 'client'} first, "
        f"{'requests' if client_asks else 'only acknowledgements'}",
        start=Pair(losses=losses),
        edges=lambda pair: _edges(pair, strategy, first, client_asks),
        wrong=lambda _: None,
        good=lambda pair: pair.at == NEW and pair.path == NEW and not pair.mute,
    )


def _client(pair: Pair, sent: ClientInput) -> ClientState | None:
    machine = Machine(CLIENT, pair.client)
    return machine.feed(sent) if machine.allows(sent) else None


def _server(pair: Pair, sent: ServerInput) -> ServerState:
    return Machine(SERVER, pair.server).feed(sent)


def _edges(pair: Pair, strategy: Strategy, first: bool, client_asks: bool) -> Iterator[Edge[Pair]]:
    yield from _moves(pair, strategy, first)
    yield from _client_acts(pair, strategy, client_asks)
    yield from _arrivals(pair)
    if pair.losses:
        for message in sorted(pair.messages):
            lost = pair._replace(messages=pair.messages - {message}, losses=pair.losses - 1)
            yield Edge(f"{message} is lost", lost, fault=True)


def _moves(pair: Pair, strategy: Strategy, first: bool) -> Iterator[Edge[Pair]]:
    rules = RULES[strategy]
    if pair.server is ServerState.IDLE:
        if rules.notice:
            told = pair._replace(server=_server(pair, ServerInput.PREPARE))
            yield Edge("the server tells its client", told._replace(messages=pair.messages | {"prepare"}))
        else:
            yield Edge("the server is ready", pair._replace(server=_server(pair, ServerInput.NO_NOTICE)))
    elif pair.server in (ServerState.PREPARING, ServerState.READY):
        silent = "" if pair.server is ServerState.READY else ", with no answer of its client"
        frozen = pair._replace(server=_server(pair, ServerInput.HOLD), at=NOWHERE)
        yield Edge(f"the server is frozen{silent}", frozen)
    elif pair.server is ServerState.FROZEN:
        there = pair._replace(server=_server(pair, ServerInput.RESUME), at=NEW, mute=not first)
        yield Edge("the server runs at its new address", there)
    elif pair.at == NEW and pair.mute:
        yield Edge("the server has been mute for one PTO", pair._replace(mute=False))
    elif pair.at == NEW and not pair.mute and not pair.heard:
        yield Edge("the server sends from there", pair._replace(messages=pair.messages | {"from there"}))


def _client_acts(pair: Pair, strategy: Strategy, client_asks: bool) -> Iterator[Edge[Pair]]:
    if client_asks and not pair.waits and pair.path == OLD:
        yield Edge("the client asks", pair._replace(waits=True))
    if pair.waits and pair.at != OLD and not pair.noticed and pair.path == OLD:
        noticed = pair._replace(noticed=True)
        yield Edge("the client notices the silence", noticed)
    probes = _client(pair, ClientInput.PROBE)
    announced = pair.client is ClientState.ANNOUNCED
    rules = RULES[strategy]
    wants = (
        (announced and rules.probe_on is ProbeOn.NOTICE)
        or (announced and rules.probe_on is ProbeOn.LOSS and pair.noticed)
        or (rules.pool and pair.noticed and pair.client is ClientState.IDLE)
        or pair.heard
    )
    if wants and probes is not None and pair.path == OLD and pair.client is not ClientState.PROBING:
        yield Edge("the client begins to probe", pair._replace(client=probes))
    if pair.client is ClientState.PROBING and pair.path == OLD:
        yield Edge("the client probes", pair._replace(messages=pair.messages | {"challenge"}))
    if pair.client is ClientState.VALIDATED:
        switched = _client(pair, ClientInput.SWITCH)
        assert switched is not None
        yield Edge("the client switches", pair._replace(client=switched, path=NEW))


def _arrivals(pair: Pair) -> Iterator[Edge[Pair]]:
    for message in sorted(pair.messages):
        rest = pair._replace(messages=pair.messages - {message})
        if message == "prepare":
            announced = _client(pair, ClientInput.NOTICE)
            if announced is not None and pair.client is ClientState.IDLE:
                heard = rest._replace(client=announced, messages=rest.messages | {"ready"})
                yield Edge("the client hears of the move", heard)
        elif message == "ready" and pair.at == OLD and pair.server is ServerState.PREPARING:
            ready = rest._replace(server=_server(pair, ServerInput.ANSWER_OK))
            yield Edge("the server hears that the client is ready", ready)
        elif message == "from there":
            yield Edge("the client hears the server there", rest._replace(heard=True))
        elif message == "challenge" and pair.at == NEW:
            yield Edge(
                "the server answers the challenge",
                rest._replace(mute=False, messages=rest.messages | {"response"}),
            )
        elif message == "response" and pair.client is ClientState.PROBING:
            valid = _client(pair, ClientInput.RESPONSE)
            assert valid is not None
            yield Edge("the client's path is validated", rest._replace(client=valid))
