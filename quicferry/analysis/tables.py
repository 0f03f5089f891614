"""Tables for the terminal: results of single runs, medians over many. Every heading names its unit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from quicferry.analysis.statistics import summarise
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from quicferry.strategies import rules_of

NOTHING = "–"  # noqa: RUF001 - the sign of a value that is not known
_COLOURS = {
    "succeeded": "green",
    "degraded": "yellow",
    "overloaded": "yellow",
    "failed": "bold red",
    "unsupported": "yellow",
    "invalid": "yellow",
}


def number(value: float | None, digits: int = 1) -> str:
    """A number with that many digits after the point, or a dash."""
    return NOTHING if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def size(value: int | None) -> str:
    """Bytes as B, kB or MB (powers of ten, as on a wire)."""
    if value is None:
        return NOTHING
    for limit, unit in ((1_000_000, "MB"), (1_000, "kB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value} B"


def cell_name(result: RunResult) -> str:
    """The name of a run's cell of the experiment: strategy, variant, pool."""
    name = result.strategy
    if result.pool > 1:
        name += f" of {result.pool}" if name == "pool" else f", pool of {result.pool}"
    if result.server_first:
        name += ", server first"
    if result.dns_ttl_s not in (None, RunSpec().dns_ttl_s):
        name += f", TTL {result.dns_ttl_s} s"
    return name


def engine_name(result: RunResult) -> str:
    """The engine, and how much memory the server had."""
    return result.engine + (f" +{result.memory_mib} MiB" if result.memory_mib else "")


def title(spec: RunSpec) -> str:
    """The heading of a run: its strategy or baseline."""
    if spec.baseline is not None:
        return spec.baseline
    return rules_of(spec.strategy).title + (", server first" if spec.server_first else "")


def overhead_in_rtt(result: RunResult) -> float | None:
    """The connection overhead in round trips to the destination."""
    if result.connection_overhead_ms is None or not result.rtt_ms:
        return None
    return result.connection_overhead_ms / result.rtt_ms


def short_id(run_id: str) -> str:
    """The date and time that an ID begins with: enough to find the run."""
    stamp = re.match(r"\d{8}-\d{6}(?=-)", run_id)
    return stamp[0] if stamp else run_id


def lost_requests(result: RunResult) -> str:
    """Requests lost of those sent: ``0 of 290``."""
    if result.requests_lost is None:
        return NOTHING
    return f"{result.requests_lost} of {result.requests_sent if result.requests_sent is not None else '?'}"


#: columns that a narrow terminal does without
_ONLY_WIDE = ("strategy", "engine", "RTT,\nms", "moved")
#: heading, justify, value
_COLUMNS: list[tuple[str, str, Callable[[RunResult], str]]] = [
    ("strategy", "left", cell_name),
    ("engine", "left", lambda r: engine_name(r)),
    ("service-\nmigration\ntime, ms", "right", lambda r: number(r.service_migration_time_ms)),
    ("container\ndowntime,\nms", "right", lambda r: number(r.container_downtime_ms)),
    ("connection\noverhead,\nms", "right", lambda r: number(r.connection_overhead_ms)),
    ("overhead,\nRTT", "right", lambda r: number(overhead_in_rtt(r), 2)),
    ("RTT,\nms", "right", lambda r: number(r.rtt_ms)),
    ("moved", "right", lambda r: size(r.transferred_bytes)),
    ("requests\nlost", "right", lost_requests),
]


class ResultTable:
    """One row per run; a rich renderable that leaves out what a narrow terminal has no room for.

    ``with_id`` puts in front what ``quicferry runs show`` takes.
    """

    def __init__(self, results: Sequence[RunResult], *, with_id: bool = False) -> None:
        self._results = results
        self._with_id = with_id

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._wide()
        yield (
            wide
            if console.measure(wide, options=options.update(max_width=10_000)).maximum <= (options.max_width)
            else self._narrow()
        )

    def _empty(self) -> Table:
        table = Table(header_style="bold", border_style="dim", box=SIMPLE_HEAD, pad_edge=False)
        if any(result.outcome == "succeeded" and result.warnings for result in self._results):
            table.caption = "! has warnings: see `quicferry runs show`"
        return table

    def _columns(self) -> list[tuple[str, str, Callable[[RunResult], str]]]:
        shares = ratios(self._results)
        if not shares:
            return _COLUMNS

        others = other_axes(self._results)

        def share(result: RunResult) -> str:
            measured = result.is_measured and result.service_migration_time_ms is not None
            cell = (name_in(result, others), engine_name(result))
            return number(shares.get(cell) if measured else None, 2)

        return [*_COLUMNS[:3], ("times the\nbest\nstrategy", "right", share), *_COLUMNS[3:]]

    def _wide(self) -> Table:
        table = self._empty()
        columns = self._columns()
        if self._with_id:
            table.add_column("run")
        for heading, justify, _ in columns:
            table.add_column(heading, justify="right" if justify == "right" else "left")
        table.add_column("outcome")
        for result in self._results:
            cells: list[str | Text] = [short_id(result.run_id or NOTHING)] if self._with_id else []
            cells += [value(result) for _, _, value in columns]
            table.add_row(*cells, _outcome(result))
        return table

    def _narrow(self) -> Table:
        """Name and outcome in one column, and the most important numbers."""
        table = self._empty()
        table.add_column("run", overflow="fold")
        numbers = [column for column in self._columns() if column[0] not in _ONLY_WIDE]
        for heading, _, _ in numbers:
            table.add_column(heading, justify="right", no_wrap=True)
        for result in self._results:
            name = Text(f"{cell_name(result)}\n{engine_name(result)} ")
            if self._with_id:
                name = Text(f"{short_id(result.run_id or NOTHING)}\n").append(name)
            table.add_row(name.append(_outcome(result)), *(value(result) for _, _, value in numbers))
        return table


def _outcome(result: RunResult) -> Text:
    text = Text(result.outcome, style=_COLOURS.get(result.outcome, ""))
    if result.outcome == "succeeded" and result.warnings:
        text.append(" !", style="yellow")
    return text


def result_table(results: Sequence[RunResult], *, with_id: bool = False) -> ResultTable:
    """One row per run."""
    return ResultTable(results, with_id=with_id)


Cell = tuple[str, str]


#: axes that ``cell_name`` and ``engine_name`` tell already, and the one in which samples of a cell differ
_TOLD = frozenset(
    ("strategy", "baseline", "engine", "server_first", "pool", "memory_mib", "dns_ttl_s", "seed", "faults")
)


def other_axes(results: Iterable[RunResult]) -> list[str]:
    """The axes of which there is more than one value among these runs, besides those in a cell's name."""
    specs = [result.spec for result in results if result.spec is not None]
    found = []
    for name in RunSpec.__struct_fields__:
        values = {getattr(spec, name) for spec in specs}
        given = [value for spec in specs if (value := getattr(spec, name)) is not None]
        if name == "downtime_ms" and len(set(given)) == len(given):
            continue  # borrowed from an engine: another one in each run
        if name not in _TOLD and len(values) > 1:
            found.append(name)
    return found


def name_in(result: RunResult, others: Sequence[str]) -> str:
    """The name of a run's cell where these ``other_axes`` vary as well."""
    name = cell_name(result)
    for axis in others:
        value = getattr(result.spec, axis) if result.spec is not None else None
        words = NOTHING if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        name += f", {axis} {words}"
    return name


def cells(results: Iterable[RunResult]) -> dict[Cell, list[RunResult]]:
    """Runs grouped by strategy, engine and whatever else varies, in the order of their first appearance."""
    results = list(results)
    others = other_axes(results)
    found: dict[Cell, list[RunResult]] = {}
    for result in results:
        found.setdefault((name_in(result, others), engine_name(result)), []).append(result)
    return found


def median_and_interval(values: Sequence[float], digits: int = 1) -> str:
    """``41.2 [39.8, 44.0]``; without the interval when there are too few values for one."""
    if not values:
        return NOTHING
    summary = summarise(values)
    text = number(summary.median, digits)
    if summary.low is not None and summary.high is not None:
        text += f" [{number(summary.low, digits)}, {number(summary.high, digits)}]"
    return text


def ratios(results: Sequence[RunResult]) -> dict[Cell, float]:
    """Each cell's median service-migration time, in units of the best QUIC strategy's with the same engine.

    Empty when there is no baseline to compare, or no strategy to compare it with.
    """
    medians: dict[Cell, float] = {}
    best: dict[str, float] = {}
    compared = False
    for cell, group in cells(results).items():
        compared |= group[0].kind == "baseline"
        times = [
            r.service_migration_time_ms
            for r in group
            if r.is_measured and r.service_migration_time_ms is not None
        ]
        if not times:
            continue
        medians[cell] = summarise(times).median
        if group[0].kind == "strategy":
            best[cell[1]] = min(best.get(cell[1], medians[cell]), medians[cell])
    if not compared:
        return {}
    return {cell: value / best[cell[1]] for cell, value in medians.items() if best.get(cell[1])}


def comparison_table(results: Sequence[RunResult]) -> Table | ResultTable:
    """One row per strategy, variant and engine: medians with 95 % confidence intervals.

    With one run per row this is ``result_table``. Failed and overloaded runs count in the last columns only.
    """
    groups = cells(results)
    if all(len(group) == 1 for group in groups.values()):
        return result_table(results)
    table = Table(
        header_style="bold", border_style="dim", caption="median [its exact 95 % confidence interval]"
    )
    for heading in ("strategy", "engine"):
        table.add_column(heading)
    columns: list[tuple[str, int, Callable[[RunResult], float | None]]] = [
        ("service-\nmigration\ntime, ms", 1, lambda r: r.service_migration_time_ms),
        ("container\ndowntime,\nms", 1, lambda r: r.container_downtime_ms),
        ("connection\noverhead,\nms", 1, lambda r: r.connection_overhead_ms),
        ("overhead,\nRTT", 2, overhead_in_rtt),
        ("RTT,\nms", 1, lambda r: r.rtt_ms),
    ]
    shares = ratios(results)
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", overflow="fold")
    if shares:
        table.add_column("times the\nbest\nstrategy", justify="right", overflow="fold")
    for heading in ("moved", "requests\nlost", "runs\nsucceeded"):
        table.add_column(heading, justify="right", overflow="fold")
    for (strategy, engine), group in groups.items():
        good = [result for result in group if result.outcome == "succeeded"]
        # a degraded run counts: to leave out the moves in which something was lost would flatter the rest
        measured = [result for result in group if result.is_measured]
        row = [strategy, engine]
        for _, digits, value in columns:
            row.append(median_and_interval([v for r in measured if (v := value(r)) is not None], digits))
        if shares:
            row.append(number(shares.get((strategy, engine)), 2))
        moved = [r.transferred_bytes for r in measured if r.transferred_bytes is not None]
        row.append(size(round(summarise(moved).median)) if moved else NOTHING)
        lost = sum(r.requests_lost or 0 for r in group)
        row.append(f"{lost} of {sum(r.requests_sent or 0 for r in group)}")
        style = "" if len(good) == len(group) else "bold red"
        table.add_row(*row, Text(f"{len(good)} of {len(group)}", style=style))
    return table
