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

    def draw(self, numbers: random.Random) -> EpisodePlan:
        """The next one."""
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

    def draw(self, numbers: random.Random) -> EpisodePlan:
        count = max(1, round(self.most_turns * numbers.random() ** (1 / self.share - 1)))
        return EpisodePlan((self.turn,) * count, self.anew)


@dataclass(frozen=True)
class RecordedWorkload:
    """Episodes of a run, drawn with replacement; each turn waits as long as one of the recorded latencies."""

    episodes: tuple[tuple[tuple[int, int], ...], ...]
    """(read, own) tokens of each turn of each episode."""
    latencies: tuple[float, ...] = (0.0,)
    """Seconds of single answers of the environment."""

    def draw(self, numbers: random.Random) -> EpisodePlan:
        recorded = numbers.choice(self.episodes)
        turns = [PlannedTurn(read, own, numbers.choice(self.latencies)) for read, own in recorded]
        return EpisodePlan(tuple(turns))


def mean_tokens(workload: Workload, draws: int = 2000) -> float:
    """Mean tokens of an episode, of so many draws with a seed of its own."""
    numbers = random.Random(0)
    return sum(workload.draw(numbers).tokens for _ in range(draws)) / draws


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which so large a share of the values lies. Raises ValueError without values."""
    if not values:
        raise ValueError("a percentile of no values was asked for")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
