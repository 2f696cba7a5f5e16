"""What a run recorded: lengths of its episodes, latencies of its environment, the speed of its trainer.

Lengths are those of the annotated episodes in ``episodes/`` (`logging.episodes_per_step` a step), the tokens that
the policy sampled in each turn. What it read is known as text; its tokens are taken to be in proportion to its
characters, so that the mean episode is as long as ``train/tokens_per_episode`` says. Latencies are those of
``timeline.jsonl``, of each step's slowest episodes. The trainer's speed is that of ``metrics.jsonl``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_empg.common.jsonl import read_lines
from megatron_empg.planner.simulation.setting import Setting
from megatron_empg.planner.simulation.workload import RecordedWorkload
from megatron_empg.recipe import Recipe, RecipeError
from megatron_empg.run.episode_log import episode_files, read_episodes
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.timeline import read_timelines

FEWEST = 16
"""Recorded episodes that a distribution is made of."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Recorded:
    """What was read from a run folder."""

    episodes: tuple[tuple[tuple[int, int], ...], ...]
    """(read, own) tokens of each turn of each episode."""
    latencies: tuple[float, ...]
    """Seconds of the environment's answers; empty where the run kept none."""
    train_token_seconds: float
    train_fixed_seconds: float
    sync_seconds: float
    kept_share: float
    steps: int
    """Whose metrics were read."""

    def applied(self, setting: Setting, otherwise: Sequence[float]) -> Setting:
        """A setting with what was recorded in the place of what was assumed; `otherwise`: latencies for a run
        that kept none."""
        latencies = self.latencies or tuple(otherwise)
        return replace(
            setting,
            workload=RecordedWorkload(self.episodes, latencies),
            train_token_seconds=self.train_token_seconds,
            train_fixed_seconds=self.train_fixed_seconds,
            sync_seconds=self.sync_seconds,
            kept_share=self.kept_share,
        )


def read_recorded(folder: Path, recipe: Recipe, steps: Sequence[int] | None = None) -> Recorded:
    """What a run recorded, of all steps or of those. Raises RecipeError where that is too little."""
    if recipe.most_sequences > 1:
        raise RecipeError(
            "--from cannot be used with episodes of a sequence for each turn (rollout.history strip, or an "
            "environment that writes what a turn reads anew): what their turns read is not recorded"
        )
    paths = RunFolder(folder)
    metrics = [line for line in read_lines(paths.metrics) if "time/update" in line and _wanted(line, steps)]
    if not metrics:
        raise RecipeError(
            f"--from {folder}: there is no trained step in {paths.metrics.name}; give a run's folder"
        )
    written = [episode for path in episode_files(paths) for episode in read_episodes(path)]
    trained = [episode for episode in written if "advantage" in episode and _wanted(episode, steps)]
    if len(trained) < FEWEST:
        raise RecipeError(
            f"--from {folder}: {len(trained)} trained episodes are recorded, and a distribution wants {FEWEST}; "
            "raise logging.episodes_per_step, or give a run of more steps"
        )
    times = [timeline for timeline in read_timelines(paths) if steps is None or timeline.step in steps]
    spans = [turn.environment for step in times for episode in step.slowest for turn in episode.turns]
    token_seconds = fmean(1 / _number(line, "actor/score_tokens_per_second", folder) for line in metrics)
    token_seconds += fmean(1 / _number(line, "actor/update_tokens_per_second", folder) for line in metrics)
    return Recorded(
        episodes=lengths(trained, fmean(line["train/tokens_per_episode"] for line in metrics)),
        latencies=tuple(span.seconds for span in spans if span is not None),
        train_token_seconds=token_seconds,
        train_fixed_seconds=max(0.0, fmean(map(_outside, metrics))),
        sync_seconds=fmean(line["time/sync"] for line in metrics),
        kept_share=_kept_share(metrics),
        steps=len(metrics),
    )


def lengths(episodes: Sequence[Record], mean_tokens: float) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(read, own) tokens of the turns of annotated episodes, whose mean of both together is `mean_tokens`."""
    read = [_texts_read(episode) for episode in episodes]
    own = [[int(turn["tokens"]) for turn in episode["turns"]] for episode in episodes]
    characters = sum(map(sum, read))
    tokens = mean_tokens * len(episodes) - sum(map(sum, own))
    by_character = max(0.0, tokens) / characters if characters else 0.0
    return tuple(
        tuple((max(1, round(seen * by_character)), said) for seen, said in zip(seens, saids, strict=True))
        for seens, saids in zip(read, own, strict=True)
    )


def _texts_read(episode: Record) -> list[int]:
    """Characters that each turn read anew: the prompt, then the observations."""
    turns = episode["turns"]
    opening = episode.get("prompt") or episode.get("question") or ""
    return [len(opening), *(len(turn.get("observation") or "") for turn in turns[:-1])]


def _outside(line: Record) -> float:
    """Seconds of a step that its tokens do not explain: phases' other work, and what lies between them."""
    tokens = line["actor/score_tokens_per_second"] * line["time/score"]
    updated = tokens / line["actor/update_tokens_per_second"]
    return float(line["time/update"] - updated + line.get("time/other", 0.0))


def _kept_share(metrics: Sequence[Record]) -> float:
    """Of all groups that were played; 1 where the run does not say."""
    kept = sum(line.get("train/groups_kept", 0) + line.get("train/groups_surplus", 0) for line in metrics)
    dropped = ("train/groups_dropped_equal", "train/groups_dropped_errors")
    lost = sum(line.get(name, 0) for line in metrics for name in dropped)
    return float(kept / (kept + lost)) if kept else 1.0


def _number(line: Record, name: str, folder: Path) -> float:
    value = line.get(name)
    if not isinstance(value, int | float) or not value > 0:
        raise RecipeError(f"--from {folder}: step {line.get('step')} has no {name}; give a run of this release")
    return float(value)


def _wanted(line: Record, steps: Sequence[int] | None) -> bool:
    return steps is None or line.get("step") in steps
