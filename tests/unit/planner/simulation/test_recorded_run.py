"""What the simulation reads of a run folder and of files of measurements."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from megatron_empg.common.jsonl import append_line
from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.planner.simulation.files import rates_as_json, read_latencies, read_rates
from megatron_empg.planner.simulation.recorded import lengths, read_recorded
from megatron_empg.planner.simulation.workload import RecordedWorkload
from megatron_empg.recipe import RecipeError
from megatron_empg.run.episode_log import write_episodes
from megatron_empg.run.episode_text import EpisodeRecord, EpisodeText, TurnNumbers, TurnText
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.timeline import EpisodeTimes, Span, StepTimeline, TurnTimes, write_timeline
from tests.support.recipes import quickstart

ROOT = Path(__file__).parents[4]


def episode(step: int) -> EpisodeRecord:
    """A prompt of 20 characters, an observation of 60, turns of 10 and 5 tokens."""
    turns = [TurnText("look", "o" * 60), TurnText("answer")]
    text = EpisodeText("task", "question", "success", turns, prompt="p" * 20)
    return EpisodeRecord(step, text, 1.0, 0.5, [TurnNumbers(0.1, 0.5, 10), TurnNumbers(0.1, 0.5, 5)])


def metrics(step: int, **changes: float) -> dict[str, float]:
    plain = {
        "step": step,
        "train/tokens_per_episode": 31.0,
        "train/groups_kept": 12,
        "train/groups_surplus": 0,
        "train/groups_dropped_equal": 3,
        "train/groups_dropped_errors": 1,
        "actor/score_tokens_per_second": 1000.0,
        "actor/update_tokens_per_second": 250.0,
        "time/score": 2.0,
        "time/update": 8.5,
        "time/other": 0.25,
        "time/sync": 0.5,
    }
    return {**plain, **changes}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps of 16 recorded episodes each, with the times of one."""
    folder = RunFolder(tmp_path / "run").open("recipe")
    append_line(folder.metrics, {"step": 0, "eval/test_id/sampled": 0.3})
    for step in (1, 2):
        append_line(folder.metrics, metrics(step))
        write_episodes(folder, step, [episode(step)] * 16)
        times = [TurnTimes(Span(0, 1), Span(1, 1 + step)), TurnTimes(Span(3, 4))]
        slowest = [EpisodeTimes("task", "success", "engine", Span(0, 5), None, times)]
        write_timeline(folder, StepTimeline(step, 128, 5.0, 1.0, slowest))
    folder.close()
    return folder.root


def test_lengths_latencies_and_speed_are_read(run: Path) -> None:
    found = read_recorded(run, quickstart())
    assert found.episodes == 32
    # 31 tokens an episode, of which 15 are its own: 16 tokens for 80 characters.
    assert found.groups[0][0] == ((4, 10), (12, 5))
    assert found.latencies == (1.0, 2.0)
    assert found.train_token_seconds == pytest.approx(1 / 1000 + 1 / 250)
    assert found.train_fixed_seconds == pytest.approx(0.5 + 0.25)
    assert found.sync_seconds == 0.5
    assert found.kept_share == pytest.approx(12 / 16)
    assert found.steps == 2


def test_episodes_of_a_question_of_a_step_are_together(run: Path) -> None:
    assert [len(group) for group in read_recorded(run, quickstart()).groups] == [16, 16]


def test_episodes_of_a_group_are_drawn_from_one_recorded_group() -> None:
    short, long = ((1, 10),), ((1, 10), (5, 20))
    workload = RecordedWorkload(((short, short, short), (long, long, long)))
    drawn = [workload.draw_group(Random(seed), 3) for seed in range(20)]
    assert {tuple(len(plan.turns) for plan in group) for group in drawn} == {(1, 1, 1), (2, 2, 2)}


def test_a_group_of_which_as_many_episodes_are_recorded_is_drawn_as_it_was() -> None:
    group = tuple(((read, 10),) for read in range(8))
    (drawn,) = {tuple(sorted(plan.turns[0].read for plan in RecordedWorkload((group,)).draw_group(Random(1), 8)))}
    assert drawn == tuple(range(8))


def test_every_recorded_episode_is_as_likely_as_another() -> None:
    short, long = ((1, 10),), ((1, 10), (5, 20))
    workload, numbers = RecordedWorkload(((short, short, short), (long,))), Random(1)
    drawn = [plan for _ in range(1000) for plan in workload.draw_group(numbers, 2)]
    assert sum(len(plan.turns) == 2 for plan in drawn) / len(drawn) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("kept", [1, 2])
def test_episodes_of_a_group_are_drawn_from_all_where_few_of_each_are_recorded(kept: int) -> None:
    workload = RecordedWorkload(((((1, 10),),) * kept, (((1, 10), (5, 20)),) * kept))
    drawn = [workload.draw_group(Random(seed), 4) for seed in range(20)]
    assert any(len({len(plan.turns) for plan in group}) == 2 for group in drawn)


def test_some_steps_alone_can_be_read(run: Path) -> None:
    found = read_recorded(run, quickstart(), [2])
    assert (found.episodes, found.latencies, found.steps) == (16, (2.0,), 1)


def test_episodes_of_which_nothing_was_read_read_a_token_each_turn() -> None:
    record: dict[str, Any] = {"prompt": "", "question": "", "turns": [{"tokens": 4, "observation": None}]}
    assert lengths([record], 4.0) == (((1, 4),),)


def test_what_is_too_little_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no trained step"):
        read_recorded(tmp_path, quickstart())
    (run / "episodes/step_000001.jsonl").unlink()
    with pytest.raises(RecipeError, match="0 trained episodes are recorded, and a distribution needs 16"):
        read_recorded(run, quickstart(), [1])
    with pytest.raises(RecipeError, match="a sequence for each turn"):
        read_recorded(run, quickstart("rollout.history=strip"))


def test_a_run_without_a_speed_is_refused(run: Path) -> None:
    line = metrics(3)
    del line["actor/update_tokens_per_second"]
    append_line(RunFolder(run).metrics, line)
    with pytest.raises(RecipeError, match="step 3 has no actor/update_tokens_per_second"):
        read_recorded(run, quickstart())


def test_rates_are_read_as_they_were_written(tmp_path: Path) -> None:
    rates = EngineRates(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 32)
    path = tmp_path / "rates.json"
    path.write_text(rates_as_json(rates), encoding="utf-8")
    assert read_rates(path) == rates


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not JSON"),
        ("[]", "must hold an object"),
        ('{"speed": 1}', "speed is not a rate; allowed: weights_seconds"),
        ('{"fixed_seconds": -1}', "must be a number of 0 or more"),
        ('{"fixed_seconds": true}', "must be a number of 0 or more"),
        ('{"read_seconds": 1}', "a pass takes no time"),
        ('{"fixed_seconds": 1, "block_tokens": 0}', "block_tokens is 0"),
    ],
)
def test_rates_that_cannot_be_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read_rates(path)


def test_latencies_are_a_list_of_seconds(tmp_path: Path) -> None:
    path = tmp_path / "latencies.json"
    path.write_text(json.dumps([0.5, 1]), encoding="utf-8")
    assert read_latencies(path) == (0.5, 1.0)
    for text, said in (("[]", "at least one"), ("[-1]", "number 0 is -1"), ("{}", "a list")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError, match=said):
            read_latencies(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_latencies(tmp_path / "none.json")
