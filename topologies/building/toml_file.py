"""A topology of one's own, from a TOML file; docs/topologies.md describes the format.

Every error names the file, the key, and what is allowed there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quicferry.errors import UNDECODABLE, InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from topologies.building.roundtrips import check_ways

T = TypeVar("T")
SUFFIX = ".toml"
PARTS = ("client", "source", "destination", "orchestrator", "dns")
_TABLES = ("name", "summary", "nodes", "links", "parts", "pool", "services")
_SHAPE = tuple(field.name for field in msgspec.structs.fields(Shape))
_LINK = ("a", "b", "a_address", "b_address", "mtu_bytes", "up", "cost", "a_to_b", "b_to_a")


def read_topology(path: Path) -> Topology:
    """The topology that a file describes. Raises ``InvalidInput`` with file, key and what is allowed."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise InvalidInput(
            f"cannot read the topology {path}: {error.strerror}", hint="name a file that is there"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", hint="see docs/topologies.md for the format") from error
    reader = _Reader(path)
    try:
        return reader.topology(table)
    except InvalidInput as error:
        message = str(error)
        if message.startswith(str(path)):
            raise
        raise InvalidInput(f"{path}: {message}", hint=error.hint) from error


class _Reader:
    """Reads the tables of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def topology(self, table: dict[str, Any]) -> Topology:
        self._known(table, _TABLES, "")
        nodes = self._nodes(self._table(table, "nodes"))
        links = self._addressed(nodes, self._links(table.get("links", []), nodes))
        parts = self._parts(self._table(table, "parts"), nodes)
        edges = [node.name for node in nodes.values() if node.kind is NodeKind.EDGE]
        pool = self._names(table.get("pool", [e for e in edges if e != parts["source"]]), "pool", edges)
        if parts["destination"] not in pool or parts["source"] in pool:
            raise self._error("pool", f"{pool} is no pool", "name the destination and not the source")
        summary = table.get("summary", f"a topology of {self._path.name}")
        name = table.get("name", self._path.stem)
        for key, value in (("name", name), ("summary", summary)):
            if not isinstance(value, str):
                raise self._error(key, f"{value!r} is no text", "write it in quotes")
        topology = Topology(
            name=name,
            summary=summary,
            nodes=tuple(nodes.values()),
            links=tuple(links),
            parts=parts,
            pool=tuple(pool),
            service_addresses=self._services(table.get("services", {}), links, edges, nodes),
        )
        check_ways(topology)
        return topology

    # --- tables --------------------------------------------------------------------------------

    def _nodes(self, table: dict[str, Any]) -> dict[str, Node]:
        kinds = [kind.value for kind in NodeKind]
        nodes = {}
        for name, kind in table.items():
            if kind not in kinds:
                raise self._error(
                    f"nodes.{name}", f"{kind!r} is no kind of node", "write " + ", ".join(kinds)
                )
            nodes[name] = self._within(f"nodes.{name}", partial(Node, name=name, kind=NodeKind(kind)))
        if not nodes:
            raise self._error(
                "nodes", "there are none", 'write a table [nodes] with lines such as edge-1 = "edge"'
            )
        return nodes

    def _links(self, entries: Any, nodes: dict[str, Node]) -> list[Link]:
        if not isinstance(entries, list) or not entries:
            raise self._error("links", "there are none", "write a table [[links]] for each")
        return [self._link(f"links[{number}]", entry, nodes) for number, entry in enumerate(entries, 1)]

    def _link(self, key: str, entry: Any, nodes: dict[str, Node]) -> Link:
        if not isinstance(entry, dict):
            raise self._error(key, f"{entry!r} is no table", "write [[links]]")
        self._known(entry, (*_LINK, *_SHAPE), key)
        for end in ("a", "b"):
            if entry.get(end) not in nodes:
                raise self._error(
                    f"{key}.{end}", f"{entry.get(end)!r} is no node", "the nodes are " + ", ".join(nodes)
                )
        both = {name: entry[name] for name in _SHAPE if name in entry}
        shapes = {}
        for direction in ("a_to_b", "b_to_a"):
            own = entry.get(direction, {})
            if not isinstance(own, dict):
                raise self._error(f"{key}.{direction}", f"{own!r} is no table", "write { delay_ms = 5 }")
            self._known(own, _SHAPE, f"{key}.{direction}")
            shapes[direction] = self._convert(f"{key}.{direction}", both | own, Shape)
        others = {name: entry[name] for name in _LINK[:-2] if name in entry}
        ways = {name: msgspec.to_builtins(shape) for name, shape in shapes.items()}
        return self._convert(key, others | ways, Link)

    def _parts(self, table: dict[str, Any], nodes: dict[str, Node]) -> dict[str, str]:
        self._known(table, PARTS, "parts")
        for part in PARTS:
            if table.get(part) not in nodes:
                raise self._error(
                    f"parts.{part}", f"{table.get(part)!r} is no node", "the nodes are " + ", ".join(nodes)
                )
        for part in ("source", "destination"):
            if nodes[table[part]].kind is not NodeKind.EDGE:
                raise self._error(
                    f"parts.{part}", f"{table[part]} is no edge", "name a node of the kind edge"
                )
        if table["source"] == table["destination"]:
            raise self._error("parts", "source and destination are one", "name two edges")
        return {part: table[part] for part in PARTS}

    def _services(
        self, table: Any, links: list[Link], edges: list[str], nodes: dict[str, Node]
    ) -> dict[str, str]:
        """Where clients reach each edge: as the file says, else its first beside a router or switch."""
        if not isinstance(table, dict):
            raise self._error("services", f"{table!r} is no table", 'write edge-1 = "10.0.1.2"')
        self._known(table, edges, "services")
        found = {}
        for edge in edges:
            own = [
                (address.partition("/")[0], nodes[other].kind in (NodeKind.ROUTER, NodeKind.SWITCH))
                for link in links
                for end, address, other in (
                    (link.a, link.a_address, link.b),
                    (link.b, link.b_address, link.a),
                )
                if end == edge and address is not None
            ]
            if not own:
                raise self._error(f"nodes.{edge}", "it has no link", "link it with a router or a switch")
            found[edge] = table.get(edge) or next((a for a, routed in own if routed), own[0][0])
            if found[edge] not in [address for address, _ in own]:
                raise self._error(
                    f"services.{edge}", f"{found[edge]} is no address of it",
                    "it has " + ", ".join(address for address, _ in own),
                )  # fmt: skip
        return found

    # --- addresses -----------------------------------------------------------------------------

    def _addressed(self, nodes: dict[str, Node], links: list[Link]) -> list[Link]:
        """The links, with addresses 10.N.… where the file gives none: a network for each segment."""
        switches = {name for name, node in nodes.items() if node.kind is NodeKind.SWITCH}
        segment: dict[str, int] = {}  # of each switch
        of_link: list[int] = []
        for number, link in enumerate(links):
            joined = {segment[end] for end in (link.a, link.b) if end in segment}
            first = min(joined, default=number)
            for name, value in segment.items():
                if value in joined:
                    segment[name] = first
            of_link = [first if value in joined else value for value in of_link]
            of_link.append(first)
            segment.update({end: first for end in (link.a, link.b) if end in switches})
        given = [a for link in links for a in (link.a_address, link.b_address) if a is not None]
        networks = {value: place for place, value in enumerate(dict.fromkeys(of_link))}
        used: dict[int, int] = {}
        found = []
        for link, value in zip(links, of_link, strict=True):
            own = {}
            for end, address in (("a", link.a_address), ("b", link.b_address)):
                if getattr(link, end) in switches or address is not None:
                    continue
                if given:
                    raise self._error(
                        f"links of {link.name}", f"its end {end} has no address",
                        "give addresses to all ends that are no switch, or to none",
                    )  # fmt: skip
                used[value] = last = used.get(value, 0) + 1
                place = networks[value]
                if place > 255 * 200 or last > 254:
                    raise self._error("links", "there are too many of them", "give addresses yourself")
                own[f"{end}_address"] = f"10.{place // 256}.{place % 256}.{last}/24"
            found.append(msgspec.structs.replace(link, **own))
        return found

    # --- values --------------------------------------------------------------------------------

    def _table(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        found = table.get(key)
        if not isinstance(found, dict):
            raise self._error(key, "it is missing", f"write a table [{key}]")
        return found

    def _names(self, value: Any, key: str, allowed: list[str]) -> list[str]:
        if not isinstance(value, list) or not all(name in allowed for name in value):
            raise self._error(key, f"{value!r} is no list of edges", "the edges are " + ", ".join(allowed))
        return list(dict.fromkeys(value))

    def _known(self, table: dict[str, Any], allowed: Any, key: str) -> None:
        for name in table:
            if name not in allowed:
                where = f"{key}.{name}" if key else name
                raise self._error(where, "there is no such key", "allowed are " + ", ".join(allowed))

    def _convert(self, key: str, value: Any, kind: type[T]) -> T:
        try:
            return msgspec.convert(value, kind)
        except UNDECODABLE as error:
            cause = error.__cause__
            hint = cause.hint if isinstance(cause, InvalidInput) else "see docs/topologies.md"
            raise self._error(key, str(error), hint) from error
        except InvalidInput as error:
            raise self._error(key, str(error), error.hint) from error

    def _within(self, key: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except InvalidInput as error:
            raise self._error(key, str(error), error.hint) from error

    def _error(self, key: str, what: str, hint: str | None) -> InvalidInput:
        return InvalidInput(f"{self._path}: {key}: {what}", hint=hint)
