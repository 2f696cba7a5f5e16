"""What a run is: the configs of its parts, each of which says what its keys mean, and what they must be together.

A recipe is a YAML file; the command line overrides single keys by dotted name
(``empg train recipes/quickstart.yaml actor.optimizer.lr=1e-4``). What cannot be is refused here, before
any process starts, by an error that names the key, what was given and what is allowed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.registry import AlgorithmKey
from megatron_empg.common.limits import LimitsConfig
from megatron_empg.common.section import NonNegative, Positive, Section
from megatron_empg.common.values import PathText
from megatron_empg.common.waits import Waits, nested_waits
from megatron_empg.environments.base import TaskSource
from megatron_empg.environments.config import EnvironmentConfig, task_source_of
from megatron_empg.recipe.combinations import check_algorithm
from megatron_empg.recipe.errors import RecipeError, explained
from megatron_empg.recipe.overrides import apply_overrides
from megatron_empg.recipe.yaml_text import read_yaml
from megatron_empg.rollout.chat_use import HistoryKind
from megatron_empg.rollout.config import EvaluationConfig, RolloutConfig
from megatron_empg.rollout.service.config import ServiceConfig
from megatron_empg.run.config import LoggingConfig, RunConfig, SftLoggingConfig

__all__ = ["Recipe", "RecipeError", "SftRecipe", "dump_recipe", "load_recipe", "parse_recipe"]

# At 1 a moving average would never move. YAML knows no tuples.
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]


class ModelSection(Section):
    path: PathText
    """A Hugging Face model folder: config.json, tokenizer, and safetensors unless `initialise` is random."""
    initialise: Literal["checkpoint", "random"] = "checkpoint"
    """Where the initial weights come from; `random` is for supervised warm-up from nothing."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the actor computes in and the engines hold; optimizer state and gradients are float32."""


class EngineSection(Section):
    count: Positive = 1
    """vLLM servers."""
    tensor_parallel: Positive = 1
    """GPUs (or CPU processes) a server."""
    kv_cache_gib: Annotated[float, Field(ge=0.001, le=100_000)] | None = None
    """Memory of the key-value cache on each of a server's GPUs; vLLM decides when empty (on GPU)."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The interface the servers listen on. Every route asks for the run's token."""
    start_timeout: Positive = 600
    """Seconds a server may take from its start to its first healthy answer."""


class OptimizerSection(Section):
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-6
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or cosine down to a tenth at the last step."""
    warmup_steps: NonNegative = 0
    betas: Betas = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    clip_grad: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Largest norm of the whole gradient, over all ranks."""


class ActorSection(Section):
    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    virtual_pipeline: Positive = 1
    """Model chunks a pipeline stage; above 1 the schedule is interleaved, which shortens the pipeline's bubble."""
    context_parallel: Positive = 1
    """Ranks among which the tokens of each sequence are split, for episodes too long for one."""
    context_exchange: Literal["p2p", "all_gather", "a2a"] | None = None
    """How attention reaches the other context ranks' tokens, in Megatron's words. p2p (ring) and a2a (all-to-all;
    heads must divide) with Transformer Engine; all_gather and a2a without. Empty: the first of them."""
    expert_parallel: Positive = 1
    """Ranks, of a stage's tensor x context x data ranks, among which a layer's experts are split."""
    data_parallel: Positive = 1
    sequence_parallel: bool = False
    """Split the activations between tensor-parallel layers over the tensor-parallel ranks."""
    distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel (and context-parallel) ranks."""
    overlap: bool = False
    """Reduce gradients, and gather the distributed optimizer's parameters, while computing."""
    recompute: Literal["none", "selective", "block", "full"] = "none"
    """Activations computed again in backward instead of kept: attention's (selective), those of some layers
    (block: `recompute_layers`), those of all."""
    recompute_layers: Positive = 1
    """Layers of each model chunk that `recompute: block` recomputes."""
    max_tokens_per_microbatch: Positive = 16384
    """Tokens a rank holds at once. Sequences are packed up to this times `context_parallel`, none longer."""
    optimizer: OptimizerSection = OptimizerSection()

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel * self.data_parallel

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that a microbatch holds. Under context parallelism every sequence is
        padded to a multiple of twice the ranks, and the padding must find room too."""
        room = self.max_tokens_per_microbatch * self.context_parallel
        return room - room % (2 * self.context_parallel) if self.context_parallel > 1 else room


class Recipe(Section):
    """A reinforcement-learning run: `empg train`."""

    run: RunConfig
    model: ModelSection
    environment: EnvironmentConfig
    rollout: RolloutConfig
    engines: EngineSection = EngineSection()
    algorithm: AlgorithmKey = Grpo()
    actor: ActorSection = ActorSection()
    evaluation: EvaluationConfig = EvaluationConfig()
    limits: LimitsConfig = LimitsConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        rollout, actor = self.rollout, self.actor
        if rollout.max_episode_tokens > actor.longest_sequence:
            raise ValueError(
                f"rollout.max_episode_tokens is {rollout.max_episode_tokens}, more than a microbatch can hold "
                f"({actor.longest_sequence}: actor.max_tokens_per_microbatch x actor.context_parallel, in "
                "multiples of twice the second where that is above 1); raise the microbatch or lower the episode"
            )
        if self.limits.min_groups is not None and self.limits.min_groups > rollout.groups:
            raise ValueError(
                f"limits.min_groups is {self.limits.min_groups}, more than rollout.groups ({rollout.groups}): no "
                "batch would be trained on; lower it"
            )
        _check_actor(actor)
        _check_batch(self)
        check_algorithm(self)
        _ = self.waits
        return self

    @property
    def waits(self) -> Waits:
        """How long each wait may be."""
        return nested_waits(self.limits, several_rounds=self.algorithm.generation_rounds > 1)

    @property
    def min_groups(self) -> int:
        """Groups a batch needs to be trained on: the recipe's number, or an eighth of a batch."""
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
            folder=self.run.folder,
            episodes_per_step=self.logging.episodes_per_step,
        )


class SftSection(Section):
    batch_size: Positive
    """Walkthroughs an optimizer step."""
    split: Literal["train"] = "train"
    validate_every: NonNegative = 0
    """Steps between measurements of the loss on held-out walkthroughs; 0 is never."""
    history: HistoryKind = "keep"
    """As `rollout.history` of the runs that follow."""


class SftRecipe(Section):
    """A supervised warm-up on the environment's scripted walkthroughs: `empg sft`."""

    run: RunConfig
    model: ModelSection
    environment: EnvironmentConfig
    sft: SftSection
    actor: ActorSection = ActorSection()
    logging: SftLoggingConfig = SftLoggingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_actor(self.actor)
        return self

    def task_source(self) -> TaskSource:
        """As a `Recipe`'s, but without a limit of a step's time: nobody acts in it."""
        return task_source_of(self.environment)


def _check_actor(actor: ActorSection) -> None:
    for given, needed, does in (
        ("sequence_parallel", "tensor_parallel", "it splits over tensor-parallel ranks"),
        ("virtual_pipeline", "pipeline_parallel", "it cuts each pipeline stage into chunks"),
        ("context_exchange", "context_parallel", "it is between context-parallel ranks"),
    ):
        value = getattr(actor, given)
        if value != ActorSection.model_fields[given].default and getattr(actor, needed) == 1:
            raise ValueError(
                f"actor.{given} is {value} with actor.{needed} 1: {does}, so raise {needed} or leave {given} out"
            )
    if actor.expert_parallel > 1:
        ranks = actor.world_size // actor.pipeline_parallel
        if ranks % actor.expert_parallel:
            raise ValueError(
                f"actor.expert_parallel is {actor.expert_parallel}, which does not divide a stage's {ranks} ranks "
                "(actor.tensor_parallel x context_parallel x data_parallel)"
            )


def _check_batch(recipe: Recipe) -> None:
    """Each optimizer step must give every rank a sequence, and every pipeline stage something to do."""
    rollout, actor, parts = recipe.rollout, recipe.actor, recipe.algorithm.updates_per_batch
    sequences, wanted = rollout.groups * rollout.group_size // parts, actor.data_parallel * actor.pipeline_parallel
    if sequences < wanted:
        raise ValueError(
            f"an optimizer step has {sequences} episodes (rollout.groups {rollout.groups} x rollout.group_size "
            f"{rollout.group_size} / algorithm.updates_per_batch {parts}), too few for the layout: "
            f"actor.data_parallel {actor.data_parallel} x actor.pipeline_parallel {actor.pipeline_parallel} wants "
            f"{wanted}, one for each stage of each pipeline"
        )


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
