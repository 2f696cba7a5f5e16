"""The timeline of a step in the report: every turn where it took place, of the step that is asked for."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from demo_run import write_demo
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.report.page import write_report
from megatron_empg.report.data import NoTimelineError, read_run
from megatron_empg.report.timeline import LABELS, RIGHT, WIDTH, timeline_figure
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.timeline import EpisodeTimes, Span, StepTimeline, TurnTimes, write_timeline

TITLE = "When the slowest episodes did what"


def episode(name: str, end: float, outcome: str = "success") -> EpisodeTimes:
    turns = [TurnTimes(Span(1.0, 2.0), Span(2.0, 4.0)), TurnTimes(Span(5.0, end))]
    return EpisodeTimes(name, outcome, "http://engine:1", Span(0.0, end), Span(0.0, 0.5), turns)


def timeline(step: int = 7) -> StepTimeline:
    slowest = [episode("q<1>", 10.0, "error"), episode("a name of a question that is long", 8.0)]
    return StepTimeline(step, 16, 10.0, 5.0, slowest)


def bars(content: str) -> list[tuple[float, float, str]]:
    """(second it begins, seconds, what it says) of every bar, by the axis from 0 to 10 seconds."""
    unit = (WIDTH - RIGHT - LABELS) / 10
    root = ElementTree.fromstring(f"<svg>{content}</svg>")
    found = []
    for bar in root.iter("rect"):
        begins, width = (float(bar.attrib[name]) for name in ("x", "width"))
        found.append(((begins - LABELS) / unit, width / unit, "".join(bar.itertext())))
    return found


def test_each_turn_is_drawn_where_it_took_place() -> None:
    figure = timeline_figure(timeline())
    drawn = bars(figure.chart.content)
    assert len(drawn) == 2 * 5
    wanted = [
        (0.0, 10.0, "error after 10.00 s"),
        (0.0, 0.5, "reset: 0.50 s"),
        (1.0, 1.0, "turn 1: generated for 1.00 s"),
        (2.0, 2.0, "turn 1: environment 2.00 s"),
        (5.0, 5.0, "turn 2: generated for 5.00 s"),
    ]
    for (begins, seconds, says), (at, long, said) in zip(drawn[:5], wanted, strict=True):
        assert (begins, seconds) == (pytest.approx(at, abs=0.01), pytest.approx(long, abs=0.01)), said
        assert says == said
    assert "The 2 slowest of 16 episodes of step 7" in figure.caption
    assert "2.0 times the median of 5.0 s" in figure.caption


def test_names_are_text_and_short() -> None:
    content = timeline_figure(timeline()).chart.content
    assert "q&lt;1&gt;" in content
    assert "a name of a question that…" in content
    assert "a name of a question that is long: success, 2 turns in 8.00 s on http://engine:1" in content
    assert len(re.findall("fill:var\\(--bad\\)", content)) == 1, "the one that failed"


def test_an_episode_that_never_began_a_turn_is_a_bar() -> None:
    alone = EpisodeTimes("q", "error", "", Span(0.0, 3.0), None, [])
    drawn = bars(timeline_figure(StepTimeline(1, 1, 10.0, 0.0, [alone])).chart.content)
    assert [says for _, _, says in drawn] == ["error after 3.00 s"]


def recorded(root: Path) -> RunFolder:
    folder = write_demo(root, steps=3)
    for step in (1, 2, 3):
        write_timeline(folder, timeline(step))
    return folder


def test_the_page_has_the_last_steps_timeline_or_that_of_a_step(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    page = write_report(folder.root).read_text()
    assert page.count(TITLE) == 1
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
