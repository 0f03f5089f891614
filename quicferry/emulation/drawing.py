"""Draws a topology: as a tree of text for a terminal, as SVG, PNG or PDF by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology

_UNWRAPPED = 10_000
PICTURE_SUFFIXES = (".svg", ".png", ".pdf")

_COLOURS = {
    NodeKind.HOST: "#d8e6f3",
    NodeKind.EDGE: "#cdebd3",
    NodeKind.ROUTER: "#f3e3c7",
    NodeKind.SWITCH: "#e6e0ee",
}


def describe_shape(shape: Shape) -> str:
    """A direction's shape in a few words; "" when it does nothing."""
    words = []
    if shape.delay_ms:
        words.append(f"{shape.delay_ms:g} ms" + (f" ± {shape.jitter_ms:g}" if shape.jitter_ms else ""))
    if shape.rate_mbps is not None:
        words.append(f"{shape.rate_mbps:g} Mbit/s")
    if shape.rate_trace is not None:
        words.append(f"rate by {Path(shape.rate_trace).name}")
    if shape.loss_percent:
        bursts = f" in bursts of {shape.loss_burst_packets:g}" if shape.loss_burst_packets else ""
        words.append(f"{shape.loss_percent:g} % loss{bursts}")
    for percent, what in (
        (shape.reorder_percent, "reordered"),
        (shape.duplicate_percent, "duplicated"),
        (shape.corrupt_percent, "corrupted"),
    ):
        if percent:
            words.append(f"{percent:g} % {what}")
    words += [f"out {length_s:g} s after {after_s:g} s" for after_s, length_s in shape.outages]
    if shape.queue_packets is not None:
        words.append(f"queue {shape.queue_packets}")
    return ", ".join(words)


def describe_link(link: Link) -> str:
    """What a link does, each way; "" for a plain one."""
    there, back = describe_shape(link.a_to_b), describe_shape(link.b_to_a)
    if not link.up:
        return "down at first"
    if there == back:
        return f"{there} each way" if there else ""
    return f"{link.a}→{link.b}: {there or 'plain'}; {link.b}→{link.a}: {back or 'plain'}"


def roles(topology: Topology, node: Node) -> str:
    """The parts that a node plays, in words: ``edge, destination, in the pool``."""
    words = [] if node.kind is NodeKind.HOST else [node.kind.value]
    words += [part for part, name in topology.parts.items() if name == node.name and part != node.name]
    if node.name in topology.pool:
        words.append("in the pool")
    return ", ".join(words)


def text(topology: Topology, width: int = _UNWRAPPED) -> str:
    """The topology as a tree from the client outwards, and below it the links that close a circle.

    Lines longer than ``width`` characters are wrapped within the tree.
    """
    used: set[str] = set()
    seen: set[str] = set()

    def grow(tree: Tree, name: str) -> None:
        following = [(other, via) for other, via in _next(topology, name) if other not in seen]
        seen.update(other for other, _ in following)  # a nearer place is the better one
        for other, via in following:
            used.add(via.name)
            grow(tree.add(Text(_line(topology, other, via))), other)

    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as drawn:
        for start in (topology.parts.get("client"), *(node.name for node in topology.nodes)):
            if start is not None and start not in seen:
                seen.add(start)
                tree = Tree(Text(_line(topology, start, None)))
                grow(tree, start)
                console.print(tree)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    closing = [link for link in topology.links if link.name not in used]
    if closing:
        lines.append("also linked:")
        lines += [f"    {link.a} ── {link.b}" + _bracket(describe_link(link)) for link in closing]
    return "\n".join(lines)


def picture(topology: Topology, target: Path) -> None:
    """Draw the topology to an SVG, PNG or PDF file. Raises ``InvalidInput`` for another kind of file."""
    if target.suffix.lower() not in PICTURE_SUFFIXES:
        raise InvalidInput(
            f"cannot draw to {target.name}", hint="name a file that ends in " + ", ".join(PICTURE_SUFFIXES)
        )
    # matplotlib takes long to load: only who draws waits for it
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    positions = _positions(topology)
    width = 2.9 * (1 + max(x for x, _ in positions.values()))
    rows = 1 + max(y for _, y in positions.values()) - min(y for _, y in positions.values())
    figure = Figure(figsize=(width + 0.9, max(2.2, 1.1 * rows + 0.9)))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    axes.set_axis_off()
    axes.set_title(f"{topology.name}: {topology.summary}", fontsize=10, loc="left")
    for link in topology.links:
        (x1, y1), (x2, y2) = positions[link.a], positions[link.b]
        bend = 0.35 if x1 == x2 else 0.0
        style = f"arc3,rad={-bend}"
        axes.annotate(
            "",
            xy=(x2, y2),
            xytext=(x1, y1),
            arrowprops={"arrowstyle": "-", "color": "#555555", "connectionstyle": style},
            zorder=1,
        )
        words = describe_link(link)
        if words:
            middle_x, middle_y = (x1 + x2) / 2 + (0.1 if bend else 0.0), (y1 + y2) / 2
            side = "left" if bend else "center"  # beside the arc, not on it
            axes.text(
                middle_x, middle_y, words, fontsize=6.5, ha=side, va="center", zorder=2,
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
            )  # fmt: skip
    for node in topology.nodes:
        x, y = positions[node.name]
        words = "\n".join(filter(None, (node.name, roles(topology, node), *_short(topology, node.name))))
        axes.text(
            x, y, words, fontsize=7.5, ha="center", va="center", zorder=3,
            bbox={"boxstyle": "round,pad=0.4", "fc": _COLOURS[node.kind], "ec": "#555555"},
        )  # fmt: skip
    axes.set_xlim(-0.45, max(x for x, _ in positions.values()) + 0.6)
    axes.set_ylim(min(y for _, y in positions.values()) - 0.6, max(y for _, y in positions.values()) + 0.6)
    with mpl.rc_context({"svg.hashsalt": "quicferry"}):  # the same topology, the same file
        figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix.lower() == ".svg" else None)


def _line(topology: Topology, name: str, link: Link | None) -> str:
    addresses = [
        address
        for via in ([link] if link is not None else topology.links_of(name)[:1])
        for end, address in ((via.a, via.a_address), (via.b, via.b_address))
        if end == name and address is not None
    ]
    words = " ".join([name, *addresses]) + _bracket(roles(topology, topology.node(name)))
    shape = describe_link(link) if link is not None else ""
    return words + (f"  ~ {shape}" if shape else "")


def _bracket(words: str) -> str:
    return f" ({words})" if words else ""


def _next(topology: Topology, name: str) -> Iterator[tuple[str, Link]]:
    for link in topology.links_of(name):
        if not link.up:
            continue
        yield (link.b if link.a == name else link.a), link


def _short(topology: Topology, name: str) -> tuple[str, ...]:
    """A node's addresses; none when there are more than two, as a box has no room for them."""
    addresses = topology.addresses_of(name)
    return addresses if len(addresses) <= 2 else ()


def _positions(topology: Topology) -> dict[str, tuple[float, float]]:
    """The position of each node: x is hops from the client, y spreads nodes of one distance around zero."""
    start = topology.parts.get("client", topology.nodes[0].name)
    depth = {start: 0}
    waiting = [start]
    for name in waiting:
        for other, _ in _next(topology, name):
            if other not in depth:
                depth[other] = depth[name] + 1
                waiting.append(other)
    columns: dict[int, list[str]] = {}
    for node in topology.nodes:
        columns.setdefault(depth.get(node.name, 0), []).append(node.name)
    return {
        name: (float(x), (len(column) - 1) / 2 - row)
        for x, column in columns.items()
        for row, name in enumerate(column)
    }
