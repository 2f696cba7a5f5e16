"""What is said of a metric: its name, its unit, what it is and what to look for."""

import itertools
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "", "share", "nats", "seconds", "tokens", "turns", "episodes", "groups", "steps", "tokens/s", "TFLOP/s"
]
"""Empty for plain numbers. A share lies in [0, 1]."""

STANDS_FOR = {
    "SPLIT": "[a-z_]+",
    "KIND": "[^/]+",
    "BIN": "[0-9]+",
    "ENGINE": "[0-9]+",
    "NAME": "[A-Za-z0-9_./-]+",
}
"""Words in names that stand for any text of this form."""


@dataclass(frozen=True)
class Metric:
    """One metric, or several that are told in one breath. Example: ``policy/logprob_gap_{mean,max}`` are two."""

    name: str
    """Braces hold alternatives; the words of `STANDS_FOR` are filled in when it is written."""
    unit: Unit
    meaning: str
    look_for: str = ""
    by_clock: bool = False
    """Whether the machine's speed and load are in it, or what befell the run's processes, so that two runs of the
    same numbers differ in it."""

    @property
    def names(self) -> list[str]:
        """The name with its braces written out."""
        pieces = re.split(r"\{([^}]+)\}", self.name)
        choices = []
        for place, piece in enumerate(pieces):
            stood_in_braces = place % 2 == 1
            choices.append(piece.split(",") if stood_in_braces else [piece])
        return ["".join(chosen) for chosen in itertools.product(*choices)]

    def covers(self, name: str) -> bool:
        """Whether a metric with this name is meant."""
        return any(_pattern(own).fullmatch(name) for own in self.names)


@dataclass(frozen=True)
class MetricFamily:
    """Metrics that belong together: a table of the page. `by_clock`: all of them are."""

    title: str
    about: str
    metrics: tuple[Metric, ...]
    by_clock: bool = False


def _pattern(name: str) -> re.Pattern[str]:
    words = re.split(f"({'|'.join(STANDS_FOR)})", name)
    return re.compile("".join(STANDS_FOR.get(word, re.escape(word)) for word in words))
