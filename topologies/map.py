"""Real networks: any map of the package topohub, with edges, client and orchestrator at places of it.

Each place is a router, each line of the map a link whose delay is its length at the speed of light in fibre.
``topo draw map --set name=sndlib/germany50`` shows one; topohub.org lists them all: ``sndlib/…``,
``topozoo/…``, ``backbone/…``, ``gabriel/…``, ``caida/…``. The client is at the most central place unless it
is put elsewhere, the server begins at the farthest one and moves to the client's; more edges are next to it.
Stock Mininet: ``.venv/bin/mn --custom topologies/map.py --topo map,name=sndlib/polska`` (with netem).
"""

from __future__ import annotations

import functools
import heapq
import importlib.resources
import itertools
import json
import re
from typing import NamedTuple

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from topologies.building.family import Family, Parameter

KM_PER_MS = 200.0  # light in fibre, about two thirds of its speed in vacuum
MOST_EDGES = 8
MOST_ROUTERS = 120
_LONGEST_NAME = 8  # with a number behind it still a node's name


class Place(NamedTuple):
    """A node of a map: its name as the map has it, and that of its router."""

    title: str
    router: str


class Map(NamedTuple):
    """A network on a map: places by their number, and the length of each line."""

    name: str
    places: dict[int, Place]
    lines: dict[tuple[int, int], float]  # km

    def find(self, words: str) -> int:
        """The place of that name or router. Raises ``InvalidInput``."""
        for number, place in self.places.items():
            if words.lower() in (place.title.lower(), place.router):
                return number
        near = ", ".join(place.title or place.router for place in self.places.values())
        raise InvalidInput(f"the map {self.name} has no place {words!r}", hint=f"it has {near[:600]}")

    def ways_from(self, start: int) -> dict[int, tuple[float, int | None]]:
        """For every place that can be reached the distance in km, and the place before it on the way."""
        beside: dict[int, list[tuple[int, float]]] = {number: [] for number in self.places}
        for (a, b), km in self.lines.items():
            beside[a].append((b, km))
            beside[b].append((a, km))
        found: dict[int, tuple[float, int | None]] = {}
        waiting: list[tuple[float, int, int | None]] = [(0.0, start, None)]
        while waiting:
            km, here, before = heapq.heappop(waiting)
            if here in found:
                continue
            found[here] = (km, before)
            for there, length in beside[here]:
                if there not in found:
                    heapq.heappush(waiting, (km + length, there, here))
        return found


@functools.cache
def read_map(name: str) -> Map:
    """A map of the package topohub. Raises ``InvalidInput`` when it has none of that name."""
    try:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+", name) or ".." in name:
            raise FileNotFoundError(name)
        # the file itself: topohub.get() leaves it open
        graph = json.loads((importlib.resources.files("topohub") / f"data/{name}.json").read_bytes())
    except OSError as error:
        raise InvalidInput(
            f"topohub has no map {name!r}",
            hint="name one such as sndlib/germany50, topozoo/Abilene or backbone/africa; see topohub.org",
        ) from error
    numbers = {node["id"]: number for number, node in enumerate(graph["nodes"])}
    places: dict[int, Place] = {}
    taken = {"client", "orch", "dns"}
    for node in graph["nodes"]:
        title = str(node.get("name", ""))
        slug = re.sub(r"[^a-z0-9]", "", title.lower())[:_LONGEST_NAME].lstrip("0123456789") or "r"
        router = next(
            candidate
            for candidate in itertools.chain(
                [slug] if slug != "r" else [], (f"{slug[:6]}{n}" for n in itertools.count(1))
            )
            if candidate not in taken
        )
        taken.add(router)
        places[numbers[node["id"]]] = Place(title, router)
    lines: dict[tuple[int, int], float] = {}
    for edge in graph["edges"]:
        a, b = sorted((numbers[edge["source"]], numbers[edge["target"]]))
        if a != b:
            km = float(edge.get("dist") or 0.0)
            lines[a, b] = min(km, lines.get((a, b), km))
    return Map(name, places, lines)


def build(
    *,
    name: str = "sndlib/polska",
    client: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    edges: int = 2,
    whole: int = 0,
    rtt_ms: float = 18.0,
    jitter_ms: float = 0.0,
    loss_percent: float = 0.0,
    rate_mbps: float | None = None,
    inter_edge_mbps: float = 1000.0,
) -> Topology:
    """The topology. Raises ``InvalidInput`` for values that no network can have.

    ``rtt_ms`` is the round-trip time of the client's access link, to which the map adds what its lines take.
    """
    if isinstance(edges, bool) or not isinstance(edges, int) or not 2 <= edges <= MOST_EDGES:
        raise InvalidInput(f"map: {edges} edges", hint=f"give 2 to {MOST_EDGES}")
    if not 0 <= rtt_ms <= 10_000:  # also refuses NaN
        raise InvalidInput(f"rtt_ms cannot be {rtt_ms}", hint="give a round-trip time of 0 to 10000 ms")
    if not 0 <= jitter_ms <= rtt_ms / 2:
        raise InvalidInput(
            f"a jitter of {jitter_ms} ms does not fit a one-way delay of {rtt_ms / 2:g} ms",
            hint="give 0 up to half of the round-trip time",
        )
    found = read_map(name)
    at_client, sites = _sites(found, client, source, destination, edges)
    lines = _lines(found, [at_client, *sites], whole=bool(whole))
    routers = sorted({end for line in lines for end in line} | {at_client, *sites})
    if len(routers) > MOST_ROUTERS:
        raise InvalidInput(
            f"{len(routers)} routers of {name} are more than a machine should emulate",
            hint=f"take less than the whole map, or one of at most {MOST_ROUTERS} places",
        )
    access = Shape(delay_ms=rtt_ms / 2, jitter_ms=jitter_ms, loss_percent=loss_percent, rate_mbps=rate_mbps)
    router = {number: found.places[number].router for number in routers}

    def cable(a: str, b: str, network: str, shape: Shape, km: float = 1.0) -> Link:
        a_address, b_address = f"{network}.1/24", f"{network}.2/24"
        return Link(
            a=a, b=b, a_address=a_address, b_address=b_address, a_to_b=shape, b_to_a=shape,
            cost=max(km, 0.001),
        )  # fmt: skip

    names = [f"edge-{number}" for number in range(1, edges + 1)]
    return Topology(
        name="map",
        summary=SUMMARY,
        nodes=(
            Node(name="client"),
            *(Node(name=router[number], kind=NodeKind.ROUTER) for number in routers),
            *(Node(name=edge, kind=NodeKind.EDGE) for edge in names),
            Node(name="orch"),
            Node(name="dns"),
        ),
        links=(
            cable(router[at_client], "client", "10.1.0", access),
            *(cable(router[site], edge, f"10.0.{number}", Shape())
              for number, (site, edge) in enumerate(zip(sites, names, strict=True), 1)),
            *(cable(router[a], router[b], f"10.{2 + place // 256}.{place % 256}",
                    Shape(delay_ms=round(km / KM_PER_MS, 6), rate_mbps=inter_edge_mbps), km)
              for place, ((a, b), km) in enumerate(lines.items())),
            cable(router[at_client], "orch", "10.0.80", Shape()),
            cable(router[at_client], "dns", "10.0.81", Shape()),
        ),
        parts={
            "client": "client",
            "source": "edge-1",
            "destination": "edge-2",
            "orchestrator": "orch",
            "dns": "dns",
        },
        pool=tuple(names[1:]),
        service_addresses={edge: f"10.0.{number}.2" for number, edge in enumerate(names, 1)},
    )  # fmt: skip


def _sites(
    found: Map, client: str | None, source: str | None, destination: str | None, edges: int
) -> tuple[int, list[int]]:
    """Where the client is, and where the edges are: source, destination, then others near the client."""
    if client is not None:
        at_client = found.find(client)
    else:
        reach = {number: found.ways_from(number) for number in found.places}
        most = max(map(len, reach.values()))
        central = [number for number in found.places if len(reach[number]) == most]
        at_client = min(central, key=lambda number: sum(km for km, _ in reach[number].values()))
    ways = found.ways_from(at_client)
    by_distance = sorted(ways, key=lambda number: (ways[number][0], number))
    to = found.find(destination) if destination is not None else at_client
    origin = found.find(source) if source is not None else next(n for n in by_distance[::-1] if n != to)
    for number in (origin, to):
        if number not in ways:
            raise InvalidInput(
                f"the map {found.name} has no path from {found.places[at_client].title} to "
                f"{found.places[number].title}",
                hint="choose other places",
            )
    if origin == to:
        raise InvalidInput("source and destination are one place", hint="choose two places")
    others = [number for number in by_distance if number not in (origin, to)]
    if len(others) < edges - 2:
        raise InvalidInput(
            f"the map {found.name} has no room for {edges} edges",
            hint=f"give at most {len(others) + 2}: one for each place that can be reached",
        )
    return at_client, [origin, to, *others[: edges - 2]]


def _lines(found: Map, ends: list[int], *, whole: bool) -> dict[tuple[int, int], float]:
    """The lines that packets of a run pass: the shortest ways between these places; or all of them."""
    if whole:
        inside = found.ways_from(ends[0])
        return {line: km for line, km in found.lines.items() if line[0] in inside}
    used: set[tuple[int, int]] = set()
    for start in dict.fromkeys(ends):
        ways = found.ways_from(start)
        for end in ends:
            here = end
            while (before := ways[here][1]) is not None:
                used.add((min(here, before), max(here, before)))
                here = before
    return {line: found.lines[line] for line in sorted(used)}


SUMMARY = (
    "a real network from the package topohub: its places are routers, its lines links as long as they are"
)

FAMILY = Family(
    name="map",
    summary=SUMMARY,
    parameters=(
        Parameter(name="name", default="sndlib/polska", summary="the map, such as sndlib/germany50"),
        Parameter(name="client", default=None, summary="the client's place; none: the most central one"),
        Parameter(name="source", default=None, summary="the first edge's place; none: the farthest one"),
        Parameter(name="destination", default=None, summary="the second edge's place; none: the client's"),
        Parameter(name="edges", default=2, summary=f"how many edges there are, 2 to {MOST_EDGES}"),
        Parameter(name="whole", default=0, summary="1: also places that no packet of a run passes"),
        Parameter(name="rtt_ms", default=18.0, summary="round-trip time of the client's access link"),
        Parameter(name="jitter_ms", default=0.0, summary="standard deviation of its one-way delay"),
        Parameter(name="loss_percent", default=0.0, summary="packets lost on the client's link, each way"),
        Parameter(name="rate_mbps", default=None, summary="rate of the client's link; none: unlimited"),
        Parameter(name="inter_edge_mbps", default=1000.0, summary="rate of each line of the map"),
    ),
    builder=build,
)

topos = FAMILY.mininet_topos()
