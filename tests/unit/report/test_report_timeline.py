"""The timeline of a step in the report: every turn where it took place, of the step that is asked for."""

from math import isnan
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.report.chart import Chart, svg
from megatron_empg.report.data import NoTimelineError, read_run
from megatron_empg.report.page import write_report
from megatron_empg.report.timeline import TITLE, timeline_chart
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.timeline import EpisodeTimes, Span, StepTimeline, TurnTimes, write_timeline
from tests.unit.report.demo_run import write_demo


def episode(name: str, end: float, outcome: str = "success") -> EpisodeTimes:
    turns = [TurnTimes(Span(1.0, 2.0), Span(2.0, 4.0)), TurnTimes(Span(5.0, end))]
    return EpisodeTimes(name, outcome, "http://engine:1", Span(0.0, end), Span(0.0, 0.5), turns)


def timeline(step: int = 7) -> StepTimeline:
    slowest = [episode("q<1>", 10.0, "error"), episode("a name of a question that is long", 8.0)]
    return StepTimeline(step, 16, 10.0, 5.0, slowest)


def bars(chart: Chart) -> dict[str, list[tuple[float, float, float]]]:
    """(row, second it begins, second it ends) of every bar, by what it is of."""
    found = {}
    for line in chart.figure.axes[0].lines:
        across, down = (list(data) for data in line.get_data())
        assert all(isnan(gap) for gap in across[2::3]), "a gap between bars"
        found[line.get_label()] = list(zip(down[::3], across[::3], across[1::3], strict=True))
    return found


def test_each_turn_is_drawn_where_it_took_place() -> None:
    chart = timeline_chart(timeline())
    drawn = bars(chart)
    assert drawn["neither"] == [(0, 0.0, 10.0), (1, 0.0, 8.0)]
    assert drawn["environment acts"] == [(0, 0.0, 0.5), (0, 2.0, 4.0), (1, 0.0, 0.5), (1, 2.0, 4.0)]
    assert drawn["engine generates"] == [(0, 1.0, 2.0), (0, 5.0, 10.0), (1, 1.0, 2.0), (1, 5.0, 8.0)]
    assert "The 2 slowest of 16 episodes of step 7" in chart.caption
    assert "2.0 times the median of 5.0 s" in chart.caption


def test_every_bar_reaches_the_page() -> None:
    """With what is short as a line that can be seen."""
    turns = [TurnTimes(Span(at, at + 1e-6), Span(at + 0.5, at + 0.6)) for at in range(1, 10)]
    played = EpisodeTimes("q", "success", "", Span(0.0, 10.0), None, turns)
    chart = timeline_chart(StepTimeline(1, 1, 10.0, 10.0, [played]))
    begun, ended = bars(chart)["engine generates"][0][1:]
    assert ended - begun == pytest.approx(0.006)
    paths = [path.attrib["d"] for path in ElementTree.fromstring(svg(chart)).iter("path")]
    assert sorted(path.count("M") for path in paths)[-2:] == [9, 9]


def test_names_are_text_and_short() -> None:
    drawing = svg(timeline_chart(timeline()))
    assert "q&lt;1&gt;" in drawing
    assert "a name of a question that…" in drawing
    named = [text.attrib["style"] for text in ElementTree.fromstring(drawing).iter("text") if "q<1>" in text.text]
    assert "var(--orange)" in named[0], "the one that failed"


def test_a_name_that_cannot_be_printed_is_no_fault() -> None:
    strange = EpisodeTimes("a\x00b\nc\ud800$x$", "success", "", Span(0.0, 3.0), None, [])
    drawing = svg(timeline_chart(StepTimeline(1, 1, 10.0, 0.0, [strange])))
    assert "a?b?c?$x$" in list(ElementTree.fromstring(drawing).itertext())


def test_an_episode_that_never_began_a_turn_is_a_bar() -> None:
    alone = EpisodeTimes("q", "error", "", Span(0.0, 3.0), None, [])
    drawn = bars(timeline_chart(StepTimeline(1, 1, 10.0, 0.0, [alone])))
    assert drawn == {"neither": [(0, 0.0, 3.0)], "engine generates": [], "environment acts": []}


def recorded(root: Path) -> RunFolder:
    folder = write_demo(root, steps=3)
    for step in (1, 2, 3):
        write_timeline(folder, timeline(step))
    return folder


def test_the_page_has_the_last_steps_timeline_or_that_of_a_step(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    page = write_report(folder.root).read_text()
    assert page.count(f"<h3>{TITLE}</h3>") == 1
    assert "episodes of step 3," in page
    assert "episodes of step 2," in write_report(folder.root, timeline_step=2).read_text()
    with pytest.raises(NoTimelineError, match=r"step 9 of .* steps 1 to 3 have one"):
        write_report(folder.root, timeline_step=9)


def test_a_run_of_an_earlier_release_has_none(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, steps=3)
    assert read_run(folder).timeline is None
    assert TITLE not in write_report(folder.root).read_text()
    with pytest.raises(NoTimelineError, match="no step has one"):
        write_report(folder.root, timeline_step=1)


def test_the_command_takes_a_step(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    done = CliRunner().invoke(app, ["report", str(folder.root), "--step", "1"])
    assert done.exit_code == 0, done.output
    assert "episodes of step 1," in folder.report.read_text()
