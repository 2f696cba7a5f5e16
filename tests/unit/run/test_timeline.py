"""The times of a step's slowest episodes, as a file beside the metrics."""

from pathlib import Path

import pytest

from megatron_empg.common.jsonl import append_line
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.timeline import EpisodeTimes, Span, StepTimeline, TurnTimes, read_timelines, write_timeline

EPISODE = EpisodeTimes(
    "q1",
    "success",
    "http://engine:1",
    Span(0.125, 4.0),
    Span(0.125, 0.5),
    [TurnTimes(Span(0.5, 2.0), Span(2.0, 2.25)), TurnTimes(Span(2.25, 4.0))],
)


def timeline(step: int) -> StepTimeline:
    return StepTimeline(step, 8, 4.5, 1.5, [EPISODE])


def test_a_line_for_each_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_timelines(folder) == []
    for step in (1, 2):
        write_timeline(folder, timeline(step))
    assert read_timelines(folder) == [timeline(1), timeline(2)]


def test_a_step_without_episodes_has_no_line(tmp_path: Path) -> None:
    write_timeline(RunFolder(tmp_path), StepTimeline(1, 0, 4.5, 0.0, []))
    assert not RunFolder(tmp_path).timeline.exists()


def test_a_torn_line_is_left_out_and_a_step_done_again_is_the_later_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_timeline(folder, timeline(2))
    with folder.timeline.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "played"\n{"step": 4}\n[1]\n')
    again = StepTimeline(2, 9, 5.0, 1.0, [EPISODE])
    write_timeline(folder, again)
    assert read_timelines(folder) == [again]


@pytest.mark.parametrize("value", [None, "1", [1.0], True])
@pytest.mark.parametrize("key", ["seconds", "median"])
def test_a_line_with_seconds_that_are_no_number_is_left_out(tmp_path: Path, key: str, value: object) -> None:
    folder = RunFolder(tmp_path)
    write_timeline(folder, timeline(1))
    append_line(folder.timeline, timeline(2).to_json() | {key: value})
    spans = [{"whole": [0.0, value]}, {"opening": [value, 1.0]}, {"turns": [[[0.0, value], None]]}]
    for span in spans:
        episode = EPISODE.to_json() | span
        append_line(folder.timeline, timeline(3).to_json() | {"slowest": [episode]})
    assert read_timelines(folder) == [timeline(1)]


def test_a_continuation_cuts_the_steps_that_are_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    for step in (1, 2, 3):
        write_timeline(folder, timeline(step))
    folder.cut(3)
    assert [each.step for each in read_timelines(folder)] == [1, 2]


def test_a_line_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    folder.timeline.mkdir()
    write_timeline(folder, timeline(7))
    (said,) = caplog.messages
    assert said.startswith(f"step 7: its timeline could not be written to {folder.timeline}: ")


@pytest.mark.parametrize("given", [None, [], {}, {**timeline(1).to_json(), "slowest": [{}]}, {"step": "x"}])
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="not a timeline of a step"):
        StepTimeline.from_json(given)
