"""What a run is: every key of a recipe, its type, its default and what it means.

A recipe is a YAML file; the command line overrides single keys by dotted name
(``empg train recipes/quickstart.yaml actor.optimizer.lr=1e-4``). What cannot be is refused here, before
any process starts, by an error that names the key, what was given and what is allowed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.registry import AlgorithmKey
from megatron_empg.common.section import LARGEST, NonNegative, Positive, Section
from megatron_empg.common.values import expanded, not_empty, plain_settings
from megatron_empg.common.waits import Waits, nested_waits
from megatron_empg.environments.registry import is_known, unknown
from megatron_empg.recipe.combinations import check_algorithm
from megatron_empg.recipe.errors import RecipeError, explained
from megatron_empg.recipe.overrides import apply_overrides
from megatron_empg.recipe.yaml_text import read_yaml

__all__ = ["Recipe", "RecipeError", "SftRecipe", "dump_recipe", "load_recipe", "parse_recipe"]

Seconds = Annotated[float, Field(gt=0, le=LARGEST)] | None
# vLLM samples at 0.01 where less is asked for, and the actor would divide its logits by something else.
Temperature = Annotated[float, Field(ge=0.01, le=100)]
# YAML knows neither paths nor tuples.
PathText = Annotated[Path, Field(strict=False), BeforeValidator(not_empty), AfterValidator(expanded)]
# At 1 a moving average would never move.
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
HeldOut = Literal["test_id", "test_ood"]
History = Literal["keep", "strip"]
HELD_OUT: tuple[HeldOut, ...] = ("test_id", "test_ood")


class RunSection(Section):
    folder: PathText
    """Where recipe, metrics, checkpoints, episodes and report go; a run found there is continued. In paths a
    leading ``~`` is the home folder."""
    steps: Positive
    """How many batches to train on; a checkpoint of a finished run is continued by raising it."""
    seed: NonNegative = 0
    """Everything random derives from it: question order, sampling, initial weights."""
    checkpoint_every: Positive = 10
    """Steps between checkpoints; one is also written at the end and when the run is interrupted."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay on disk."""


class ModelSection(Section):
    path: PathText
    """A Hugging Face model folder: config.json, tokenizer, and safetensors unless `initialise` is random."""
    initialise: Literal["checkpoint", "random"] = "checkpoint"
    """Where the initial weights come from; `random` is for supervised warm-up from nothing."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the actor computes in and the engines hold; optimizer state and gradients are float32."""


class EnvironmentSection(Section):
    name: str
    """Which environment the agent acts in: one that `empg environments` lists, or ``module:Class``."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The environment's own settings; `empg environments NAME` lists them."""
    max_turns: Positive = 8
    """Turns after which an episode without an answer ends as truncated; walkthroughs have no more either."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not is_known(name):
            raise ValueError(unknown(name))
        return name

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            return plain_settings(settings)
        except RecursionError:
            raise ValueError("nested too deeply, or an alias holds itself") from None


class RolloutSection(Section):
    groups: Positive
    """Questions a batch; each is answered `group_size` times."""
    group_size: Positive
    """Episodes of one question, whose rewards are compared with each other; at least 2."""
    temperature: Temperature = 1.0
    """Sampling temperature, 0.01 to 100; the actor divides its logits by the same number. Never with top-p or
    top-k."""
    max_turn_tokens: Positive = 512
    """A turn longer than this is cut; the end-of-turn token then comes from the template."""
    max_episode_tokens: Positive = 16384
    """Prompt, turns and observations together; an episode that would be longer ends as truncated. With `history`
    strip: what a turn reads, and the turn."""
    history: History = "keep"
    """What the policy reads of its earlier turns: `keep` is all of them, and an episode is one sequence; `strip`
    leaves out their thoughts (up to ``</think>``), as the templates of thinking models do, and every turn is a
    sequence of its own, with everything before it for a prompt."""
    concurrency: Positive = 256
    """Episodes in flight at once, over all engines."""


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


class EvaluationSection(Section):
    every: NonNegative = 0
    """Steps between evaluations; 0 evaluates only before and after training."""
    questions: NonNegative = 0
    """Fixed questions of each split; 0 switches evaluation off."""
    splits: list[HeldOut] = Field(default_factory=lambda: list(HELD_OUT))
    greedy: bool = True
    """Also measure greedy success, beside sampled success."""
    temperature: Temperature = 1.0
    """Of sampled success; it need not be `rollout.temperature`."""

    @model_validator(mode="after")
    def _splits_once_each(self) -> Self:
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(
                f"evaluation.splits is {self.splits}; name each split once, at least one "
                "(evaluation.questions 0 switches evaluation off)"
            )
        return self


class LimitsSection(Section):
    """When training stops, and how long waits may be: one that is not given follows from the one it lies in."""

    logprob_gap: Annotated[float, Field(gt=0)] | None = None
    """Mean |log-prob of the engine - log-prob of the actor| above which training stops: 1e-3 in float32,
    0.05 in bfloat16 unless given. A larger gap means stale or wrong weights, or other sampling than stated. It
    holds for all tokens together and for those of each engine."""
    logprob_gap_max: Annotated[float, Field(gt=0)] | None = None
    """The same for the single token with the largest gap: 0.1 in float32; 20 in bfloat16, where rounding alone may
    move an unlikely token by several nats (the loss takes no larger ratio either)."""
    min_groups: Positive | None = None
    """Groups a batch needs to be trained on; an eighth of `rollout.groups` unless given. With fewer the step
    trains on nothing, which may happen `max_idle_steps` times."""
    max_error_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a batch's (or an evaluation's) episodes that may end in an error, which is never trained on."""
    max_idle_steps: NonNegative = 3
    """Steps in a row with nothing to learn after which training stops."""
    max_skipped_updates: NonNegative = 3
    """Optimizer steps in a row that may be skipped because loss or gradient was not finite."""
    rollout_timeout: Positive = 3600
    """Seconds one batch's rollout may take, all its rounds together; also one pass of an evaluation."""
    round_timeout: Seconds = None
    """Seconds one round of a batch may take: half of the batch's where there may be several, else nine tenths."""
    episode_timeout: Seconds = None
    """Seconds one episode may take, half of a round's: one that lost its engine can start over within it."""
    turn_timeout: Seconds = None
    """Seconds one turn may take, a third of an episode's."""
    request_timeout: Seconds = None
    """Seconds one request to an engine may take, nine tenths of a turn's."""
    environment_timeout: Seconds = None
    """Seconds one step of the environment may take, a third of an episode's."""
    environment_memory: Annotated[float, Field(gt=0, le=LARGEST)] | None = None
    """GiB that an environment's worker processes may take together, so that no more live than fit; episodes beyond
    them wait. Half of what the rollout service's machine has free unless given."""
    sync_timeout: Positive = 600
    """Seconds one weight synchronisation may take."""
    phase_timeout: Seconds = None
    """Seconds after which a phase of a step counts as hanging: a minute more than the longest of the above."""
    collective_timeout: Seconds = None
    """Seconds that ranks wait for each other: ten minutes more than a phase."""


class SftLoggingSection(Section):
    tensorboard: bool = True
    wandb: str | None = None
    """A Weights & Biases project; needs the wandb package and WANDB_API_KEY."""


class LoggingSection(SftLoggingSection):
    episodes_per_step: NonNegative = 4
    """Annotated episodes kept in the run folder at each step."""
    diagnostics_every: NonNegative = 0
    """Steps between measurements of what the papers look at: how an update changes the turns' entropies, and
    the gradient of single turns by entropy. Each costs a score pass, and an update's work for each turn; 0 is
    never."""
    diagnostics_turns: Positive = 16
    """Turns whose gradient is measured then, spread evenly over the batch."""


class Recipe(Section):
    """A reinforcement-learning run: `empg train`."""

    run: RunSection
    model: ModelSection
    environment: EnvironmentSection
    rollout: RolloutSection
    engines: EngineSection = EngineSection()
    algorithm: AlgorithmKey = Grpo()
    actor: ActorSection = ActorSection()
    evaluation: EvaluationSection = EvaluationSection()
    limits: LimitsSection = LimitsSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        rollout, actor = self.rollout, self.actor
        if rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size is {rollout.group_size}; a group advantage compares at least 2 episodes"
            )
        if rollout.max_episode_tokens > actor.longest_sequence:
            raise ValueError(
                f"rollout.max_episode_tokens is {rollout.max_episode_tokens}, more than a microbatch can hold "
                f"({actor.longest_sequence}: actor.max_tokens_per_microbatch x actor.context_parallel, in "
                "multiples of twice the second where that is above 1); raise the microbatch or lower the episode"
            )
        if rollout.max_turn_tokens >= rollout.max_episode_tokens:
            raise ValueError(
                f"rollout.max_turn_tokens is {rollout.max_turn_tokens}; it must be below "
                f"rollout.max_episode_tokens ({rollout.max_episode_tokens})"
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
        given = self.limits.min_groups
        return given if given is not None else max(1, self.rollout.groups // 8)

    @property
    def logprob_gap_limit(self) -> float:
        """The limit in force: the recipe's, or the dtype's default."""
        default = {"float32": 1e-3, "bfloat16": 0.05}[self.model.dtype]
        return self.limits.logprob_gap if self.limits.logprob_gap is not None else default

    @property
    def logprob_gap_max_limit(self) -> float:
        """The limit in force for a single token: the recipe's, or the dtype's default (never below the mean's)."""
        if self.limits.logprob_gap_max is not None:
            return self.limits.logprob_gap_max
        return max({"float32": 0.1, "bfloat16": 20.0}[self.model.dtype], self.logprob_gap_limit)


class SftSection(Section):
    batch_size: Positive
    """Walkthroughs an optimizer step."""
    split: Literal["train"] = "train"
    validate_every: NonNegative = 0
    """Steps between measurements of the loss on held-out walkthroughs; 0 is never."""
    history: History = "keep"
    """As `rollout.history` of the runs that follow."""


class SftRecipe(Section):
    """A supervised warm-up on the environment's scripted walkthroughs: `empg sft`."""

    run: RunSection
    model: ModelSection
    environment: EnvironmentSection
    sft: SftSection
    actor: ActorSection = ActorSection()
    logging: SftLoggingSection = SftLoggingSection()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_actor(self.actor)
        return self


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
