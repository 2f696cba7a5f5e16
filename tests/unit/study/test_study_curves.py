"""Curves over seeds."""

from pathlib import Path

from megatron_empg.report.points import Range
from megatron_empg.study.curves import charts_of, curve_of, over_seeds
from tests.support.studies import result, small_study


def test_a_curve_leaves_out_steps_without_success() -> None:
    assert curve_of(result("plain", 1, "01", curve=[0.1, None, 0.3])) == [(1.0, 0.1), (3.0, 0.3)]


def test_the_range_is_from_the_lowest_to_the_highest_seed() -> None:
    middle, ranges = over_seeds([[(1.0, 0.25), (2.0, 0.5)], [(1.0, 0.75)]])
    assert middle == [(1.0, 0.5), (2.0, 0.5)]
    assert ranges == [Range(1.0, 0.25, 0.75), Range(2.0, 0.5, 0.5)]


def test_more_methods_than_one_chart_holds_are_in_the_next(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    study = small_study(tmp_path, methods={"plain": {}, **{name: {"base": "plain"} for name in names}})
    results = [result(name, 1, "01") for name in ("plain", *names)]
    charts = list(charts_of(study, {one.cell: one for one in results}))
    assert [one.name for one in charts] == ["quickstart-plain-1", "quickstart-plain-2"]
    legends = [[text.get_text() for text in one.chart.figure.legends[0].get_texts()] for one in charts]
    assert legends == [["plain", "a", "b", "c"], ["plain", "d"]]
