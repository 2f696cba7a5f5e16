"""From played episodes to a batch: errors dropped and counted, groups filtered, the control's shuffle."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.sample import Sample
from megatron_empg.environments.base import Task
from megatron_empg.rollout.client import UNVERSIONED
from megatron_empg.rollout.episode import Episode, Turn
from megatron_empg.rollout.service.batch import Batch, engine_table, first_episodes
from megatron_empg.rollout.service.experience import experience_of
from megatron_empg.rollout.service.failures import shown
from megatron_empg.rollout.service.readable_episodes import PromptOf, no_prompt, text_of, texts_of, worth_reading
from megatron_empg.rollout.service.slots import Reason
from megatron_empg.rollout.service.timeline import tail_metrics, timeline_of
from megatron_empg.run.episode_text import EpisodeText
from megatron_empg.run.timeline import Span, StepTimeline

Keeps = Callable[[Float[Tensor, "group_size"]], bool]
"""Whether a question's episodes, with these rewards, are trained on."""


@dataclass(frozen=True)
class RewardedEpisode:
    """An episode, and the reward that each of its turns is trained on."""

    episode: Episode
    turn_rewards: list[float]

    @property
    def reward(self) -> float:
        """The whole episode's."""
        return sum(self.turn_rewards)


@dataclass
class CollectedGroup:
    """The usable episodes of one question."""

    task: Task
    played: list[RewardedEpisode] = field(default_factory=list)


@dataclass
class Collection:
    """Groups kept so far for one batch, and what was met on the way."""

    wanted: int
    keeps: Keeps
    shown: int = 0
    """So many episodes, each of another question, will be read by people."""
    prompt_of: PromptOf = no_prompt
    groups: list[CollectedGroup] = field(default_factory=list)
    played: list[Episode] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    hanging: int | None = None
    """Calls of environments that go on though nobody waits for them any more."""
    engine_metrics: dict[str, float] = field(default_factory=dict)
    """What the engines counted of the batch, and how many of them there are in each state."""
    whole: Span | None = None
    """When the batch was played; None until it has been."""
    timed: int = 0
    """So many of the slowest episodes' times will be read by people."""
    source_metrics: dict[str, float] = field(default_factory=dict)
    """What the environment's processes say of themselves, at the end."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """All that were played, by their ids."""

    @property
    def missing(self) -> int:
        """Groups still to be found."""
        return max(0, self.wanted - len(self.groups))

    def add(self, tasks: Sequence[Task], episodes: Sequence[Episode], shuffle_seed: int | None) -> None:
        """Take in a round of episodes, those of a task adjacent and numbered by ``group``.

        Errors never train: a group is the episodes that are left, and is dropped below two. With
        ``shuffle_seed`` the rewards are first permuted over all usable episodes of the round.
        """
        self.played += episodes
        self.tasks |= {task.id: task for task in tasks}
        self.counts["rounds"] += 1
        rewarded = _rewarded(episodes)
        if shuffle_seed is not None:
            rewarded = _permuted(rewarded, shuffle_seed)
        by_group: dict[int, CollectedGroup] = {}
        for each in rewarded:
            number = each.episode.group
            by_group.setdefault(number, CollectedGroup(tasks[number])).played.append(each)
        large_enough = [group for group in by_group.values() if len(group.played) >= 2]
        self.counts["groups_dropped_errors"] += len(tasks) - len(large_enough)
        for group in large_enough:
            self._keep(group)

    def add_played(self, task: Task, episodes: Sequence[Episode], dropped: Reason | None) -> None:
        """Take in a group that was looked at when it was done; it is trained on unless it was `dropped`."""
        self.played += episodes
        self.tasks[task.id] = task
        if dropped is None:
            self.groups.append(CollectedGroup(task, _rewarded(episodes)))
        elif dropped != "stale":  # the stream counts those too that never came to their end
            self.counts[f"groups_dropped_{dropped}"] += 1

    def _keep(self, group: CollectedGroup) -> None:
        if not self.keeps(_rewards_of(group.played)):
            self.counts["groups_dropped_equal"] += 1
        elif self.missing:
            self.groups.append(group)
        else:
            self.counts["groups_surplus"] += 1

    def batch(self) -> Batch:
        """What to train on, with the numbers of the whole rollout."""
        numbers: list[int] = []
        played: list[RewardedEpisode] = []
        for number, group in enumerate(self.groups):
            numbers += [number] * len(group.played)
            played += group.played
        episodes = [each.episode for each in played]
        versions = torch.tensor([episode.policy_versions for episode in episodes], dtype=torch.long)
        engines, engine_urls = engine_table(episode.engine for episode in episodes)
        experience = _experience(numbers, played)
        return Batch(
            experience,
            policy_versions=versions.reshape(-1, 2),
            texts=self._texts(episodes, experience),
            metrics=self._metrics(),
            engines=engines,
            engine_urls=engine_urls,
            token_versions=_token_versions(episodes),
            example=_example(self.played),
            untrained=self._untrained(episodes),
            timeline=self._timeline(),
        )

    def _timeline(self) -> StepTimeline | None:
        if self.whole is None:
            return None
        return timeline_of(self.played, self.whole, self.timed)

    def _texts(self, episodes: Sequence[Episode], experience: Experience) -> list[EpisodeText | None]:
        """Of all episodes; the prompt only where somebody will read it."""
        read = set(first_episodes(experience.groups, self.shown))
        texts: list[EpisodeText | None] = []
        for number, episode in enumerate(episodes):
            prompt = self.prompt_of(episode) if number in read else ""
            texts.append(text_of(self.tasks[episode.task_id], episode, prompt))
        return texts

    def _untrained(self, trained: Sequence[Episode]) -> list[EpisodeText]:
        """Those that failed, and others in the place of groups that there are not."""
        known = {id(episode) for episode in trained}
        rest = [episode for episode in self.played if id(episode) not in known]
        missing = max(0, self.shown - len(self.groups))
        return texts_of(self.tasks, worth_reading(rest, missing, errors=self.shown), self.prompt_of)

    def _metrics(self) -> dict[str, float]:
        metrics = _episode_metrics(self.played)
        metrics["train/groups_kept"] = len(self.groups)
        for count in ("groups_dropped_equal", "groups_dropped_errors", "groups_surplus"):
            metrics[f"train/{count}"] = self.counts[count]
        if "rounds" in self.counts:
            metrics["train/rounds"] = self.counts["rounds"]
        if self.hanging is not None:
            metrics["rollout/environment_calls_hanging"] = self.hanging
        metrics |= tail_metrics(self.played)
        return self.source_metrics | self.engine_metrics | metrics  # its own numbers win


def reason_to_drop(episodes: Sequence[Episode], keeps: Keeps) -> Literal["errors", "equal"] | None:
    """Why a group with these episodes is not trained on; None where it is. Errors never train."""
    rewarded = _rewarded(episodes)
    if len(rewarded) < 2:
        return "errors"
    if not keeps(_rewards_of(rewarded)):
        return "equal"
    return None


def _usable(episodes: Sequence[Episode]) -> list[Episode]:
    """Those that say something about the policy."""
    return [episode for episode in episodes if episode.outcome != "error" and episode.turns]


def _rewarded(episodes: Sequence[Episode]) -> list[RewardedEpisode]:
    """The usable ones with what their turns earned."""
    rewarded = []
    for episode in _usable(episodes):
        turn_rewards = [turn.reward for turn in episode.turns]
        rewarded.append(RewardedEpisode(episode, turn_rewards))
    return rewarded


def _rewards_of(played: Sequence[RewardedEpisode]) -> Float[Tensor, "episodes"]:
    return torch.tensor([each.reward for each in played])


def _permuted(rewarded: Sequence[RewardedEpisode], seed: int) -> list[RewardedEpisode]:
    """The same episodes with each other's rewards, given for the last turn: no turn may tell of its own reward."""
    rewards = [each.reward for each in rewarded]
    random.Random(seed).shuffle(rewards)
    permuted = []
    for each, reward in zip(rewarded, rewards, strict=True):
        before_last = [0.0] * (len(each.turn_rewards) - 1)
        permuted.append(RewardedEpisode(each.episode, [*before_last, reward]))
    return permuted


def _experience(groups: Sequence[int], played: Sequence[RewardedEpisode]) -> Experience:
    """What the algorithm is told of the kept episodes, each of which is one sample or several."""
    samples: list[Sample] = []
    episode_of_sample: list[int] = []
    turns: list[Turn] = []
    turn_rewards: list[float] = []
    # One tensor an episode: a list of all tokens would be read in one go, while which no other thread runs.
    logprobs = [torch.empty(0)]
    gold = []
    for number, each in enumerate(played):
        own_samples = samples_of(each.episode)
        samples += own_samples
        episode_of_sample += [number] * len(own_samples)
        turns += each.episode.turns
        turn_rewards += each.turn_rewards
        logprobs.append(torch.tensor(each.episode.logprobs))
        gold.append(torch.tensor(each.episode.gold, dtype=torch.long))
    truncated = [each.episode.outcome == "truncated" for each in played]
    anchors = [turn.anchor for turn in turns]
    cut = [turn.cut for turn in turns]
    return experience_of(
        samples,
        torch.tensor(episode_of_sample, dtype=torch.long),
        rewards=_rewards_of(played),
        groups=torch.tensor(groups, dtype=torch.long),
        rollout_logprobs=torch.cat(logprobs),
        truncated=torch.tensor(truncated, dtype=torch.bool),
        turn_rewards=torch.tensor(turn_rewards),
        anchors=torch.tensor(anchors, dtype=torch.long),
        cut=torch.tensor(cut, dtype=torch.bool),
        gold=gold,
    )


def samples_of(episode: Episode) -> list[Sample]:
    """The episode as the actor reads it: a sample for each of its sequences, whose turns are its own."""
    spans: list[list[tuple[int, int]]] = [[] for _ in episode.sequences]
    for turn in episode.turns:
        spans[turn.sequence].append((turn.start, turn.end))
    samples = []
    for tokens, own in zip(episode.sequences, spans, strict=True):
        if own:  # a sequence in which the policy had no time to speak teaches nothing
            samples.append(Sample(torch.tensor(tokens), torch.tensor(own)))
    return samples


def _token_versions(episodes: Sequence[Episode]) -> Int[Tensor, "own_tokens"]:
    """The policy version of every own token of the episodes."""
    versions = [torch.empty(0, dtype=torch.long)]
    for episode in episodes:
        versions += map(versions_of, episode.turns)
    return torch.cat(versions)


def versions_of(turn: Turn) -> Int[Tensor, "turn_tokens"]:
    """The policy version of each of its tokens; -1 where the engine said none."""
    versions = torch.full((turn.end - turn.start,), UNVERSIONED, dtype=torch.long)
    for span in turn.policy_versions:
        versions[span.start : span.end] = span.version
    return versions


def _episode_metrics(played: Sequence[Episode]) -> dict[str, float]:
    """What is counted of the episodes alone: outcomes, faults, and means over those that are usable."""
    usable = _usable(played)
    outcomes = Counter(episode.outcome for episode in usable)
    turns = [turn for episode in usable for turn in episode.turns]
    metrics: dict[str, float] = {
        "train/episodes": len(usable),
        "train/episodes_error": len(played) - len(usable),
    }
    for outcome in ("success", "failure", "truncated"):
        metrics[f"train/episodes_{outcome}"] = outcomes[outcome]
    metrics["train/token_drift"] = sum(episode.token_drift or 0 for episode in usable)
    metrics["train/malformed_actions"] = sum(bool(turn.malformed) for turn in turns)
    if usable:
        metrics["train/reward"] = sum(episode.reward for episode in usable) / len(usable)
        metrics["train/success"] = outcomes["success"] / len(usable)
        metrics["train/turns"] = len(turns) / len(usable)
        metrics["train/tokens_per_episode"] = sum(map(_tokens, usable)) / len(usable)
    return metrics


def _tokens(episode: Episode) -> int:
    return sum(map(len, episode.sequences))


def _example(played: list[Episode]) -> str:
    """An episode to show in a message, rather one that did not fail; empty when none was played."""
    sound = [e for e in played if e.outcome != "error"] or played
    return shown(sound[0]) if sound else ""
