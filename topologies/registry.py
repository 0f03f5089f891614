"""The registry: which topologies there are, with which parameters.

A topology module offers one ``FAMILY``; ours are listed in ``_MODULES``. Others come from outside: entry
points of the group ``quicferry.topologies``, or plug-in files (``quicferry.plugins``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import msgspec

from quicferry import plugins
from quicferry.errors import InvalidInput
from quicferry.model import Topology

GROUP = "quicferry.topologies"
_MODULES = ("two_edges", "one_lan")

Value = int | float | str | None


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be chosen about a topology. The unit is in the name."""

    name: str
    default: Value
    summary: str


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """All topologies that one module can build."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    builder: Callable[..., Topology]

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
        known = [parameter.name for parameter in self.parameters]
        for name in parameters:
            if name not in known:
                raise InvalidInput(
                    f"topology {self.name} has no parameter {name!r}", hint="it has " + ", ".join(known)
                )
        return self.builder(**parameters)

    def build_from_axes(self, values: Mapping[str, Value], defaults: Mapping[str, Value]) -> Topology:
        """The topology for an experiment's axes, of which it may not know all.

        An axis that this topology does not have is left out while it has its default, and refused when
        it was chosen. Raises ``InvalidInput``.
        """
        known = {parameter.name for parameter in self.parameters}
        return self.build(
            **{
                name: value
                for name, value in values.items()
                if name in known or name not in defaults or value != defaults[name]
            }
        )

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


def families() -> dict[str, Family]:
    """All topologies by name, those from outside included. Raises ``InvalidInput`` for a broken plug-in."""
    own = [import_module(f"topologies.{name}").FAMILY for name in _MODULES]
    return plugins.table(GROUP, Family, own, lambda family: family.name)


def names() -> tuple[str, ...]:
    """The names of all topologies."""
    return tuple(families())


def get(name: str) -> Family:
    """The topology family of that name. Raises ``InvalidInput`` with the names there are."""
    known = families()
    if name not in known:
        raise InvalidInput(f"there is no topology {name!r}", hint="there are " + ", ".join(known))
    return known[name]
