"""Constants of the modulation that follow from what it should reach, by running statistics of past batches.

The paper's k and zeta act on numbers whose spread and size change with the task and over training. The same k
scales hardly at all where entropies lie close, the same zeta drowns small advantages. A target says what is
wanted.
"""

import math
import sys
from dataclasses import dataclass, field
from typing import Any

DECAY = 0.9  # chosen here: half of a running mean's weight lies in the last 7 batches
LARGEST = 100.0  # of k and zeta, as in a recipe


@dataclass
class RunningMean:
    """An exponential mean of a number per batch, whose first values count as much as they should."""

    total: float = 0.0
    weight: float = 0.0
    """The weight of all values so far: 1 - 0.9^batches."""

    def add(self, value: float) -> None:
        self.total = DECAY * self.total + (1 - DECAY) * value
        self.weight = DECAY * self.weight + (1 - DECAY)

    @property
    def mean(self) -> float | None:
        """The mean so far; None before the first value."""
        if not self.weight:
            return None
        return self.total / self.weight


@dataclass
class EmpgTargets:
    """What k and zeta should reach, and the running statistics that tell how. Without targets it does nothing."""

    scale_ratio: float | None = None
    """The 95% quantile of g over its 5% quantile: k is its logarithm over the spread of H_norm."""
    bonus_ratio: float | None = None
    """Mean |bonus| over mean |advantage| before modulation: zeta is it times mean |advantage| over mean f."""
    entropy_spread: RunningMean = field(default_factory=RunningMean)
    """The 95% quantile of H_norm less its 5% quantile."""
    advantage_size: RunningMean = field(default_factory=RunningMean)
    """Mean |advantage| before modulation."""
    clarity: RunningMean = field(default_factory=RunningMean)
    """Mean f: the bonus of a zeta of 1."""

    @property
    def present(self) -> bool:
        """Whether there is a target at all."""
        return self.scale_ratio is not None or self.bonus_ratio is not None

    def k(self, given: float) -> float:
        """The k that past batches ask for; the ``given`` one without a target or before a batch with a spread."""
        spread = self.entropy_spread.mean
        if self.scale_ratio is None or not spread:
            return given
        return min(math.log(self.scale_ratio) / spread, LARGEST)

    def zeta(self, given: float) -> float:
        """The zeta that past batches ask for; the ``given`` one without a target or before a turn was followed."""
        size, clarity = self.advantage_size.mean, self.clarity.mean
        if self.bonus_ratio is None or size is None or not clarity:
            return given
        return min(self.bonus_ratio * size / clarity, LARGEST)

    def observe(self, *, entropy_spread: float, advantage_size: float, clarity: float) -> None:
        """Add the statistics of a batch that has turns. A batch without spread changes nothing about k."""
        if self.scale_ratio is not None and entropy_spread > 0:
            self.entropy_spread.add(entropy_spread)
        if self.bonus_ratio is not None:
            self.advantage_size.add(advantage_size)
            self.clarity.add(clarity)

    def state_dict(self) -> dict[str, Any]:
        """The running means that have values, as [total, weight]; as JSON they come back bit for bit."""
        means = self._running_means()
        return {name: [mean.total, mean.weight] for name, mean in means.items() if mean.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ValueError for statistics without a target, or broken ones."""
        means = self._running_means()
        if not isinstance(state, dict):
            raise ValueError(
                f"the checkpoint's running statistics are {state!r}; they must be a dict of [total, weight]: take "
                "another checkpoint"
            )
        surplus = sorted(set(state) - set(means))
        if surplus:
            raise ValueError(
                f"the checkpoint holds running statistics {surplus}, but the modulation has a use for "
                f"{sorted(means)} only; give it the targets that the run began with"
            )
        stored = {name: _checked(name, state.get(name, [0.0, 0.0])) for name in means}
        for name, mean in means.items():
            mean.total, mean.weight = stored[name]

    def _running_means(self) -> dict[str, RunningMean]:
        """The running means that a target reads, by name."""
        means = {}
        if self.scale_ratio is not None:
            means["entropy_spread"] = self.entropy_spread
        if self.bonus_ratio is not None:
            means["advantage_size"] = self.advantage_size
            means["clarity"] = self.clarity
        return means


def _checked(name: str, stored: Any) -> tuple[float, float]:
    """A running mean's total and weight as a checkpoint gave them."""
    if isinstance(stored, list):
        given = stored
    else:
        given = []
    numbers = [value for value in given if isinstance(value, int | float) and 0 <= value <= sys.float_info.max]
    if len(given) != 2 or len(numbers) != 2:
        raise ValueError(
            f"the checkpoint's running mean {name} is {stored!r}; it must be [total, weight], both finite "
            "and not negative"
        )
    return float(numbers[0]), float(numbers[1])
