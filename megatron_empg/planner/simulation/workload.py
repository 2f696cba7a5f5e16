"""How long episodes are, and how long they wait for their environment: assumed, or as a run recorded them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class PlannedTurn:
    """One act of the policy. Example: 300 tokens of an observation are read, 80 sampled, and a search takes 0.4 s:
    ``PlannedTurn(300, 80, 0.4)``."""

    read: int
    """Tokens that the policy had not read before."""
    own: int
    """Tokens that it samples."""
    tool_seconds: float
    """The environment takes to answer."""


@dataclass(frozen=True)
class EpisodePlan:
    """The turns of one episode. `anew`: every turn reads a prompt of its own and nothing else."""

    turns: tuple[PlannedTurn, ...]
    anew: bool = False

    @property
    def own_tokens(self) -> int:
        return sum(turn.own for turn in self.turns)

    @property
    def tokens(self) -> int:
        """That the trainer reads: all."""
        return sum(turn.read + turn.own for turn in self.turns)


class Workload(Protocol):
    """Where episodes come from."""

    def draw_group(self, numbers: random.Random, size: int) -> list[EpisodePlan]:
        """The episodes of the next question."""
        ...


@dataclass(frozen=True)
class AssumedWorkload:
    """All turns are alike; an episode has ``most_turns·U^(1/share - 1)`` of them, of a uniform U, at least one.

    Their mean is `share` of the most, and with share 0.5 every number is as likely as another.
    """

    most_turns: int
    share: float
    turn: PlannedTurn
    anew: bool = False

    def draw_group(self, numbers: random.Random, size: int) -> list[EpisodePlan]:
        """Episodes of a question are as different as those of several."""
        return [self._draw(numbers) for _ in range(size)]

    def _draw(self, numbers: random.Random) -> EpisodePlan:
        count = max(1, round(self.most_turns * numbers.random() ** (1 / self.share - 1)))
        return EpisodePlan((self.turn,) * count, self.anew)


RECORDED_SHARE = 0.75
"""Of a group's episodes, recorded on average: of fewer the longest is seldom the group's."""
RecordedEpisode = tuple[tuple[int, int], ...]
"""(read, own) tokens of each turn."""


@dataclass(frozen=True)
class RecordedWorkload:
    """Groups of a run, drawn with replacement; each turn waits as long as one of the recorded latencies.

    Episodes of one question are alike, so that the longest of a batch is not as long as that of as many questions.
    So a group's are drawn from one recorded group, if most of the episodes of each were recorded; else from all.
    """

    groups: tuple[tuple[RecordedEpisode, ...], ...]
    latencies: tuple[float, ...] = (0.0,)
    """Seconds of single answers of the environment."""

    @property
    def episodes(self) -> list[RecordedEpisode]:
        """The recorded ones, without their groups."""
        return [episode for group in self.groups for episode in group]

    def draw_group(self, numbers: random.Random, size: int) -> list[EpisodePlan]:
        recorded = tuple(self.episodes)
        if len(recorded) >= RECORDED_SHARE * size * len(self.groups):
            # By their sizes, so that every recorded episode is as likely as another.
            (recorded,) = numbers.choices(self.groups, weights=list(map(len, self.groups)))
        if len(recorded) >= size:
            drawn = numbers.sample(recorded, size)
        else:
            drawn = numbers.choices(recorded, k=size)
        return [self._planned(episode, numbers) for episode in drawn]

    def _planned(self, episode: RecordedEpisode, numbers: random.Random) -> EpisodePlan:
        turns = [PlannedTurn(read, own, numbers.choice(self.latencies)) for read, own in episode]
        return EpisodePlan(tuple(turns))


def mean_tokens(workload: Workload, draws: int = 2000) -> float:
    """Mean tokens of an episode, of so many groups of one with a seed of their own."""
    numbers = random.Random(0)
    total = 0
    for _ in range(draws):
        (plan,) = workload.draw_group(numbers, 1)
        total += plan.tokens
    return total / draws


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which so large a share of the values lies. Raises ValueError without values."""
    if not values:
        raise ValueError("a percentile of no values was asked for")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
