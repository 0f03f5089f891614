"""What an experiment asks for: one run, or a sweep over several axes, and whether it makes sense.

A scenario file is TOML. ``[run]`` holds one value for each axis named there, ``[sweep]`` lists of
values; every combination is run ``repetitions`` times. An axis is a field of ``record.Asked``:

    title = "Five strategies"
    repetitions = 3
    [run]
    engine = "handoff"
    [sweep]
    strategy = ["proactive-explicit", "symmetric"]
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import InvalidInput
from quicferry.experiment import faults
from quicferry.migration.engines.base import COMPRESSIONS, ENGINES, LONG_ENGINES, MEMORY_BY
from quicferry.record import Asked


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An experiment: base values, swept axes, repetitions."""

    title: str = "untitled"
    repetitions: int = 1
    run: dict[str, Any] = {}
    sweep: dict[str, list[Any]] = {}

    def runs(self) -> Iterator[Asked]:
        """Every run, interleaved: one repetition of all combinations before the next.

        All combinations of one repetition share a seed, so that they meet the same network; a
        machine that grows slower meanwhile slows all of them alike. Raises ``InvalidInput``.
        """
        for repetition in range(self.repetitions):
            for chosen in itertools.product(*self._axes()):
                wanted = self.run.copy()
                for values in chosen:
                    wanted |= values
                asked = to_asked(wanted)
                yield check(msgspec.structs.replace(asked, seed=asked.seed + repetition))

    def _axes(self) -> list[list[dict[str, Any]]]:
        """For each swept axis its values. Strategies and baselines are alternatives: one axis together."""
        contenders: list[dict[str, Any]] = [{"strategy": value} for value in self.sweep.get("strategy", [])]
        contenders += [{"baseline": value} for value in self.sweep.get("baseline", [])]
        axes: list[list[dict[str, Any]]] = []
        for axis, values in self.sweep.items():
            if axis not in ("strategy", "baseline"):
                axes.append([{axis: value} for value in values])
            elif contenders not in axes:
                axes.append(contenders)
        return axes


def to_asked(values: dict[str, Any]) -> Asked:
    """One run from plain values. Raises ``InvalidInput`` for unknown axes and values of a wrong kind."""
    known = set(Asked.__struct_fields__)
    for axis in values:
        if axis not in known:
            raise InvalidInput(f"there is no axis {axis!r}", hint="the axes are " + ", ".join(sorted(known)))
    try:
        return msgspec.convert(values, Asked)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"a value does not fit its axis: {error}", hint="see docs/axes.md") from error


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file; all its runs are checked. Raises ``InvalidInput``."""
    try:
        with path.open("rb") as file:
            scenario = msgspec.convert(tomllib.load(file), Scenario)
    except OSError as error:
        raise InvalidInput(f"cannot read the scenario {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(f"{path}: {error}", hint="see scenarios/ for examples") from error
    if not 1 <= scenario.repetitions <= 10_000:
        raise InvalidInput(f"{path}: {scenario.repetitions} repetitions", hint="give 1 to 10000")
    for axis, values in scenario.sweep.items():
        if not values:
            raise InvalidInput(f"{path}: the axis {axis} is swept over no value at all")
    list(scenario.runs())
    return scenario


#: axis -> smallest and largest value that makes sense, and its unit
LIMITS: dict[str, tuple[float, float, str]] = {
    "pool": (1, 7, "addresses"),
    "clients": (1, 500, "clients"),
    "plain_clients": (0, 500, "clients"),
    "moves": (1, 1000, "moves"),
    "memory_mib": (0, 4096, "MiB"),
    "dirty_mib_s": (0, 4096, "MiB/s"),
    "interval_ms": (0, 60_000, "ms"),
    "request_bytes": (0, 1 << 20, "bytes"),
    "response_bytes": (0, 1 << 20, "bytes"),
    "download_mib": (0, 4096, "MiB"),
    "upload_mib": (0, 4096, "MiB"),
    "before_s": (0.1, 600, "s"),
    "after_s": (0.1, 600, "s"),
    "rtt_ms": (0, 4000, "ms"),
    "source_rtt_ms": (0, 4000, "ms"),
    "jitter_ms": (0, 1000, "ms"),
    "loss_percent": (0, 100, "%"),
    "rate_mbps": (0.001, 100_000, "Mbit/s"),
    "inter_edge_mbps": (0.001, 100_000, "Mbit/s"),
    "dns_ttl_s": (0, 60, "s"),
    "tcp_user_timeout_ms": (0, 600_000, "ms"),
    "downtime_ms": (0, 600_000, "ms"),
    "request_timeout_ms": (10, 600_000, "ms"),
    "seed": (0, 2**53, ""),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "compression": COMPRESSIONS,
    "dns_cache": ("warm", "cold"),
    "link_backend": ("auto", "netem", "cable"),
    "memory_by": MEMORY_BY,
}


def check(asked: Asked) -> Asked:
    """Return ``asked`` if it makes sense; raises ``InvalidInput`` with what to give instead."""
    for axis, (least, most, unit) in LIMITS.items():
        value = getattr(asked, axis)
        if value is None:
            continue
        if not (math.isfinite(value) and least <= value <= most):
            raise InvalidInput(
                f"{axis} cannot be {value:g}{' ' + unit if unit else ''}",
                hint=f"give {least:g} to {most:g}{' ' + unit if unit else ''}",
            )
    for axis, choices in CHOICES.items():
        if getattr(asked, axis) not in choices:
            raise InvalidInput(
                f"{axis} cannot be {getattr(asked, axis)!r}", hint="choose from " + ", ".join(choices)
            )
    faults.check(asked)
    if asked.plain_clients > asked.clients:
        raise InvalidInput(
            f"{asked.plain_clients} of {asked.clients} clients cannot be plain", hint="give more --clients"
        )
    if asked.clients > 1 and (asked.baseline is not None or asked.download_mib or asked.upload_mib):
        raise InvalidInput(
            "many clients send requests only, and to our own server",
            hint="leave out --baseline, --download-mib and --upload-mib",
        )
    if asked.engine not in ENGINES:
        raise InvalidInput(f"there is no engine {asked.engine!r}", hint="choose from " + ", ".join(ENGINES))
    if asked.memory_by == "criu" and asked.engine not in LONG_ENGINES:
        raise InvalidInput(
            f"with the engine {asked.engine} no memory moves before or after the downtime",
            hint="--memory-by criu goes with " + ", ".join(sorted(LONG_ENGINES)),
        )
    return asked
