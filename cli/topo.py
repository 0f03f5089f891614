"""``quicferry topo``: the emulated topologies, as a list, in detail and as a picture."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

import topologies
from cli.common import output
from cli.common.output import say
from quicferry.emulation import drawing
from quicferry.errors import InvalidInput
from quicferry.model import Topology


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``topo list --json``."""

    name: str
    summary: str
    parameters: dict[str, int | float | str | None]  # with their defaults


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON object of ``topo show --json``."""

    topology: Topology
    parameters: dict[str, int | float | str | None]  # as built


@click.group()
def topo() -> None:
    """List, show and draw the emulated topologies."""


_settings = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Choose a parameter of the topology, such as rtt_ms=30; may be repeated.",
)


@topo.command(name="list")
@output.json_option
def list_(as_json: bool) -> None:
    """List the topologies and what can be chosen about each.

    A parameter is chosen with the name, as for Mininet: `quicferry run --topology chain,edges=5`. A topology
    of your own is a TOML file: `--topology FILE.toml` (docs/topologies.md).
    """
    for name in topologies.names():
        family = topologies.get(name)
        if as_json:
            defaults = {
                parameter.name: parameter.default for parameter in (*family.parameters, topologies.IP)
            }
            output.print_json(Listed(name=name, summary=family.summary, parameters=defaults))
            continue
        click.echo(f"{name}: {family.summary}")
        parameters = (*family.parameters, topologies.IP)
        wide = max(len(parameter.name) for parameter in parameters)
        for parameter in parameters:
            value = parameter.default
            default = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            click.echo(f"   {parameter.name:<{wide}}  {default:>5}  {parameter.summary}")


@topo.command()
@click.argument("name")
@_settings
@output.json_option
def show(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Show the nodes and links of a topology."""
    topology, chosen = _build(name, settings)
    if as_json:
        output.print_json(Shown(topology=topology, parameters=chosen))
        return
    from rich.table import Table

    console = output.stdout_console()
    console.print(f"{topology.name}: {topology.summary}")
    nodes = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", "what it is", "addresses"):
        nodes.add_column(column)
    for node in topology.nodes:
        what = drawing.roles(topology, node) or "host"
        nodes.add_row(node.name, what, " ".join(topology.addresses_of(node.name)))
    links = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("link", "what it does to packets"):
        links.add_column(column)
    for link in topology.links:
        links.add_row(link.name, drawing.describe_link(link) or "nothing")
    console.print()
    console.print(nodes)
    console.print()
    console.print(links)


@topo.command()
@click.argument("name")
@_settings
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write an SVG, PNG or PDF picture to this file instead of drawing with characters.",
)
def draw(name: str, settings: tuple[str, ...], output: Path | None) -> None:
    """Draw a topology, with characters or to a file."""
    topology, _ = _build(name, settings)
    if output is None:
        click.echo(drawing.text(topology))
        return
    if not output.resolve().parent.is_dir():
        raise InvalidInput(f"there is no directory {output.parent}", hint="make it first")
    drawing.picture(topology, output)
    say(f"drawn to {output}")


def _build(name: str, settings: tuple[str, ...]) -> tuple[Topology, dict[str, int | float | str | None]]:
    family = topologies.get(name)
    chosen = {parameter.name: parameter.default for parameter in (*family.parameters, topologies.IP)}
    asked = dict(map(topologies.setting, settings))
    return family.build(**asked), {**chosen, **family.settings, **asked}
