"""The page of what things cost: every curve can be asked for, and its rows say what was measured."""

import msgspec

from bench.bench_cost import CURVES, PARTS, rows_of
from bench.cost_page import Row, merged, own_rows, page
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
    downtimes = {0: [100, 110, 90, 105, 95, 100], 280: [900, 950, 850, 900, 910, 890]}
    of_spec = {
        point.spec: [
            msgspec.structs.replace(explored.GOOD, container_downtime_ms=float(each))
            for each in downtimes.get(int(point.x), ())
        ]
        for point in cold.points
    }
    text = page(rows_of(places, of_spec))
    assert "| criu-cold | 0 | 100 [90, 110] | 6 | 1.00 | 0.25 |" in text
    assert "| criu-cold | 280 | 900 [850, 950] | 6 | 9.00 | 2350 |" in text
    assert "| criu-cold | 28 | not measured | 0 |  | 235 |" in text


def test_what_needs_no_run_has_rows_of_the_same_form() -> None:
    assert not set(PARTS) & set(CURVES)
    rows = own_rows("T", "packets", "ms", "median", [(10, [2.0, 4.0]), (20, [6.0])], limit_is="0", limit=0)
    text = page(rows)
    assert "| median | 10 | 3 | 2 | 1.00 | 0 |" in text
    assert "| median | 20 | 6 | 1 | 2.00 | 0 |" in text


def test_a_table_that_is_measured_anew_replaces_the_old_one_and_leaves_the_others() -> None:
    def of(title: str, *values: float) -> list[Row]:
        return own_rows(title, "packets", "ms", "median", [(x, [value]) for x, value in enumerate(values)])

    found = merged(of("A", 1.0, 2.0) + of("B", 3.0), of("B", 4.0) + of("C", 5.0))
    assert found == of("A", 1.0, 2.0) + of("B", 4.0) + of("C", 5.0)
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Row]) == found
