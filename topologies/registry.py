"""The registry: which topologies there are, with which parameters.

A topology module offers one ``FAMILY``; ours are listed in ``_MODULES``. Others come from outside: entry
points of the group ``quicferry.topologies``, plug-in files (``quicferry.plugins``), or TOML files.

A topology is asked for in the words of ``mn --topo``: its name, and after commas parameters, such as
``chain,edges=5``; or the name of a TOML file. The parameter ``ip`` is one of every topology.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import msgspec

from quicferry import plugins
from quicferry.errors import InvalidInput
from topologies.building.family import Family, Value
from topologies.building.toml_file import SUFFIX, read_topology

GROUP = "quicferry.topologies"
_MODULES = ("two_edges", "one_lan", "chain", "ring", "cloud_edge", "map")


def families() -> dict[str, Family]:
    """All topologies by name, those from outside included. Raises ``InvalidInput`` for a broken plug-in."""
    own = [import_module(f"topologies.{name}").FAMILY for name in _MODULES]
    return plugins.table(GROUP, Family, own, lambda family: family.name)


def names() -> tuple[str, ...]:
    """The names of all topologies."""
    return tuple(families())


def get(words: str) -> Family:
    """The topology family of that name, with the parameters that were chosen with it, or that of a file.

    Raises ``InvalidInput``, for an unknown name with the names there are.
    """
    if words.endswith(SUFFIX):
        topology = read_topology(Path(words))
        return Family(name=topology.name, summary=topology.summary, parameters=(), builder=lambda: topology)
    name, *settings = words.split(",")
    known = families()
    if name not in known:
        raise InvalidInput(
            f"there is no topology {name!r}",
            hint="there are " + ", ".join(known) + f", or name a file that ends in {SUFFIX}",
        )
    if not settings:
        return known[name]
    return msgspec.structs.replace(known[name], settings=dict(map(setting, settings)))


def setting(words: str) -> tuple[str, Value]:
    """Read ``NAME=VALUE``: a number, a word, or none. Raises ``InvalidInput``."""
    name, equals, value = words.partition("=")
    if not (name and equals and value):
        raise InvalidInput(f"cannot read the setting {words!r}", hint="write NAME=VALUE, such as rtt_ms=30")
    if value.lower() == "none":
        return name, None
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
