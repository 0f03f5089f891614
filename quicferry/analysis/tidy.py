"""One table over many runs: a row for each run, a column for each axis and each number, for other programs.

``COLUMNS`` describes every column; docs/columns.md is made from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from quicferry.analysis.breakdown import ORDER as BREAKDOWN
from quicferry.analysis.metrics import PHASES
from quicferry.record import RunResult
from quicferry.spec import Axis, axes


class Row(NamedTuple):
    """A run with its place in a sweep. A run of no sweep has "" and 0.

    ``place`` is that in the plan of the sweep.
    """

    sweep: str
    place: int
    repetition: int  # from 1; 0: a warm-up
    result: RunResult


class Column(NamedTuple):
    """A column of the table: its name, type, unit and meaning, and how a row's value is found."""

    name: str
    kind: type[pl.DataType] | pl.DataType
    unit: str
    text: str
    value: Callable[[Row], Any]


def _of_result(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.result, name)


def _of_spec(axis: Axis) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        if row.result.spec is None:  # of a version that did not write it
            return getattr(row.result, axis.name, None)
        found = getattr(row.result.spec, axis.name)
        if axis.kind == "faults":
            return " ".join(fault.words for fault in found)
        return None if found is None else str(found) if axis.kind is str else found

    return value


_KINDS: dict[Any, type[pl.DataType]] = {
    bool: pl.Boolean,
    int: pl.Int64,
    float: pl.Float64,
    str: pl.String,
    "faults": pl.String,
}
_MS, _BYTES = "ms", "bytes"
#: a number of ``RunResult`` -> its type, unit and meaning
_NUMBERS: dict[str, tuple[type[pl.DataType], str, str]] = {
    "rtt_ms": (pl.Float64, _MS, "Round-trip time client to destination, measured on the wire."),
    "service_migration_time_ms": (
        pl.Float64, _MS,
        "From the last useful packet from the old address to the first from the new one, by the capture.",
    ),
    "container_downtime_ms": (
        pl.Float64, _MS, "From the server's freeze at the source to the moment it serves at the destination.",
    ),
    "connection_overhead_ms": (
        pl.Float64, _MS,
        "From that moment, or from when a request could be there, to the first useful packet at the client.",
    ),
    "log_service_migration_time_ms": (
        pl.Float64, _MS, "The service-migration time by the client's own log: a cross-check.",
    ),
    "pto_ms": (pl.Float64, _MS, "The client's probe timeout when it noticed the loss."),
    "transferred_bytes": (pl.Int64, _BYTES, "State that was moved, before, in and after the downtime."),
    "inter_edge_bytes": (pl.Int64, _BYTES, "Seen on the wire between the edges."),
    "requests_sent": (pl.Int64, "requests", "Requests that the client sent."),
    "requests_lost": (pl.Int64, "requests", "Of these, never answered."),
    "requests_duplicated": (pl.Int64, "requests", "Of these, executed twice."),
    "requests_repeated": (pl.Int64, "requests", "Of these, sent again on a new connection."),
    "bytes_verified": (pl.Int64, _BYTES, "Payload that was checked and right."),
    "state_ok": (pl.Boolean, "", "Whether the service's state survived."),
    "largest_gap_ms": (pl.Float64, _MS, "Largest time between two useful packets at the client."),
    "disturbed": (pl.Boolean, "", "Whether others used the machine, or the emulator was late."),
    "emulator_late_p99_us": (pl.Float64, "us", "Lateness of the worst link, 99th percentile."),
    "queue_full_packets": (pl.Int64, "packets", "Dropped by full queues of links."),
    "cpu_others_percent": (pl.Float64, "%", "What processes of others took of the machine."),
    "cpu_steal_percent": (pl.Float64, "%", "What a hypervisor gave to others."),
    "cpu_pressure_percent": (pl.Float64, "%", "Share of time in which a process waited for a CPU."),
    "goodput_before_mbps": (pl.Float64, "Mbit/s", "Rate of bulk traffic in the second before the freeze."),
    "goodput_recovered_ms": (pl.Float64, _MS, "From the freeze until 90 % of that rate were reached again."),
    "bytes_sent_twice": (pl.Int64, _BYTES, "Of bulk traffic after the freeze, sent more than once."),
    "service_time_ms": (pl.Float64, _MS, "Median time from a request to the end of its answer."),
    "request_hit_ms": (
        pl.Float64, _MS,
        "Service time of the request that the move hit: under way in the downtime; of several the longest.",
    ),
    "first_request_after_ms": (
        pl.Float64, _MS, "Service time of the first request that was sent after the server had resumed.",
    ),
    "stalls": (pl.Int64, "", "Of videos: how often one stood still."),
    "stalled_ms": (pl.Float64, _MS, "Of videos: how long all of them together stood still."),
    "datagrams_sent": (pl.Int64, "datagrams", "Of games: datagrams that the clients sent."),
    "datagrams_received": (pl.Int64, "datagrams", "Of games: datagrams that the clients received."),
    "packets_undecrypted": (pl.Int64, "packets", "Of the client's capture, not decrypted."),
    "reconnected": (pl.Int64, "clients", "Clients that were told to connect again."),
    "connection_ids": (pl.Int64, "", "The server's connection IDs after the last move."),
}  # fmt: skip
#: fields of ``RunResult`` that are no column, or one by another name
LEFT_OUT = frozenset(
    {
        *("outcome", "kind", "spec", "error", "link_backend", "memory_path", "served_by", "run_id"),  # below
        *("strategy", "engine", "seed", "topology", "server_first", "pool", "memory_mib"),  # axes
        *("loss_percent", "rtt_asked_ms", "dns_ttl_s", "clients", "fault"),
        *(
            "phases_ms",
            "moments_ms",
            "breakdown_ms",
            "clients_validated_ms",
            "clients_service_migration_ms",
            "moves",
            "usage",
            "goodput_mbps",
        ),
        *("rtt_method", "warnings", "hint", "run_dir"),
    }
)


@functools.cache
def columns() -> dict[str, Column]:
    """Every column by its name, in the order of the table."""
    own = [
        Column("sweep", pl.String, "", "The run's sweep; empty for a single run.", lambda r: r.sweep),
        Column("index", pl.Int64, "", "The run's place in the plan of the sweep.", lambda r: r.place),
        Column("repetition", pl.Int64, "", "From 1; 0 for a warm-up.", lambda r: r.repetition),
        Column(
            "sample", pl.Boolean, "",
            "Whether the run counts: it is no warm-up. A failed run is a sample, too: see `outcome`.",
            lambda r: r.repetition > 0,
        ),
        Column("run_id", pl.String, "", "The name of the run's directory.", lambda r: r.result.run_id),
        Column(
            "outcome", pl.String, "", "succeeded, failed, unsupported or invalid.", lambda r: r.result.outcome
        ),
        Column("error", pl.String, "", "Why it did not succeed.", lambda r: r.result.error),
        Column("warnings", pl.Int64, "", "How many warnings the run has.", lambda r: len(r.result.warnings)),
        Column("kind", pl.String, "", "strategy or baseline: which the run had.", lambda r: r.result.kind),
        Column(
            "contender", pl.String, "", "The strategy or the baseline, whichever the run had.",
            lambda r: r.result.strategy,
        ),
    ]  # fmt: skip
    asked = [
        Column(
            axis.name if axis.name not in _NUMBERS else f"{axis.name}_asked",
            _KINDS[axis.kind], axis.unit, axis.text, _of_spec(axis),
        )
        for axis in axes().values()
    ]  # fmt: skip
    measured = [
        Column(
            "links_by", pl.String, "", "What shaped the links: netem or cable.",
            lambda r: r.result.link_backend,
        ),
        Column("memory_path", pl.String, "", "How the memory got across.", lambda r: r.result.memory_path),
        Column("served_by", pl.String, "", "Which edge served at the end.", lambda r: r.result.served_by),
        *(Column(name, *described, _of_result(name)) for name, described in _NUMBERS.items()),
        *(
            Column(
                f"phase_{name}_ms", pl.Float64, _MS, f"Length of the phase {name}.",
                _part("phases_ms", name),
            )
            for name in PHASES
        ),
        *(
            Column(
                f"at_{name}_ms", pl.Float64, _MS, f"The moment {name}, after the server's freeze.",
                _part("moments_ms", name),
            )
            for name in ("last_useful_old", "resumed", "first_packet", "validated", "useful")
        ),
        *(
            Column(
                f"part_{name.replace('-', '_')}_ms", pl.Float64, _MS,
                f"The part {name} of the service-migration time of a client that reconnects.",
                _part("breakdown_ms", name),
            )
            for name in BREAKDOWN
        ),
        *(
            Column(
                f"clients_service_migration_{name}_ms", pl.Float64, _MS,
                f"Over the clients of the run: {name} of each one's service-migration time.",
                _part("clients_service_migration_ms", name),
            )
            for name in ("median", "p95", "last")
        ),
    ]  # fmt: skip
    return {column.name: column for column in [*own, *asked, *measured]}


def _part(field: str, name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.result, field).get(name)


def tidy(rows: Sequence[Row]) -> pl.DataFrame:
    """The table over these runs, one row each."""
    return pl.DataFrame(
        {name: [column.value(row) for row in rows] for name, column in columns().items()},
        schema={name: column.kind for name, column in columns().items()},
    )


def described() -> Mapping[str, dict[str, str]]:
    """What is written into the file beside the table: unit and meaning of each column."""
    return {name: {"unit": column.unit, "text": column.text} for name, column in columns().items()}


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write the table as Parquet, whole or not at all; the descriptions stand in the file's metadata."""
    partial = path.with_name(path.name + ".partial")
    metadata = {"quicferry.columns": msgspec.json.encode(described()).decode()}
    table.write_parquet(partial, metadata=metadata)
    partial.replace(path)
