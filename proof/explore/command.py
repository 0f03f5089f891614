"""A drawn line: values of axes, and the words of the command that asks for them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from quicferry.errors import InvalidInput
from quicferry.spec import RunSpec, axes
from session.request import parts_of, refusal, to_spec

#: Values of axes by their names, as ``session.request.to_spec`` takes them; what is left out is a default.
Values = Mapping[str, Any]


def words(values: Values) -> list[str]:
    """The words after ``quicferry run`` that ask for these values, in the order of the axes."""
    found: list[str] = []
    for axis in axes().values():
        value = values.get(axis.name)
        if value is None:
            continue
        if axis.kind == "faults":
            for fault in value:
                found += ["--fault", fault]
        elif axis.kind is bool:
            if value != axis.default:
                found.append(axis.option if value else f"--no-{axis.option[2:]}")
        else:
            found += [axis.option, f"{value:.10g}" if isinstance(value, float) else str(value)]
    return found


def line(values: Values) -> str:
    """The whole command as one would type it."""
    return shlex.join(["quicferry", "run", *words(values)])


def without_defaults(values: Values) -> dict[str, Any]:
    """The values that differ from their axis's default."""
    known = axes()
    return {
        name: value
        for name, value in values.items()
        if value is not None and value != known[name].default and value not in ((), [])
    }


def accepted(values: Values) -> RunSpec | None:
    """The run that these values ask for; None when the request is refused, on whatever machine."""
    try:
        spec = to_spec(values)
    except InvalidInput:
        return None
    return None if refusal(spec, parts_of(spec)) is not None else spec
