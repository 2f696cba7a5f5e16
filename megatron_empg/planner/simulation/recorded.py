"""What a run recorded: lengths of its episodes, latencies of its environment, the speed of its trainer.

Lengths are those of the annotated episodes in ``episodes/`` (`logging.episodes_per_step` a step), the tokens that
the policy sampled in each turn. What it read is known as text; its tokens are taken to be in proportion to its
characters, so that the mean episode is as long as ``train/tokens_per_episode`` says. Latencies are those of
``timeline.jsonl``, of each step's slowest episodes. The trainer's speed is that of ``metrics.jsonl``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_empg.common.jsonl import read_lines
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.planner.simulation.workload import RecordedEpisode, RecordedWorkload
from megatron_empg.recipe import Recipe, RecipeError
from megatron_empg.run.episode_log import episode_files, read_episodes
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.timeline import read_timelines

FEWEST = 16
"""Recorded episodes that a distribution is made of."""
EpisodeRecordFields = Mapping[str, Any]


@dataclass(frozen=True)
class RecordedRun:
    """What was read from a run folder."""

    groups: tuple[tuple[RecordedEpisode, ...], ...]
    """The recorded episodes of each question of each step."""
    latencies: tuple[float, ...]
    """Seconds of the environment's answers; empty where the run kept none."""
    train_token_seconds: float
    train_fixed_seconds: float
    sync_seconds: float
    kept_share: float
    steps: int
    """Whose metrics were read."""

    @property
    def episodes(self) -> int:
        """That were recorded."""
        return sum(map(len, self.groups))

    def applied(self, setting: SimulationSetting, otherwise: Sequence[float]) -> SimulationSetting:
        """A setting with what was recorded in the place of what was assumed; `otherwise`: latencies for a run
        that kept none."""
        latencies = self.latencies or tuple(otherwise)
        return replace(
            setting,
            workload=RecordedWorkload(self.groups, latencies),
            train_token_seconds=self.train_token_seconds,
            train_fixed_seconds=self.train_fixed_seconds,
            sync_seconds=self.sync_seconds,
            kept_share=self.kept_share,
        )


def read_recorded(folder: Path, recipe: Recipe, steps: Sequence[int] | None = None) -> RecordedRun:
    """What a run recorded, of all steps or of those. Raises RecipeError where that is too little."""
    if recipe.most_sequences > 1:
        raise RecipeError(
            "--from cannot be used with episodes of a sequence for each turn (rollout.history strip, or an "
            "environment that writes what a turn reads anew): what their turns read is not recorded"
        )
    paths = RunFolder(folder)
    metrics = []
    for line in read_lines(paths.metrics):
        if "time/update" in line and _wanted(line, steps):
            metrics.append(line)
    if not metrics:
        raise RecipeError(
            f"--from {folder}: there is no trained step in {paths.metrics.name}; give a run's folder"
        )
    trained = _trained_episodes(paths, steps)
    if len(trained) < FEWEST:
        raise RecipeError(
            f"--from {folder}: {len(trained)} trained episodes are recorded, and a distribution needs {FEWEST}; "
            "raise logging.episodes_per_step, or give a run of more steps"
        )
    token_seconds = _seconds_of_token(metrics, "score", folder) + _seconds_of_token(metrics, "update", folder)
    fixed_seconds = max(0.0, fmean(map(_outside, metrics)))
    return RecordedRun(
        groups=grouped(trained, lengths(trained, _mean(metrics, "train/tokens_per_episode"))),
        latencies=_latencies(paths, steps),
        train_token_seconds=token_seconds,
        train_fixed_seconds=fixed_seconds,
        sync_seconds=_mean(metrics, "time/sync"),
        kept_share=_kept_share(metrics),
        steps=len(metrics),
    )


def _trained_episodes(paths: RunFolder, steps: Sequence[int] | None) -> list[EpisodeRecordFields]:
    """Those that were written down of the wanted steps and trained on."""
    trained: list[EpisodeRecordFields] = []
    for path in episode_files(paths):
        for episode in read_episodes(path):
            counted = all(turn.get("tokens") is not None for turn in episode["turns"])
            if counted and "advantage" in episode and _wanted(episode, steps):
                trained.append(episode)
    return trained


def _latencies(paths: RunFolder, steps: Sequence[int] | None) -> tuple[float, ...]:
    """Seconds of the environment's answers in the wanted steps' slowest episodes."""
    found = []
    for timeline in read_timelines(paths):
        if steps is not None and timeline.step not in steps:
            continue
        for episode in timeline.slowest:
            for turn in episode.turns:
                if turn.environment is not None:
                    found.append(turn.environment.seconds)
    return tuple(found)


def _seconds_of_token(metrics: Sequence[EpisodeRecordFields], phase: str, folder: Path) -> float:
    """Mean over the steps of the seconds that a token took in the phase."""
    seconds = []
    for line in metrics:
        speed = _number(line, f"actor/{phase}_tokens_per_second", folder)
        seconds.append(1 / speed)
    return fmean(seconds)


def _mean(metrics: Sequence[EpisodeRecordFields], name: str) -> float:
    return fmean(line[name] for line in metrics)


def grouped(
    episodes: Sequence[EpisodeRecordFields], lengths: Sequence[RecordedEpisode]
) -> tuple[tuple[RecordedEpisode, ...], ...]:
    """The lengths of annotated episodes, those of a question of a step together."""
    groups = defaultdict(list)
    for episode, turns in zip(episodes, lengths, strict=True):
        groups[episode["step"], episode["task_id"]].append(turns)
    return tuple(map(tuple, groups.values()))


def lengths(episodes: Sequence[EpisodeRecordFields], mean_tokens: float) -> tuple[RecordedEpisode, ...]:
    """(read, own) tokens of the turns of annotated episodes, whose mean of both together is `mean_tokens`."""
    read = [_texts_read(episode) for episode in episodes]
    own = [_tokens_written(episode) for episode in episodes]
    characters = sum(map(sum, read))
    tokens = mean_tokens * len(episodes) - sum(map(sum, own))
    by_character = 0.0
    if characters:
        by_character = max(0.0, tokens) / characters
    found = []
    for seens, saids in zip(read, own, strict=True):
        tokens_read = [max(1, round(seen * by_character)) for seen in seens]
        found.append(tuple(zip(tokens_read, saids, strict=True)))
    return tuple(found)


def _tokens_written(episode: EpisodeRecordFields) -> list[int]:
    """The policy's own, of each turn."""
    return [int(turn["tokens"]) for turn in episode["turns"]]


def _texts_read(episode: EpisodeRecordFields) -> list[int]:
    """Characters that each turn read anew: the prompt, then the observations."""
    turns = episode["turns"]
    opening = episode.get("prompt") or episode.get("question") or ""
    return [len(opening), *(len(turn.get("observation") or "") for turn in turns[:-1])]


def _outside(line: EpisodeRecordFields) -> float:
    """Seconds of a step that its tokens do not explain: phases' other work, and what lies between them."""
    tokens = line["actor/score_tokens_per_second"] * line["time/score"]
    updated = tokens / line["actor/update_tokens_per_second"]
    return float(line["time/update"] - updated + line.get("time/other", 0.0))


def _kept_share(metrics: Sequence[EpisodeRecordFields]) -> float:
    """Of all groups that were played; 1 where the run does not say."""
    kept = _total(metrics, "train/groups_kept") + _total(metrics, "train/groups_surplus")
    lost = _total(metrics, "train/groups_dropped_equal") + _total(metrics, "train/groups_dropped_errors")
    if not kept:
        return 1.0
    return float(kept / (kept + lost))


def _total(metrics: Sequence[EpisodeRecordFields], name: str) -> float:
    """Over all steps; 0 where none says it."""
    return sum(line.get(name, 0) for line in metrics)


def _number(line: EpisodeRecordFields, name: str, folder: Path) -> float:
    value = line.get(name)
    if not isinstance(value, int | float) or not value > 0:
        raise RecipeError(f"--from {folder}: step {line.get('step')} has no {name}; give a run of this release")
    return float(value)


def _wanted(line: EpisodeRecordFields, steps: Sequence[int] | None) -> bool:
    return steps is None or line.get("step") in steps
