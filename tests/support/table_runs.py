"""Run folders as `empg train` leaves them, with the figures of evaluations that a test makes up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import Environment, Split, Task, TaskSource
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.recipe import Recipe, dump_recipe, load_recipe
from megatron_empg.recipe.identity import describe
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import MetricsWriter

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.yaml"
ALFWORLD = (
    "environment={name: alfworld, max_turns: 50}",
    "model.path=models/Qwen2.5-1.5B-Instruct",
    "run.steps=150",
    "evaluation.temperature=0.4",
    "evaluation.questions=140",
)
"""What the quickstart's recipe is overridden with to be one of ALFWorld as in the papers."""
Figures = Mapping[str, float]
"""By split and decoding, and a kind: ``{"test_id/sampled": 0.7, "test_id/sampled/pick_and_place": 0.9}``"""


class HouseSettings(EnvironmentSettings):
    history_length: int | None = 2
    generated: bool = True


class House(TaskSource):
    """An environment that says of itself whether its games are generated."""

    Settings = HouseSettings

    def tasks(self, split: Split) -> list[Task]:
        return []

    def make(self, task: Task) -> Environment:
        raise NotImplementedError

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        assert isinstance(settings, HouseSettings)
        return ("generated houses",) if settings.generated else ()


def recipe_of(*overrides: str, seed: int = 1, algorithm: str = "grpo", modulation: str = "none") -> Recipe:
    """ALFWorld's, with what else is said."""
    chosen = [f"algorithm={{name: {algorithm}, modulation: {modulation}}}", f"run.seed={seed}"]
    return load_recipe(QUICKSTART, [*ALFWORLD, *chosen, *overrides])


def write_run(
    root: Path, recipe: Recipe, figures: Figures, *, step: int | None = None, questions: int = 140
) -> Path:
    """A folder with an evaluation before training, of zeros, and one after `step` steps (all of them)."""
    folder = RunFolder(root).open(dump_recipe(recipe))
    writer = MetricsWriter(folder)
    writer.write(0, metrics_of(dict.fromkeys(figures, 0.0), questions))
    writer.write(step or recipe.run.steps, metrics_of(figures, questions))
    writer.close()
    folder.close()
    return root


def metrics_of(figures: Figures, questions: int) -> dict[str, float]:
    """As an evaluation during a run logs them."""
    metrics: dict[str, float] = {}
    for name, value in figures.items():
        metrics[f"eval/{name}"] = value
        if name.count("/") == 1:
            metrics[f"eval/{name}_questions"] = questions
            metrics[f"eval/{name}_errors"] = 0
    return metrics


def identity_of(recipe: Recipe, **changed: Any) -> dict[str, Any]:
    """What the run noted of its model, data and defaults."""
    return {**describe(recipe), **changed}
