"""From played episodes to a batch: errors dropped and counted, groups filtered, the control's shuffle."""

import random
from collections import Counter
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_empg.actor.packing import Sequence
from megatron_empg.algorithms.dapo import informative_groups
from megatron_empg.environments.base import Task
from megatron_empg.rollout.episode import Episode
from megatron_empg.trainer.batch import Batch, engine_table
from megatron_empg.trainer.failures import shown


@dataclass
class Group:
    """The usable episodes of one question, and the rewards they are trained on."""

    task: Task
    episodes: list[Episode]
    rewards: list[float]


@dataclass
class Collection:
    """Groups kept so far for one batch, and what was met on the way."""

    wanted: int
    drop_equal: bool
    groups: list[Group] = field(default_factory=list)
    played: list[Episode] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    engines: int | None = None
    """Engines that may generate, at the end."""
    hanging: int | None = None
    """Calls of environments that go on though nobody waits for them."""

    @property
    def missing(self) -> int:
        """Groups still to be found."""
        return max(0, self.wanted - len(self.groups))

    def add(self, tasks: SequenceOf[Task], episodes: SequenceOf[Episode], shuffle_seed: int | None) -> None:
        """Take in a round of episodes, those of a task adjacent and numbered by ``group``.

        Errors never train: a group is the episodes that are left, and is dropped below two. With
        ``shuffle_seed`` the rewards are first permuted over all usable episodes of the round.
        """
        self.played += episodes
        self.counts["rounds"] += 1
        usable = [e for e in episodes if e.outcome != "error" and e.steps]
        rewards = [e.reward for e in usable]
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(rewards)
        by_group: dict[int, Group] = {}
        for episode, reward in zip(usable, rewards, strict=True):
            group = by_group.setdefault(episode.group, Group(tasks[episode.group], [], []))
            group.episodes.append(episode)
            group.rewards.append(reward)
        self.counts["groups_dropped_errors"] += len(tasks) - sum(len(g.episodes) >= 2 for g in by_group.values())
        for group in by_group.values():
            if len(group.episodes) >= 2:
                self._keep(group)

    def _keep(self, group: Group) -> None:
        rewards = torch.tensor(group.rewards)
        if self.drop_equal and not informative_groups(rewards, torch.zeros(len(rewards), dtype=torch.long)).any():
            self.counts["groups_dropped_equal"] += 1
        elif self.missing:
            self.groups.append(group)
        else:
            self.counts["groups_surplus"] += 1

    def batch(self) -> Batch:
        """What to train on, with the numbers of the whole rollout."""
        pairs = [(i, e, r) for i, g in enumerate(self.groups) for e, r in zip(g.episodes, g.rewards, strict=True)]
        engines, engine_urls = engine_table(e.engine for _, e, _ in pairs)
        return Batch(
            engines=engines,
            engine_urls=engine_urls,
            example=_example(self.played),
            sequences=[sequence_of(e) for _, e, _ in pairs],
            rewards=torch.tensor([r for _, _, r in pairs]),
            groups=torch.tensor([i for i, _, _ in pairs], dtype=torch.long),
            policy_versions=torch.tensor([e.policy_versions for _, e, _ in pairs], dtype=torch.long).reshape(
                -1, 2
            ),
            episodes=[_readable(self.groups[i].task, e) for i, e, _ in pairs],
            metrics=self._metrics(),
        )

    def _metrics(self) -> dict[str, float]:
        usable = [e for e in self.played if e.outcome != "error" and e.steps]
        steps = [step for e in usable for step in e.steps]
        metrics: dict[str, float] = {
            "train/episodes": len(usable),
            "train/episodes_error": len(self.played) - len(usable),
            "train/episodes_truncated": sum(e.outcome == "truncated" for e in usable),
            "train/token_drift": sum(e.token_drift or 0 for e in usable),
            "train/malformed_actions": sum(bool(step.info.get("malformed")) for step in steps),
            "train/groups_kept": len(self.groups),
            "train/groups_dropped_equal": self.counts["groups_dropped_equal"],
            "train/groups_dropped_errors": self.counts["groups_dropped_errors"],
            "train/groups_surplus": self.counts["groups_surplus"],
            "train/rounds": self.counts["rounds"],
        }
        if usable:
            metrics |= {
                "train/reward": sum(e.reward for e in usable) / len(usable),
                "train/success": sum(e.outcome == "success" for e in usable) / len(usable),
                "train/turns": len(steps) / len(usable),
                "train/tokens_per_episode": sum(len(e.tokens) for e in usable) / len(usable),
            }
        if self.engines is not None:
            metrics["rollout/engines_healthy"] = self.engines
        if self.hanging is not None:
            metrics["rollout/environment_calls_hanging"] = self.hanging
        return metrics


def sequence_of(episode: Episode) -> Sequence:
    """The episode as the actor reads it."""
    return Sequence(
        torch.tensor(episode.tokens),
        torch.tensor([(step.start, step.end) for step in episode.steps]),
        {"rollout_logprobs": torch.tensor(episode.logprobs)},
    )


def _readable(task: Task, episode: Episode) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "question": task.prompt[-1]["content"],
        "outcome": episode.outcome,
        "turns": [{"text": s.text, "observation": s.observation} for s in episode.steps],
    }


def _example(played: list[Episode]) -> str:
    """An episode to show in a message, rather one that did not fail; empty when none was played."""
    sound = [e for e in played if e.outcome != "error"] or played
    return shown(sound[0]) if sound else ""
