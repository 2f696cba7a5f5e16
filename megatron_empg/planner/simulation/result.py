"""What a simulation says: seconds of a step, who waits, how old what is trained on is, how long the tail."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.planner.simulation.workload import percentile


class MeterReading(NamedTuple):
    """What clock and meters said at a moment, in seconds since the beginning."""

    now: float
    busy: float
    """Of all engines together."""
    running: dict[int, float]
    """Seconds by the number of running sequences."""


@dataclass
class EpisodeAccounts:
    """Episodes by what became of them, from the first step on. They balance: started is the sum of all others."""

    started: int = 0
    trained: int = 0
    dropped: int = 0
    """The algorithm had no use for their group."""
    surplus: int = 0
    """Thrown away, since the batch was full (lag 0)."""
    stale: int = 0
    """No batch could be trained on their group any more."""
    left: int = 0
    """Still there as the simulation ended."""
    trained_tokens: int = 0
    drawn_tokens: int = 0

    @property
    def ended(self) -> int:
        return self.trained + self.dropped + self.surplus + self.stale


@dataclass(frozen=True)
class SimulatedStep:
    """One step of the trainer."""

    waited: float
    """Seconds that it had no batch; at lag 0 the rollout."""
    worked: float
    """Seconds of score, update and sync."""
    staleness: Counter[int]
    """Trained episodes by versions between the weights that their group began under and those that are trained."""
    token_staleness: Counter[int]
    """Own tokens by versions since the weights that sampled their turn's end."""
    episode_seconds: list[float]

    @property
    def seconds(self) -> float:
        return self.waited + self.worked


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation found, over the steps that count."""

    setting: SimulationSetting
    steps: tuple[SimulatedStep, ...]
    accounts: EpisodeAccounts
    trainer_idle: float
    """Share of the time in which the trainer has no batch."""
    engines_idle: float
    """Share of the engines' time in which they have nothing to do or are paused."""
    running: float
    """Mean number of running sequences over all engines."""
    under_half: float
    """Share of the time in which fewer than half as many sequences run as at most: the tail."""

    @classmethod
    def between(
        cls,
        first: MeterReading,
        last: MeterReading,
        setting: SimulationSetting,
        steps: tuple[SimulatedStep, ...],
        accounts: EpisodeAccounts,
    ) -> SimulationResult:
        """The result from two readings, before and after the steps."""
        total = last.now - first.now
        spent = {running: seconds - first.running.get(running, 0.0) for running, seconds in last.running.items()}
        most = max((running for running, seconds in spent.items() if seconds > 0), default=0)
        few = sum(seconds for running, seconds in spent.items() if running < most / 2)
        sequence_seconds = sum(running * seconds for running, seconds in spent.items())
        waited = sum(step.waited for step in steps)
        busy = last.busy - first.busy
        return cls(
            setting,
            steps,
            accounts,
            trainer_idle=waited / total,
            engines_idle=1 - busy / (total * setting.engines),
            running=sequence_seconds / total,
            under_half=few / total,
        )

    @property
    def step_seconds(self) -> float:
        """Mean of a step."""
        return statistics.fmean(step.seconds for step in self.steps)

    @property
    def waited_seconds(self) -> float:
        """Mean of what a step waits for its batch; at lag 0 the rollout."""
        return statistics.fmean(step.waited for step in self.steps)

    @property
    def worked_seconds(self) -> float:
        """Mean of score, update and sync."""
        return statistics.fmean(step.worked for step in self.steps)

    @property
    def episode_seconds(self) -> float:
        """Seconds of the run for each trained episode."""
        episodes = sum(len(step.episode_seconds) for step in self.steps)
        return sum(step.seconds for step in self.steps) / episodes

    @property
    def staleness(self) -> dict[int, float]:
        """Share of trained episodes by the versions that their oldest weights are behind."""
        return _shares(step.staleness for step in self.steps)

    @property
    def token_staleness(self) -> dict[int, float]:
        """The same of own tokens, each by the weights that its turn ended under."""
        return _shares(step.token_staleness for step in self.steps)

    @property
    def tail(self) -> float:
        """Seconds of the longest episode of a batch by those of its median one, mean over the steps."""
        ratios = []
        for step in self.steps:
            if not step.episode_seconds:
                continue
            middle = percentile(step.episode_seconds, 0.5)
            ratios.append(max(step.episode_seconds) / middle if middle else 1.0)
        return statistics.fmean(ratios)

    @property
    def stale_share(self) -> float:
        """Share of stale episodes among all that ended."""
        return self.accounts.stale / self.accounts.ended

    @property
    def length_bias(self) -> float:
        """Mean tokens of trained episodes by those of all that entered: below 1 the long ones are lost."""
        accounts = self.accounts
        of_trained = accounts.trained_tokens / accounts.trained
        of_all = accounts.drawn_tokens / accounts.started
        return of_trained / of_all


def _shares(counts: Iterable[Counter[int]]) -> dict[int, float]:
    total: Counter[int] = Counter()
    for count in counts:
        total.update(count)
    everything = total.total()
    return {versions: total[versions] / everything for versions in sorted(total)}
