"""The figures of what the papers measure, from metrics written by hand under the registry's own names."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from megatron_empg.algorithms.diagnostics import BINS
from megatron_empg.report import paper_figures
from megatron_empg.report.chart import Chart, svg
from megatron_empg.report.data import RunData
from megatron_empg.report.health import health
from megatron_empg.report.look import COLOURS
from megatron_empg.report.page import page, write_report
from megatron_empg.report.points import ranges
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metric_names import AEM, AGREEMENT, DIAGNOSTICS, EMPG, EPO, POLICY, MetricFamily

PAPERS = "What the papers measure"
MEASURED = (
    paper_figures.entropy_change_by_bin,
    paper_figures.gradient_by_bin,
    paper_figures.relative_surprisal,
    paper_figures.amplified_and_damped,
)
CREDIT = (
    paper_figures.entropy_spread,
    paper_figures.scale_spread,
    paper_figures.bonus_share,
    paper_figures.length_push,
)


def names(*families: MetricFamily) -> list[str]:
    """Every name of the families as a run writes it."""
    told = [name for family in families for metric in family.metrics for name in metric.names]
    bins = [name.replace("BIN", str(number)) for name in told if "BIN" in name for number in range(BINS)]
    return [name for name in told if "BIN" not in name] + bins


def line(step: int, *families: MetricFamily) -> dict[str, float]:
    """A step at which all of the families' metrics were measured; each number differs from every other."""
    measured = {name: 0.01 * step + 0.001 * place for place, name in enumerate(names(*families))}
    return {"step": step, **measured}


def run_of(*metrics: dict[str, float], recipe: dict[str, object] | None = None) -> RunData:
    return RunData("run", recipe or {}, "", [], list(metrics), [], [], [])


def drawn(chart: Chart | None) -> Chart:
    """The chart, once its drawing is sound XML without a number that is none."""
    assert chart is not None
    drawing = svg(chart)
    ElementTree.fromstring(drawing)
    assert not re.search(r"\b(nan|inf|None)\b", drawing)
    return chart


def labels(chart: Chart) -> list[str]:
    return chart.figure.axes[0].get_legend_handles_labels()[1]


def upwards(chart: Chart) -> dict[str, list[float]]:
    """What is drawn upwards, by label."""
    labelled = [line for line in chart.figure.axes[0].lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(line.get_ydata()) for line in labelled}


def drawings(shown: str) -> list[str]:
    return re.findall("<svg.*?</svg>", shown, re.DOTALL)


def written(folder: Path, lines: list[str]) -> str:
    """The page of a run whose metrics.jsonl has these lines."""
    RunFolder(folder).open("algorithm: {name: grpo, modulation: empg}\nrun: {steps: 9}\n").close()
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("figure", [*MEASURED, *CREDIT])
def test_every_figure_is_drawn_from_the_registrys_names_and_says_what_to_look_for(
    figure: Callable[[RunData], Chart | None],
) -> None:
    shown = drawn(figure(run_of(*(line(step, EMPG, DIAGNOSTICS) for step in range(1, 21)))))
    assert "Look for" in shown.caption
    assert re.search("EMPG|AEM", shown.caption)


@pytest.mark.parametrize("figure", [*MEASURED, paper_figures.entropy_spread, paper_figures.scale_spread])
def test_aem_has_the_same_figures_under_its_own_names(figure: Callable[[RunData], Chart | None]) -> None:
    drawn(figure(run_of(line(1, AEM, DIAGNOSTICS), line(2, AEM, DIAGNOSTICS))))


def test_no_line_of_a_figure_lost_its_metric() -> None:
    empg = run_of(*(line(step, EMPG, DIAGNOSTICS) for step in (1, 2, 3)))
    aem = run_of(*(line(step, AEM, DIAGNOSTICS) for step in (1, 2, 3)))
    # Without those of aem that say the same.
    alone = run_of(*(line(step, EMPG) for step in (1, 2, 3)))
    assert labels(drawn(paper_figures.scale_spread(alone))) == ["largest", "95%", "5%", "smallest"]
    assert labels(drawn(paper_figures.scale_spread(aem))) == ["largest", "95%", "5%", "smallest"]
    assert labels(drawn(paper_figures.entropy_spread(alone))) == ["95%", "mean", "5%"]
    assert labels(drawn(paper_figures.entropy_spread(aem))) == ["95%", "5%"]
    assert labels(drawn(paper_figures.length_push(alone))) == ["of a token", "of a turn"]
    assert labels(drawn(paper_figures.length_push(aem))) == ["of a token", "of a turn"]
    assert len(labels(drawn(paper_figures.amplified_and_damped(empg)))) == 4
    assert len(labels(drawn(paper_figures.relative_surprisal(empg)))) == 2
    assert len(labels(drawn(paper_figures.bonus_share(empg)))) == 3


def test_clip_correction_and_epo_have_small_charts_of_all_their_metrics() -> None:
    shown = {figure.title: figure for figure in health(run_of(line(1, POLICY, AGREEMENT, EPO))) if figure}
    for title in ("Clipped tokens", "Ratio of new to old probability", "Weight of the correction"):
        assert "Look for" in drawn(shown[title]).caption
    assert len(labels(shown["What the correction changed"])) == 3
    assert len(labels(shown["Turns outside EPO's band"])) == 2


def test_a_run_without_diagnostics_has_no_figure_and_no_empty_frame(tmp_path: Path) -> None:
    shown = written(tmp_path, [json.dumps(line(step, POLICY)) for step in (1, 2, 3)])
    assert PAPERS not in shown
    for figure in (*MEASURED, *CREDIT):
        assert figure(run_of(line(1, POLICY))) is None
        assert figure(run_of()) is None


def test_a_run_whose_diagnostics_are_each_steps_own_has_no_figure_of_bins(tmp_path: Path) -> None:
    """``logging.diagnostics_every`` 0: the metrics that cost nothing are there, the others are not."""
    paid = ("entropy_change", "gradient_norm")
    kept = {name: value for name, value in line(1, EMPG, DIAGNOSTICS).items() if not any(p in name for p in paid)}
    shown = written(tmp_path, [json.dumps(kept)])
    assert PAPERS in shown
    assert "Amplified and damped turns" in shown
    assert "Entropy change by initial entropy" not in shown
    assert "Gradient of single turns" not in shown
    assert "drift that was measured" not in shown


def test_one_measurement_is_drawn_alone_and_dated() -> None:
    run = run_of(line(7, EMPG, DIAGNOSTICS))
    change = drawn(paper_figures.entropy_change_by_bin(run))
    assert change.caption.startswith("Measured once, in step 7.")
    (measured,) = upwards(change).values()
    assert len(measured) == BINS
    gradient = drawn(paper_figures.gradient_by_bin(run))
    assert "mean over 1 measurement." in gradient.caption
    assert "Bars:" not in gradient.caption
    for figure in (*MEASURED, *CREDIT):
        drawn(figure(run))


def test_first_middle_and_last_measurement() -> None:
    few = [{"step": step, "diagnostics/entropy_change_bin_0": float(step)} for step in (5, 10, 15, 20, 25)]
    two = drawn(paper_figures.entropy_change_by_bin(run_of(*few[:2])))
    assert labels(two) == ["step 5", "step 10"]
    assert {label: bins[0] for label, bins in upwards(two).items()} == {"step 5": 5.0, "step 10": 10.0}
    assert labels(drawn(paper_figures.entropy_change_by_bin(run_of(*few)))) == ["step 5", "step 15", "step 25"]


def test_of_many_measurements_neighbours_are_averaged() -> None:
    many = [{"step": step, "diagnostics/entropy_change_bin_9": float(step)} for step in range(1, 61)]
    figure = drawn(paper_figures.entropy_change_by_bin(run_of(*many)))
    assert labels(figure) == ["steps 1 to 5", "steps 28 to 32", "steps 56 to 60"]
    assert [bins[-1] for bins in upwards(figure).values()] == [3.0, 30.0, 58.0]


def test_a_bin_that_is_missing_or_not_a_number_leaves_a_gap() -> None:
    values = {f"diagnostics/gradient_norm_bin_{number}": 1.0 for number in range(BINS)}
    holes = {name: float("nan") if name.endswith("4") else value for name, value in values.items()}
    del holes["diagnostics/gradient_norm_bin_0"]
    figure = drawn(paper_figures.gradient_by_bin(run_of({"step": 1, **holes})))
    (shown,) = upwards(figure).values()
    assert [place for place, value in enumerate(shown) if np.isnan(value)] == [0, 4]
    # Lines join bins 1 to 3 and 5 to 9 alone.
    paths = [path.attrib["d"] for path in ElementTree.fromstring(svg(figure)).iter("path")]
    assert [path.count("L") for path in paths if path.count("M") == 2] == [2 + 4]


def test_a_bin_that_did_not_change_is_no_gap() -> None:
    measured = {f"diagnostics/entropy_change_bin_{number}": 0.0 for number in range(BINS)}
    figure = drawn(paper_figures.entropy_change_by_bin(run_of({"step": 1, **measured})))
    assert upwards(figure) == {"step 1": [0.0] * BINS}


def test_gradients_are_means_of_all_measurements_with_their_spread() -> None:
    measured = [{"step": n, "diagnostics/gradient_norm_bin_2": value} for n, value in enumerate((1.0, 2.0, 6.0))]
    figure = drawn(paper_figures.gradient_by_bin(run_of(*measured, recipe={"logging": {"diagnostics_turns": 16}})))
    assert upwards(figure)["steps 0 to 2"][2] == 3.0
    # Bin 2 has the quantiles of 1, 2, 6 at 5% and 95%: 1 + 0.1 · 1 and 6 − 0.1 · 4.
    (bars,) = figure.figure.axes[0].collections
    (bar,) = [ends for ends in bars.get_segments() if len(ends) == 2]
    assert bar == pytest.approx(np.array([[2, 1.1], [2, 5.6]]))
    assert "16 turns" in figure.caption


def test_a_file_with_nan_null_and_texts_is_shown_without_them(tmp_path: Path) -> None:
    whole = json.dumps(line(1, EMPG, AEM, EPO, POLICY, AGREEMENT, DIAGNOSTICS))
    bad = [re.sub(r": [\d.e-]+(?=[,}])", f": {value}", whole) for value in ("NaN", "null", '"<b>"', "-Infinity")]
    lines = [text.replace(text[: text.index(",")], f'{{"step": {n}', 1) for n, text in enumerate(bad, 2)]
    assert all(json.loads(text)["step"] in range(2, 6) for text in lines)
    shown, alone = written(tmp_path / "bad", [whole, *lines]), written(tmp_path / "good", [whole])
    assert drawings(shown) == drawings(alone)
    assert "&lt;b&gt;" not in shown


def test_every_number_bad_means_no_figure(tmp_path: Path) -> None:
    bad = {name: float("nan") for name in names(EMPG, DIAGNOSTICS)}
    assert PAPERS not in written(tmp_path, [json.dumps({"step": 1, **bad})])


def test_without_a_bonus_there_is_no_figure_of_its_share() -> None:
    """AEM logs a ratio of 0, and EMPG with zeta 0 a share of 0."""
    none = {"empg/bonus_share": 0.0, "diagnostics/bonus_ratio": 0.0, "empg/bonus_only_tokens": 0.2}
    assert paper_figures.bonus_share(run_of({"step": 1, **none})) is None


def test_the_bonus_is_shown_beside_its_target() -> None:
    recipe: dict[str, object] = {"algorithm": {"modulation": {"name": "empg", "target_bonus_ratio": 0.25}}}
    figure = drawn(paper_figures.bonus_share(run_of(line(1, DIAGNOSTICS), line(2, DIAGNOSTICS), recipe=recipe)))
    assert labels(figure) == ["|bonus| by |advantage|", "target of |bonus| by |advantage|"]


def test_rounding_of_a_centred_advantage_is_no_curve() -> None:
    steps = [{"step": n, "empg/advantage_mean": n * 1e-18, "empg/advantage_token_mean": -0.01} for n in range(9)]
    assert set(upwards(drawn(paper_figures.length_push(run_of(*steps))))["of a turn"]) == {0.0}


def test_figures_keep_to_the_pages_colours() -> None:
    """A colour written out would not change in the dark; a name that the style lacks would be black."""
    shown = page(run_of(*(line(n, EMPG, AEM, EPO, POLICY, AGREEMENT, DIAGNOSTICS) for n in range(1, 31))))
    svgs = "".join(drawings(shown))
    assert len(svgs) > 10_000
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", svgs))
    assert {"--card", "--muted", "--grid", "--soft", "--blue", "--strong-blue"} <= used
    assert used <= {f"--{name}" for name in COLOURS}
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svgs)) == {"none", *(f"var({name})" for name in used)}


def test_a_long_run_stays_a_small_page() -> None:
    families = (EMPG, AEM, EPO, POLICY, AGREEMENT, DIAGNOSTICS)
    run = run_of(*(line(step, *families) for step in range(1, 3001)))
    assert len(page(run).encode()) < 2_000_000


def test_ranges_are_of_steps_that_have_both_ends() -> None:
    assert ranges([(1, 0.1), (2, 0.2), (4, 0.4)], [(2, 2.0), (3, 3.0), (4, 4.0)]) == [(2, 0.2, 2.0), (4, 0.4, 4.0)]
    assert ranges([], [(1, 1.0)]) == []
    many = [(float(step), float(step % 2)) for step in range(1000)]
    assert len(ranges(many, many)) == 250
