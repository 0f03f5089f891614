"""A family of topologies: what can be chosen about them, how one is built, and how Mininet gets it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from quicferry.errors import InvalidInput
from quicferry.model import Topology
from topologies.building.addresses import VERSIONS, with_ip
from topologies.building.roundtrips import with_round_trips

Value = int | float | str | None


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be chosen about a topology. The unit is in the name."""

    name: str
    default: Value
    summary: str


#: a parameter of every topology; it is also an axis of an experiment
IP = Parameter(name="ip", default="4", summary="IP version of everything: " + ", ".join(VERSIONS))


@functools.lru_cache(maxsize=512)
def _built(
    builder: Callable[..., Topology], ip: str, chosen: tuple[tuple[str, type, Value], ...]
) -> Topology:
    """The topology of a builder with its round-trip times. Remembered: a sweep asks for each many times."""
    return with_round_trips(with_ip(builder(**{name: value for name, _, value in chosen}), ip))


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """All topologies that one module can build; ``settings`` are parameters chosen with its name."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    builder: Callable[..., Topology]
    settings: dict[str, Value] = {}

    def __post_init__(self) -> None:
        asked = {
            name: (None if p.default is inspect.Parameter.empty else p.default)
            for name, p in inspect.signature(self.builder).parameters.items()
        }
        told = {parameter.name: parameter.default for parameter in self.parameters}
        if asked != told:
            raise InvalidInput(f"topology {self.name}: its builder takes {asked}, its summary says {told}")

    def build(self, **parameters: Value) -> Topology:
        """The topology with these parameters; the others have their defaults. Raises ``InvalidInput``."""
        known = [parameter.name for parameter in self.parameters] + [IP.name]
        chosen = {**self.settings, **parameters}
        for name in chosen:
            if name not in known:
                raise InvalidInput(
                    f"topology {self.name} has no parameter {name!r}", hint="it has " + ", ".join(known)
                )
        ip = str(chosen.pop(IP.name, IP.default))
        try:
            # the types as well: a number of edges that is True is refused, though it is equal to 1
            return _built(
                self.builder, ip, tuple((name, type(value), value) for name, value in chosen.items())
            )
        except TypeError as error:  # a word where a number is wanted
            given = ", ".join(f"{name}={value}" for name, value in chosen.items())
            raise InvalidInput(
                f"topology {self.name} cannot be built with {given}", hint="see `quicferry topo list`"
            ) from error

    def build_from_axes(self, values: Mapping[str, Value], defaults: Mapping[str, Value]) -> Topology:
        """The topology for an experiment's axes, of which it may not know all.

        An axis that this topology does not have is left out while it has its default, and refused when
        it was chosen; so is one that was chosen with the topology's name as well. Raises ``InvalidInput``.
        """
        known = {parameter.name for parameter in self.parameters}
        asked: dict[str, Value] = {}
        for name, value in values.items():
            chosen = name not in defaults or value != defaults[name]
            if chosen and name in self.settings and value != self.settings[name]:
                raise InvalidInput(
                    f"topology {self.name}: {name} is asked for twice, {self.settings[name]} and {value}",
                    hint="leave out one of them",
                )
            if chosen or (name in known and name not in self.settings):
                asked[name] = value
        return self.build(**asked)

    def mininet_topos(self) -> dict[str, Callable[..., Any]]:
        """What ``mn --custom FILE`` looks for: ``topos``, with this family under its name.

        ``mn --topo two_edges,rtt_ms=30`` sets a parameter. ``two_edges_plain`` is the same network with
        plain links, for kernels without netem.
        """

        def make(*, shaped: bool, **parameters: Value) -> Any:
            # Mininet is loaded only when it is asked for a network: to list and check topologies needs none
            from topologies.mininet_topo import to_mininet

            return to_mininet(self.build(**parameters), shaped=shaped)

        return {self.name: partial(make, shaped=True), f"{self.name}_plain": partial(make, shaped=False)}
