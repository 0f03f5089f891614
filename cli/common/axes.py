"""The axes of a run as options of a command, made from ``quicferry.spec``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

import baselines
from cli.common.runs import runs_option
from quicferry.migration.engines.registry import engines as known_engines
from quicferry.spec import Axis, axes
from quicferry.strategies import strategies

F = TypeVar("F", bound=Callable[..., Any])

#: axes whose words come from a registry
_NAMES: dict[str, Callable[[], Collection[str]]] = {
    "strategy": lambda: list(strategies()),
    "baseline": baselines.names,
    "engine": lambda: list(known_engines()),
}


def axis_options(*, leave_out: Collection[str] = ()) -> Callable[[F], F]:
    """Adds an option for every axis but those that a command has options of its own for.

    An option that is not given passes None: ``session.request`` knows the defaults and the bounds.
    """

    def decorate(command: F) -> F:
        for axis in reversed(list(axes().values())):
            if axis.name not in leave_out:
                command = _option(axis)(command)
        return runs_option(command)

    return decorate


def _option(axis: Axis) -> Callable[[F], F]:
    words = axis.text
    if axis.kind == "faults":
        return click.option(
            "--fault",
            axis.name,
            multiple=True,
            metavar="POINT:KIND[=SECONDS]",
            help=f"{words} May be given several times.",
        )
    if axis.kind is bool:
        no = f"/--no-{axis.option[2:]}" if axis.default else ""
        return click.option(axis.option + no, axis.name, is_flag=True, default=None, help=_with_default(axis))
    names = _NAMES[axis.name]() if axis.name in _NAMES else axis.choices
    kind: Any = click.Choice(list(names)) if names else axis.kind
    return click.option(axis.option, axis.name, type=kind, default=None, help=_with_default(axis))


def _with_default(axis: Axis) -> str:
    """The text of an axis with its bounds and its default, as far as they say anything."""
    notes = []
    if axis.least is not None:
        notes.append(axis.bounds)
    if axis.default is not None and axis.kind is not bool:
        value = f"{axis.default:g}" if axis.kind is float else str(axis.default)
        notes.append(f"default: {value}")
    elif axis.default is True:
        notes.append(f"default: {axis.option[2:]}")
    return f"{axis.text}  [{'; '.join(notes)}]" if notes else axis.text
