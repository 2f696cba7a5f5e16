"""What the command line says of an evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluationOptions:
    """What is given goes before the recipe; None leaves it the recipe's.

    `models`: folders of policies, the first being the one that others are compared with; the recipe's model where
    none is given. `samples` per question, of sampled decoding. `json_path`: where the document goes, with its
    outcomes beside it.
    """

    models: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ()
    questions: int | None = None
    samples: int = 1
    temperature: float | None = None
    greedy: bool | None = None
    seed: int | None = None
    json_path: Path | None = None
    markdown: bool = False

    def overrides(self) -> list[str]:
        """The same as overrides of a recipe."""
        given = {
            "evaluation.splits": list(self.splits) or None,
            "evaluation.questions": self.questions,
            "evaluation.temperature": self.temperature,
            "evaluation.greedy": self.greedy,
            "run.seed": self.seed,
        }
        return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]

    @property
    def outcomes_path(self) -> Path | None:
        """Where every outcome goes as soon as there is one."""
        if self.json_path is None:
            return None
        return self.json_path.with_suffix(".outcomes.jsonl")


def model_override(folder: Path) -> str:
    """A model's folder as an override, whatever its name holds."""
    return f"model.path={json.dumps(str(folder))}"
