"""Sampled episodes in readable form: beside each turn's text, what the algorithm made of it.

What the files hold of an episode, `EpisodeRecord` says.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_empg.common.files import put_text
from megatron_empg.common.jsonl import append_line, number, read_lines
from megatron_empg.run.episode_text import EpisodeRecord, EpisodeText, UntrainedRecord
from megatron_empg.run.folder import RunFolder

STEPS_KEPT = 512
NUMBERS = {"reward", "advantage", "entropy", "h_norm", "g", "bonus", "tokens"}
"""Of an episode and its turns, in their records."""
TEXTS = {"task_id", "question", "outcome", "prompt", "error", "text", "observation"}
STEP_COLUMNS = ("step_entropies", "step_advantages", "trajectory_advantages")


def write_episodes(
    folder: RunFolder, step: int, episodes: Sequence[EpisodeRecord], untrained: Sequence[EpisodeText] = ()
) -> None:
    """Write ``episodes/step_000012.jsonl`` and the same as ``.md``; nothing when there are none.

    ``untrained`` stand behind the others: episodes that were played in the step and not trained on.
    """
    written = [episode.to_json() for episode in episodes]
    written += [UntrainedRecord(step, text).to_json() for text in untrained]
    _write(folder, f"step_{step:06d}", f"Step {step}", written)


def write_played(folder: RunFolder, name: str, title: str, episodes: Sequence[EpisodeText]) -> None:
    """Write ``episodes/NAME.jsonl`` and ``.md`` of episodes that belong to no training step."""
    _write(folder, name, title, [episode.to_json() for episode in episodes])


def _write(folder: RunFolder, name: str, title: str, episodes: Sequence[dict[str, Any]]) -> None:
    if not episodes:
        return
    stem = folder.episodes / name
    lines = [json.dumps(episode, ensure_ascii=False) for episode in episodes]
    put_text(stem.with_suffix(".jsonl"), "\n".join(lines) + "\n")
    pages = [f"# {title}"]
    for place, episode in enumerate(episodes, 1):
        pages.append(readable(episode, place))
    put_text(stem.with_suffix(".md"), "\n\n".join(pages) + "\n")


def write_steps(
    folder: RunFolder,
    step: int,
    *,
    step_entropies: Sequence[float],
    step_advantages: Sequence[float],
    trajectory_advantages: Sequence[float],
) -> None:
    """Add a batch's steps to steps.jsonl: entropy, final advantage, trajectory advantage of each.

    Of more than 512 steps a sample is kept, drawn with the training step as its seed. Raises ValueError when
    the three differ in length.
    """
    columns = (step_entropies, step_advantages, trajectory_advantages)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"{', '.join(STEP_COLUMNS)} have lengths {lengths}; one value per step is needed in each")
    chosen: Sequence[int] = range(lengths[0])
    if lengths[0] > STEPS_KEPT:
        chosen = sorted(random.Random(step).sample(chosen, STEPS_KEPT))
    line: dict[str, Any] = {"step": step}
    for name, column in zip(STEP_COLUMNS, columns, strict=True):
        line[name] = [float(f"{column[index]:.6g}") for index in chosen]
    append_line(folder.steps, line)


def episode_files(folder: RunFolder) -> list[Path]:
    """The files of sampled episodes, first step first."""
    return sorted(folder.episodes.glob("step_*.jsonl"))


def read_steps(folder: RunFolder) -> list[dict[str, list[float | None]]]:
    """The columns of `write_steps`, of every training step with an entropy; None where there is no number."""
    found = []
    for line in read_lines(folder.steps):
        columns = {name: _numbers(line.get(name)) for name in STEP_COLUMNS}
        if any(entropy is not None for entropy in columns["step_entropies"]):
            found.append(columns)
    return found


def _numbers(given: Any) -> list[float | None]:
    if not isinstance(given, list):
        return []
    return [number(value) for value in given]


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """The episodes of one training step, with None in place of what should be a number and is not. One whose
    turns are not objects is left out."""
    episodes = []
    for episode in read_lines(path):
        turns = episode.get("turns")
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            turns = [_typed(turn) for turn in turns]
            episodes.append({**_typed(episode), "turns": turns})
    return episodes


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    """The record of an episode or a turn with None for each of `NUMBERS` that is not a number, and with each of
    `TEXTS` as a text."""
    found = dict(record)
    for name in NUMBERS & record.keys():
        if number(record[name]) is None:
            found[name] = None
    for name in TEXTS & record.keys():
        if record[name] is not None:
            found[name] = str(record[name])
    return found


def readable(episode: Mapping[str, Any], place: int) -> str:
    """One episode as Markdown, as far as its record says."""
    facts = [f"outcome {episode.get('outcome', 'unknown')}"]
    for name in ("reward", "advantage"):
        if name in episode:
            facts.append(f"{name} {_number(episode[name])}")
    if "advantage" not in episode:
        facts.append("not trained on")
    parts = [f"## Episode {place}: {episode.get('task_id', 'unnamed')}", ", ".join(facts)]
    parts.append(_fenced(str(episode.get("question", ""))))
    for name, title in (("error", "Error"), ("prompt", "What the policy was given")):
        if episode.get(name):
            parts.append(f"{title}:\n\n" + _fenced(str(episode[name])))
    for index, turn in enumerate(episode.get("turns", ()), 1):
        parts.append(f"### Turn {index}\n\n{turn_facts(turn)}".rstrip())
        parts.append(_fenced(str(turn.get("text", ""))))
        if turn.get("observation"):
            parts.append("Observation:\n\n" + _fenced(str(turn["observation"])))
    return "\n\n".join(parts)


def turn_facts(turn: Mapping[str, Any]) -> str:
    """``entropy 0.412 nats, H_norm 0.310, g 1.120, bonus +0.081, final advantage +0.912, 37 tokens``."""
    names = (
        ("entropy", "entropy {:.3f} nats"),
        ("h_norm", "H_norm {:.3f}"),
        ("g", "g {:.3f}"),
        ("bonus", "bonus {:+.3f}"),
        ("advantage", "final advantage {:+.3f}"),
        ("tokens", "{} tokens"),
    )
    facts = []
    for name, form in names:
        if turn.get(name) is not None:
            facts.append(form.format(turn[name]))
    return ", ".join(facts)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:+.3f}"
    return str(value)


def _fenced(text: str) -> str:
    """A Markdown code block that ends only at its own end, whatever the text contains."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"
