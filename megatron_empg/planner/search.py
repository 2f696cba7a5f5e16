"""Which layouts fit, best first, and why the others do not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.gpus import GPUS_PER_NODE, Gpu
from megatron_empg.common.section import Mark, marked
from megatron_empg.planner.engines import EngineMemory, engine_memory
from megatron_empg.planner.host_memory import checkpoint_host_memory
from megatron_empg.planner.memory import RankMemory, rank_memory
from megatron_empg.planner.timing import StepTime, step_time
from megatron_empg.recipe import Recipe, RecipeError, parse_recipe
from megatron_empg.recipe.check import layout_faults
from megatron_empg.weights.mapping.model_config import ModelConfig

GIB = 2**30
KEYS = marked(ActorConfig, Mark.PLANNED)
"""Keys of the actor that the search chooses."""


@dataclass(frozen=True)
class Candidate:
    """One layout of the trainer's GPUs."""

    actor: ActorConfig
    faults: tuple[str, ...] = ()
    """Why it cannot be, or cannot fit; empty when it fits."""
    stages: tuple[RankMemory, ...] = ()
    """Of a rank of each pipeline stage; empty for a layout that cannot be."""
    time: StepTime | None = None

    @property
    def fits(self) -> bool:
        return not self.faults

    @property
    def seconds(self) -> float:
        """A step's."""
        return self.time.total if self.time else float("inf")

    @property
    def fullest(self) -> int:
        """The pipeline stage with the most memory."""
        return max(range(len(self.stages)), key=lambda stage: self.stages[stage].total)

    @property
    def peak(self) -> float:
        return self.stages[self.fullest].total


Judge = Callable[[Recipe], Candidate]


@dataclass(frozen=True)
class Plan:
    """What `plan` found. ``fitting`` is best first, ``others`` nearest first."""

    gpu: Gpu
    gpu_memory: float
    gpus: int
    trainer_gpus: int
    engine: EngineMemory
    own: Candidate
    """The recipe's own layout."""
    host_memory: float
    """Bytes of main memory that saving a checkpoint takes on a trainer node, in that layout."""
    own_faults: tuple[str, ...]
    """Why the recipe as it stands does not fit; empty when it does."""
    fitting: tuple[Candidate, ...]
    others: tuple[Candidate, ...]

    @property
    def nearest(self) -> dict[str, object]:
        """The fewest keys to change, and their values, for a layout that fits; empty if there is none."""
        changes = [changed_keys(self.own.actor, candidate.actor) for candidate in self.fitting]
        return min(changes, key=len, default={})


def plan(
    recipe: Recipe,
    config: ModelConfig,
    *,
    gpus: int,
    gpu_memory: float,
    gpu: Gpu,
    trainer_gpus: int | None = None,
) -> Plan:
    """Lay the model out on ``gpus`` GPUs of ``gpu_memory`` bytes each.

    The engines take what the recipe says and the trainer the rest; with ``trainer_gpus`` the engines are as many
    as the rest holds. Raises RecipeError when nothing is left for either.
    """
    recipe, trainer_gpus = _split(recipe, gpus, trainer_gpus)
    engine = engine_memory(recipe, config, gpu_memory)
    judge = partial(_judge, config=config, engine=engine, gpu_memory=gpu_memory, gpu=gpu)
    own = judge(recipe)
    found = [
        _with_least_recomputation(layout, judge, config.num_layers) if isinstance(layout, Recipe) else layout
        for layout in _layouts(recipe, config, trainer_gpus)
    ]
    fitting = sorted((c for c in found if c.fits), key=lambda c: c.seconds)
    others = sorted((c for c in found if not c.fits), key=lambda c: c.peak if c.stages else float("inf"))
    faults = (*own.faults, *([engine.fault] if engine.fault else []))
    if recipe.actor.world_size > trainer_gpus:
        faults += (
            f"the recipe's actor takes {recipe.actor.world_size} GPUs (tensor x pipeline x context x data); "
            f"{trainer_gpus} of {gpus} are the trainer's",
        )
    return Plan(
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        trainer_gpus=trainer_gpus,
        engine=engine,
        own=own,
        host_memory=checkpoint_host_memory(recipe, config),
        own_faults=faults,
        fitting=tuple(fitting),
        others=tuple(others),
    )


def changed_keys(given: ActorConfig, wanted: ActorConfig) -> dict[str, object]:
    """Keys in which two actor sections differ, with the second's values."""
    keys = [key for key in KEYS if key != "recompute_layers" or wanted.recompute == "block"]
    return {f"actor.{key}": getattr(wanted, key) for key in keys if getattr(given, key) != getattr(wanted, key)}


def _split(recipe: Recipe, gpus: int, trainer_gpus: int | None) -> tuple[Recipe, int]:
    each = recipe.engines.tensor_parallel
    if trainer_gpus is None:
        trainer_gpus = gpus - recipe.engines.world_size
        if trainer_gpus < 1:
            raise RecipeError(
                f"--gpus is {gpus}, but the engines alone take {recipe.engines.world_size} (engines.count "
                f"{recipe.engines.count} x engines.tensor_parallel {each}); give more GPUs or lower engines.count"
            )
        return recipe, trainer_gpus
    if not 0 < trainer_gpus <= gpus - each:
        raise RecipeError(
            f"--trainer-gpus is {trainer_gpus}; of {gpus} GPUs it may be 1 to {gpus - each}, since an engine "
            f"takes {each} (engines.tensor_parallel)"
        )
    engines = recipe.engines.model_copy(update={"count": (gpus - trainer_gpus) // each})
    return recipe.model_copy(update={"engines": engines}), trainer_gpus


def _layouts(recipe: Recipe, config: ModelConfig, ranks: int) -> Iterator[Recipe | Candidate]:
    """Every layout of so many ranks: the recipe in it, or why it cannot be.

    A microbatch's tokens over all context-parallel ranks stay the recipe's. Sequence parallelism and the
    distributed optimizer cost nothing and are used wherever they can be.
    """
    budget = recipe.actor.microbatch_tokens
    for tensor, pipeline, context, data, expert in _sizes(config, ranks):
        for chunks in (1, 2, 4) if pipeline > 1 else (1,):
            keys: dict[str, object] = {
                "tensor_parallel": tensor,
                "pipeline_parallel": pipeline,
                "virtual_pipeline": chunks,
                "context_parallel": context,
                "context_exchange": recipe.actor.context_exchange if context > 1 else None,
                "expert_parallel": expert,
                "data_parallel": data,
                "sequence_parallel": tensor > 1,
                "distributed_optimizer": data * context > 1,
                # An even number: sequences are padded to a multiple of twice the context-parallel ranks.
                "max_tokens_per_microbatch": -(-budget // context)
                if context == 1
                else 2 * -(-budget // (2 * context)),
            }
            yield _legal(recipe, config, keys)


def _sizes(config: ModelConfig, ranks: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(tensor, pipeline, context, data, expert) sizes whose product, experts aside, is the number of ranks."""
    for tensor in _divisors(ranks, GPUS_PER_NODE):
        for pipeline in _divisors(ranks // tensor, config.num_layers):
            rest = ranks // tensor // pipeline
            for context in _divisors(rest, GPUS_PER_NODE):
                experts = _divisors(tensor * rest, config.experts.number) if config.experts else [1]
                for expert in experts:
                    yield tensor, pipeline, context, rest // context, expert


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _legal(recipe: Recipe, config: ModelConfig, keys: dict[str, object]) -> Recipe | Candidate:
    actor = recipe.actor.model_copy(update=keys)
    try:
        made = parse_recipe({**recipe.model_dump(), "actor": {**recipe.actor.model_dump(), **keys}})
    except RecipeError as error:
        lines = [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
        return Candidate(actor, tuple(lines))
    faults = layout_faults(made, config)
    return Candidate(actor, tuple(faults)) if faults else made


def _with_least_recomputation(recipe: Recipe, judge: Judge, num_layers: int) -> Candidate:
    """The fastest kind of recomputation that fits; where none does, all of it is shown."""
    layers = num_layers // recipe.actor.chunks

    def judged(kind: str, count: int = 1) -> Candidate:
        update = {"recompute": kind, "recompute_layers": count}
        return judge(recipe.model_copy(update={"actor": recipe.actor.model_copy(update=update)}))

    full = judged("full")
    if not full.fits or (none := judged("none")).fits:
        return none if full.fits else full
    low, high = 1, layers  # the shortest block that fits; all of the layers are full recomputation
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if judged("block", middle).fits else (middle + 1, high)
    least = full if low == layers else judged("block", low)
    selective = judged("selective")
    return selective if selective.fits and selective.seconds < least.seconds else least


def _judge(recipe: Recipe, *, config: ModelConfig, engine: EngineMemory, gpu_memory: float, gpu: Gpu) -> Candidate:
    if faults := layout_faults(recipe, config):
        return Candidate(recipe.actor, tuple(faults))
    stages = tuple(rank_memory(recipe, config, stage) for stage in range(recipe.actor.pipeline_parallel))
    candidate = Candidate(recipe.actor, (), stages, step_time(recipe, config, engine, gpu))
    over = candidate.peak - gpu_memory
    if over <= 0:
        return candidate
    memory, stage = stages[candidate.fullest], candidate.fullest
    largest = max(("weights", "gradients", "optimizer", "activations"), key=lambda kind: getattr(memory, kind))
    where = f"stage {stage} of {len(stages)}" if len(stages) > 1 else "every rank"
    fault = (
        f"{over / GIB:.1f} GiB over on {where}, most of it {largest} ({getattr(memory, largest) / GIB:.1f} GiB)"
    )
    return Candidate(recipe.actor, (fault,), stages, candidate.time)
