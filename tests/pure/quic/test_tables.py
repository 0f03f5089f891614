"""The state machines: complete, connected, and the picture of them is current."""

from __future__ import annotations

import importlib.util

import pytest

from quicferry.paths import CHECKOUT
from quicferry.quic.errors import LocalError
from quicferry.quic.tables import (
    CLIENT,
    SERVER,
    ClientInput,
    ClientState,
    Machine,
    ServerInput,
    ServerState,
)

MACHINES = [(CLIENT, ClientState, ClientInput), (SERVER, ServerState, ServerInput)]


@pytest.mark.parametrize(("table", "states", "inputs"), MACHINES)
def test_every_state_is_reached_and_left_and_every_input_used(table, states, inputs):
    assert {state for state, _ in table} == set(states)
    assert {sent for _, sent in table} == set(inputs)
    seen, todo = set(), [next(iter(states))]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += [reached for (at, _), reached in table.items() if at is state]
    assert seen == set(states)


@pytest.mark.parametrize(("table", "states", "inputs"), MACHINES)
def test_there_is_a_way_home_from_every_state(table, states, inputs):
    homes = {ClientState.IDLE, ServerState.IDLE, ServerState.COMMITTED}
    for start in states:
        seen, todo = set(), [start]
        while todo:
            state = todo.pop()
            if state not in seen:
                seen.add(state)
                todo += [reached for (at, _), reached in table.items() if at is state]
        assert seen & homes


def test_a_frozen_server_can_only_resume_or_abort():
    assert {sent for state, sent in SERVER if state is ServerState.FROZEN} == {
        ServerInput.RESUME,
        ServerInput.ABORT,
    }


def test_nothing_but_validation_leads_to_the_switch():
    into = {state for (state, _), reached in CLIENT.items() if reached is ClientState.SWITCHED}
    assert into == {ClientState.VALIDATED}
    into = {sent for (_, sent), reached in CLIENT.items() if reached is ClientState.VALIDATED}
    assert into == {ClientInput.RESPONSE}


def test_a_machine_refuses_what_is_not_in_its_table():
    machine = Machine(CLIENT, ClientState.IDLE)
    assert not machine.allows(ClientInput.SWITCH)
    with pytest.raises(LocalError):
        machine.feed(ClientInput.SWITCH)
    assert machine.state is ClientState.IDLE


def test_the_diagrams_in_the_specification_are_current():
    spec = importlib.util.spec_from_file_location("draw_states", CHECKOUT / "tools" / "draw_states.py")
    draw_states = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_states)
    text = draw_states.DOCUMENT.read_text()
    assert draw_states.updated(text) == text, "run tools/draw_states.py"
