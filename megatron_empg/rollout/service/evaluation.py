"""What an evaluation measured; light to import, and JSON on the way from driver to trainer."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """Success of one decoding on a split's fixed questions. An episode that ended in an error is no success."""

    split: str
    greedy: bool
    success: float
    questions: int
    errors: int
    seconds: float
    by_kind: dict[str, float] = field(default_factory=dict)
    """Success among the questions of each kind the environment tells apart."""
    answered: str = ""
    """A digit for each question in the order asked: 1 where it was answered. Empty where nobody noted it."""

    @property
    def series(self) -> str:
        """What the evaluation is of: "test_id/sampled"."""
        return f"{self.split}/{'greedy' if self.greedy else 'sampled'}"

    def metrics(self) -> dict[str, float]:
        """Metrics under ``eval/SPLIT/…``."""
        name = f"eval/{self.series}"
        metrics = {name: self.success, f"{name}_questions": self.questions, f"{name}_errors": self.errors}
        for kind, success in self.by_kind.items():
            metrics[f"{name}/{kind}"] = success
        return metrics

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
