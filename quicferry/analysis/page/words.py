"""The summary of a report in sentences, and what a reader must know before believing the figures."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from quicferry.analysis import tables
from quicferry.analysis.page.groups import MEASURES, Group
from quicferry.analysis.statistics import ENOUGH, Comparison, compare
from quicferry.errors import StoreError
from quicferry.record import RunResult, read_manifest

MOST_COMPARISONS = 120  # in the page's table; those with the largest effects


def summary(groups: Sequence[Group]) -> list[str]:
    """What was run, what was fastest and slowest, and what was lost: a few sentences."""
    results = [result for group in groups for result in group.results]
    good = sum(result.outcome == "succeeded" for result in results)
    sentences = [
        f"{_count(len(results), 'run')} of {_count(len(groups), 'combination')}; {good} succeeded"
        + ("." if good == len(results) else f", {len(results) - good} did not.")
    ]
    for engine in dict.fromkeys(group.engine for group in groups):
        sentences += _of_engine(engine, [group for group in groups if group.engine == engine])
    known = [result for result in results if result.requests_lost is not None]
    lost = sum(result.requests_lost or 0 for result in known)
    twice = sum(result.requests_duplicated or 0 for result in known)
    sent = sum(result.requests_sent or 0 for result in known)
    sentences.append(
        f"Of {sent} requests {lost or 'none'} went unanswered and {twice or 'none'} were executed twice."
    )
    return sentences


def _of_engine(engine: str, groups: Sequence[Group]) -> list[str]:
    medians = {
        group.contender: found.median for group in groups if (found := group.summary(MEASURES[0])) is not None
    }
    if not medians:
        return []
    if len(medians) == 1:
        ((name, value),) = medians.items()
        return [f"With {engine} the client of {name} was without service for {value:.1f} ms in the median."]
    best, worst = min(medians, key=lambda name: medians[name]), max(medians, key=lambda name: medians[name])
    ratio = f", {medians[worst] / medians[best]:.1f} times as long" if medians[best] else ""
    return [
        f"With {engine} the client was without service for the shortest time with {best} "
        f"({medians[best]:.1f} ms in the median) and for the longest with {worst} "
        f"({medians[worst]:.1f} ms{ratio})."
    ]


def comparisons(groups: Sequence[Group]) -> list[Comparison]:
    """Every pair of combinations of one engine that has enough runs, all corrected together."""
    found: list[Comparison] = []
    for engine in dict.fromkeys(group.engine for group in groups):
        found += compare(
            {group.name: group.values(MEASURES[0]) for group in groups if group.engine == engine}
        )
    return found


def shown_comparisons(found: Sequence[Comparison]) -> list[Comparison]:
    """Those that the page has room for: the largest effects."""
    return sorted(found, key=lambda pair: (-abs(pair.delta), pair.p))[:MOST_COMPARISONS]


def cautions(groups: Sequence[Group]) -> list[str]:
    """Why some figures are to be read with care: too few runs, failures, warnings of the runs."""
    notes = []
    few = [group for group in groups if not group.has_enough]
    if few:
        names = _some([group.name for group in few])
        notes.append(
            f"Too few repetitions: {names} {'has' if len(few) == 1 else 'have'} fewer than {ENOUGH} runs "
            "that succeeded, so there is no 95 % interval of the median and no test. `quicferry sweep FILE "
            f"--resume --repetitions {ENOUGH}` adds what is missing."
        )
    for group in groups:
        failed = [result for result in group.results if result.outcome != "succeeded"]
        if failed:
            notes.append(
                f"{group.name}: {len(failed)} of {len(group.results)} runs did not succeed; the first one "
                f"{failed[0].outcome}: {failed[0].error}"
            )
    counted = collections.Counter(
        _kind_of(warning) for group in groups for result in group.results for warning in result.warnings
    )
    notes += [f"{_count(times, 'run')}: {warning}" for warning, times in counted.most_common(12)]
    return notes


def _kind_of(warning: str) -> str:
    """A warning without its numbers, by which it differs from run to run."""
    return "".join("#" if sign.isdigit() else sign for sign in warning).replace("##", "#").replace("##", "#")


def environment(results: Iterable[RunResult]) -> dict[str, str]:
    """On what these runs were made: each condition, with all of its values when there are several."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        if result.run_dir is None:
            continue
        try:
            manifest = read_manifest(Path(result.run_dir))
        except StoreError:
            continue
        values: Mapping[str, str] = {
            "topology": manifest.topology.name,
            **manifest.machine,
            "kernel": manifest.kernel,
            "links shaped by": manifest.link_backend,
            "quicferry": manifest.tool_version,
            **dict(sorted(manifest.versions.items())),
        }
        for name, value in values.items():
            if value:
                found.setdefault(name, {})[value] = None
    return {name: " / ".join(values) for name, values in found.items()}


def interval_words(group: Group, place: int) -> tuple[str, str]:
    """A measure of a group for the table: the median, and its interval in brackets."""
    text, _, interval = tables.median_and_interval(group.values(MEASURES[place])).partition(" ")
    return text, interval


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _some(names: Sequence[str], most: int = 4) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more"
