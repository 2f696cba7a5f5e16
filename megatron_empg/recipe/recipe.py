"""What a run is: the configs of its parts, each of which says what its keys mean, and what they must be together.

A recipe is a YAML file; the command line overrides single keys by dotted name
(``empg train recipes/quickstart.yaml actor.optimizer.lr=1e-4``). What cannot be is refused here, before
any process starts, by an error that names the key, what was given and what is allowed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import ValidationError, model_validator

from megatron_empg.actor.config import ActorConfig, PolicyConfig
from megatron_empg.actor.layout_rules import batch_faults, episode_faults, size_faults
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.registry import AlgorithmKey
from megatron_empg.common.limits import LimitsConfig
from megatron_empg.common.section import Mark, NonNegative, Positive, Section
from megatron_empg.common.waits import Waits, nested_waits
from megatron_empg.environments.base import TaskSource
from megatron_empg.environments.config import EnvironmentConfig, task_source_of
from megatron_empg.environments.registry import turns_are_samples
from megatron_empg.recipe.combinations import check_algorithm
from megatron_empg.recipe.errors import RecipeError, explained
from megatron_empg.recipe.overrides import apply_overrides
from megatron_empg.recipe.yaml_text import read_yaml
from megatron_empg.rollout.chat_use import HistoryKind
from megatron_empg.rollout.config import EvaluationConfig, RolloutConfig
from megatron_empg.rollout.engine_config import EngineConfig
from megatron_empg.rollout.service.config import ServiceConfig
from megatron_empg.run.config import LoggingConfig, RunConfig, SftLoggingConfig

__all__ = ["Recipe", "RecipeError", "SftRecipe", "dump_recipe", "load_recipe", "parse_recipe"]


class Recipe(Section):
    """A reinforcement-learning run: `empg train`."""

    run: RunConfig
    model: PolicyConfig
    environment: EnvironmentConfig
    rollout: RolloutConfig
    engines: Annotated[EngineConfig, Mark.MAY_CHANGE] = EngineConfig()
    algorithm: AlgorithmKey = Grpo()
    actor: ActorConfig = ActorConfig()
    evaluation: Annotated[EvaluationConfig, Mark.MAY_CHANGE] = EvaluationConfig()
    limits: Annotated[LimitsConfig, Mark.MAY_CHANGE] = LimitsConfig()
    logging: Annotated[LoggingConfig, Mark.MAY_CHANGE] = LoggingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        rollout = self.rollout
        _refuse(episode_faults(self.actor, rollout.max_episode_tokens))
        if self.limits.min_groups is not None and self.limits.min_groups > rollout.groups:
            raise ValueError(
                f"limits.min_groups is {self.limits.min_groups}, more than rollout.groups ({rollout.groups}): no "
                "batch would be trained on; lower it"
            )
        _refuse(size_faults(self.actor))
        _refuse(self._batch_faults())
        check_algorithm(self)
        _ = self.waits
        return self

    def _batch_faults(self) -> list[str]:
        rollout, parts = self.rollout, self.algorithm.updates_per_batch
        episodes = rollout.groups * rollout.group_size // parts
        because = (
            f"rollout.groups {rollout.groups} x rollout.group_size {rollout.group_size} / "
            f"algorithm.updates_per_batch {parts}"
        )
        return batch_faults(self.actor, episodes, because)

    @property
    def total_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.run.steps * self.algorithm.updates_per_batch

    @property
    def waits(self) -> Waits:
        """How long each wait may be."""
        return nested_waits(
            self.limits,
            several_rounds=self.algorithm.generation_rounds > 1,
            streams=self.rollout.max_lag > 0,
        )

    @property
    def most_sequences(self) -> int:
        """Token sequences that an episode has at most: one, or one for each turn with a prompt of its own."""
        environment = self.environment
        own = self.rollout.history == "strip" or turns_are_samples(environment.name, environment.settings)
        if not own:
            return 1
        return environment.max_turns

    @property
    def min_groups(self) -> int:
        """Groups that a batch needs to be trained on: the recipe's number, or an eighth of a batch."""
        return self.limits.fewest_groups(self.rollout.groups)

    @property
    def logprob_gap_limit(self) -> float:
        """The limit in force: the recipe's, or the dtype's default."""
        return self.limits.mean_gap(self.model.dtype)

    @property
    def logprob_gap_max_limit(self) -> float:
        """The limit in force for a single token: the recipe's, or the dtype's default (never below the mean's)."""
        return self.limits.largest_gap(self.model.dtype)

    def task_source(self) -> TaskSource:
        """The environment's task source, made anew; whoever made it closes it. Raises as `task_source_of`."""
        return task_source_of(self.environment, self.waits)

    def service_config(self) -> ServiceConfig:
        """What the rollout service is told of the run."""
        return ServiceConfig(
            model=self.model.path,
            environment=self.environment,
            rollout=self.rollout,
            evaluation=self.evaluation,
            limits=self.limits,
            waits=self.waits,
            algorithm=self.algorithm,
            seed=self.run.seed,
            steps=self.run.steps,
            folder=self.run.folder,
            episodes_per_step=self.logging.episodes_per_step,
            timeline_episodes=self.logging.timeline_episodes,
        )


class SftSection(Section):
    """The data of a supervised warm-up.

    It stands with its recipe: the trainer alone acts on it, and a recipe may not import the trainer.
    """

    batch_size: Positive
    """Walkthroughs an optimizer step."""
    split: Literal["train"] = "train"
    validate_every: Annotated[NonNegative, Mark.MAY_CHANGE] = 0
    """Steps between measurements of the loss on held-out walkthroughs; 0 is never."""
    history: HistoryKind = "keep"
    """As `rollout.history` of the runs that follow."""


class SftRecipe(Section):
    """A supervised warm-up on the environment's scripted walkthroughs: `empg sft`."""

    run: RunConfig
    model: PolicyConfig
    environment: EnvironmentConfig
    sft: SftSection
    actor: ActorConfig = ActorConfig()
    logging: Annotated[SftLoggingConfig, Mark.MAY_CHANGE] = SftLoggingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _refuse(size_faults(self.actor))
        return self

    @property
    def total_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.run.steps

    def task_source(self) -> TaskSource:
        """The task source, like a `Recipe`'s but without a limit of a step's time: nobody acts in it."""
        return task_source_of(self.environment)


def _refuse(faults: list[str]) -> None:
    """Raise ValueError with the first of the faults: the others may follow from it."""
    if faults:
        raise ValueError(faults[0])


R = TypeVar("R", Recipe, SftRecipe)


def load_recipe(path: Path, overrides: Iterable[str] = (), kind: type[R] = Recipe) -> R:  # type: ignore[assignment]
    """Read a YAML recipe, apply ``dotted.key=value`` overrides (values in YAML), check everything.

    Raises RecipeError listing every fault: the key, what was given, what is allowed.
    """
    try:
        raw = read_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"cannot read recipe {path}: it is not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"cannot read recipe {path}: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe {path} holds {type(raw).__name__}, not sections of keys")
    apply_overrides(raw, overrides, kind)
    return parse_recipe(raw, kind)


def parse_recipe(raw: dict[str, Any], kind: type[R] = Recipe) -> R:  # type: ignore[assignment]
    """Check a recipe given as nested dictionaries. Raises RecipeError."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise explained(error, kind) from None


def dump_recipe(recipe: Recipe | SftRecipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
