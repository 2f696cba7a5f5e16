from pathlib import Path

import pytest

from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.run.episode_log import (
    episode_files,
    read_episodes,
    read_steps,
    write_episodes,
    write_played,
    write_steps,
)
from megatron_empg.run.episode_text import EpisodeRecord, EpisodeText, TurnNumbers, TurnText
from megatron_empg.run.folder import RunFolder

EPISODE = EpisodeRecord(
    step=12,
    text=EpisodeText(
        "train-7",
        "Which river?",
        "success",
        [
            TurnText("<search>river</search>\n```\nfenced\n```", "1. Wang Chhu"),
            TurnText("<answer>Wang Chhu</answer>"),
        ],
        prompt="<|im_start|>user\nWhich river?",
        reward=0.25,
    ),
    reward=1.0,
    advantage=0.875,
    turns=[
        TurnNumbers(entropy=0.4125, advantage=0.9125, tokens=37, h_norm=0.31, g=1.12, bonus=0.081),
        TurnNumbers(entropy=0.1, advantage=0.875, tokens=9),
    ],
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path).open("")


def test_episodes_come_back_and_can_be_read(folder: RunFolder) -> None:
    write_episodes(folder, 12, [EPISODE])
    assert [path.name for path in episode_files(folder)] == ["step_000012.jsonl"]
    assert read_episodes(folder.episodes / "step_000012.jsonl") == [
        {
            "task_id": "train-7",
            "question": "Which river?",
            "outcome": "success",
            "prompt": "<|im_start|>user\nWhich river?",
            "error": None,
            "turns": [
                {
                    "text": "<search>river</search>\n```\nfenced\n```",
                    "observation": "1. Wang Chhu",
                    "entropy": 0.4125,
                    "advantage": 0.9125,
                    "tokens": 37,
                    "h_norm": 0.31,
                    "g": 1.12,
                    "bonus": 0.081,
                },
                {
                    "text": "<answer>Wang Chhu</answer>",
                    "observation": None,
                    "entropy": 0.1,
                    "advantage": 0.875,
                    "tokens": 9,
                },
            ],
            "step": 12,
            "reward": 1.0,
            "advantage": 0.875,
        }
    ]
    text = (folder.episodes / "step_000012.md").read_text()
    assert "outcome success, reward +1.000, advantage +0.875" in text
    assert "entropy 0.412 nats, H_norm 0.310, g 1.120, bonus +0.081, final advantage +0.912, 37 tokens" in text
    assert "entropy 0.100 nats, final advantage +0.875, 9 tokens" in text
    assert "1. Wang Chhu" in text


def test_a_fence_in_the_text_does_not_end_the_block(folder: RunFolder) -> None:
    write_episodes(folder, 12, [EPISODE])
    assert (
        "````text\n<search>river</search>\n```\nfenced\n```\n````"
        in (folder.episodes / "step_000012.md").read_text()
    )


def test_what_was_not_trained_on_stands_behind_and_says_so(folder: RunFolder) -> None:
    failed = EpisodeText(
        "train-8", "Who?", "error", [], "<|im_start|>user\nWho?", error="OSError: the tool is gone"
    )
    write_episodes(folder, 12, [EPISODE], [failed])
    first, second = read_episodes(folder.episodes / "step_000012.jsonl")
    assert first["advantage"] == 0.875
    assert (second["step"], second["error"], second["prompt"]) == (12, failed.error, failed.prompt)
    assert "advantage" not in second
    text = (folder.episodes / "step_000012.md").read_text(encoding="utf-8")
    assert "outcome error, reward +0.000, not trained on" in text
    assert "What the policy was given:\n\n```text\n<|im_start|>user\nWho?\n```" in text
    assert "OSError: the tool is gone" in text


def test_episodes_of_no_step_are_no_step_s_to_a_report(folder: RunFolder) -> None:
    write_played(folder, "probe", "Before the first step", [EPISODE.text])
    assert episode_files(folder) == []
    assert [episode["reward"] for episode in read_episodes(folder.episodes / "probe.jsonl")] == [0.25]
    assert (folder.episodes / "probe.md").read_text(encoding="utf-8").startswith("# Before the first step\n")


def test_no_episodes_no_file(folder: RunFolder) -> None:
    write_episodes(folder, 1, [])
    assert episode_files(folder) == []


def test_many_steps_are_sampled_in_rows_and_always_alike(folder: RunFolder) -> None:
    values = [float(n) for n in range(2000)]
    for _ in range(2):
        write_steps(
            folder,
            3,
            step_entropies=values,
            step_advantages=[v + 0.5 for v in values],
            trajectory_advantages=[-v for v in values],
        )
    first, second = read_lines(folder.steps)
    assert first == second
    assert len(first["step_entropies"]) == 512
    assert first["step_advantages"] == [v + 0.5 for v in first["step_entropies"]]
    assert first["trajectory_advantages"] == [-v for v in first["step_entropies"]]


def test_uneven_columns_are_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"lengths \[1, 2, 1\]"):
        write_steps(folder, 1, step_entropies=[0.1], step_advantages=[0.1, 0.2], trajectory_advantages=[0.1])


@pytest.mark.parametrize("value", ["0.5", [], {}, True, float("nan")])
def test_what_should_be_a_number_and_is_not_is_read_as_none(folder: RunFolder, value: object) -> None:
    path = folder.episodes / "step_000001.jsonl"
    path.parent.mkdir(exist_ok=True)
    names = ("entropy", "h_norm", "g", "bonus", "advantage", "tokens")
    turn = {"text": "t", **dict.fromkeys(names, value)}
    append_line(path, {"question": 3, "reward": value, "advantage": value, "turns": [turn]})
    (episode,) = read_episodes(path)
    assert episode == {
        "question": "3",
        "reward": None,
        "advantage": None,
        "turns": [{"text": "t", **dict.fromkeys(names)}],
    }


def test_an_episode_whose_turns_are_no_objects_is_left_out(folder: RunFolder) -> None:
    path = folder.episodes / "step_000001.jsonl"
    path.parent.mkdir(exist_ok=True)
    for turns in ([{"text": "t"}, 3], ["t"], "t", None, {"text": "t"}):
        append_line(path, {"question": "q", "turns": turns})
    append_line(path, {"question": "whole", "turns": [{"text": "t"}]})
    assert [episode["question"] for episode in read_episodes(path)] == ["whole"]


def test_steps_whose_entropies_are_not_numbers_are_left_out(folder: RunFolder) -> None:
    whole = {"step": 1, "step_entropies": [0.5], "step_advantages": [1.0], "trajectory_advantages": [2.0]}
    append_line(folder.steps, whole)
    append_line(folder.steps, whole | {"step_entropies": [float("nan"), "x", 0.25], "step_advantages": 3})
    for entropies in (3, "x", None, [], ["x"], {"a": 1}):
        append_line(folder.steps, whole | {"step_entropies": entropies})
    first, second = read_steps(folder)
    assert first == {"step_entropies": [0.5], "step_advantages": [1.0], "trajectory_advantages": [2.0]}
    assert second == {
        "step_entropies": [None, None, 0.25],
        "step_advantages": [],
        "trajectory_advantages": [2.0],
    }
