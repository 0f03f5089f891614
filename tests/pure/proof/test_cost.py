"""The page of what things cost: every curve can be asked for, and its rows say what was measured."""

import msgspec

from bench.bench_cost import CURVES, page, rows_of
from session.request import parts_of, refusal
from tests import explored


def test_every_point_can_be_asked_for_and_no_place_is_given_twice() -> None:
    for curves in CURVES.values():
        for curve in curves():
            assert len({point.x for point in curve.points}) == len(curve.points) >= 3
            assert all(refusal(point.spec, parts_of(point.spec)) is None for point in curve.points)


def test_a_page_has_medians_intervals_ratios_and_limits() -> None:
    (cold,) = [curve for curve in CURVES["memory"]() if curve.series == "criu-cold"]
    places = [(cold, point) for point in cold.points]
    downtimes = {0: [100, 110, 90, 105, 95, 100], 100: [900, 950, 850, 900, 910, 890]}
    of_spec = {
        point.spec: [
            msgspec.structs.replace(explored.GOOD, container_downtime_ms=float(each))
            for each in downtimes.get(int(point.x), ())
        ]
        for point in cold.points
    }
    text = page(rows_of(places, of_spec), 6)
    assert "| criu-cold | 0 | 100 [90, 110] | 1.00 | 0.25 |" in text
    assert "| criu-cold | 100 | 900 [850, 950] | 9.00 | 839 |" in text
    assert "| criu-cold | 28 | not measured |  | 235 |" in text
