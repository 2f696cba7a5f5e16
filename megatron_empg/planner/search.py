"""Which layouts fit, best first, and why the others do not."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

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
class LayoutCandidate:
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
        if self.time is None:
            return float("inf")
        return self.time.total

    @property
    def fullest(self) -> int:
        """The pipeline stage with the most memory."""
        totals = [stage.total for stage in self.stages]
        return totals.index(max(totals))

    @property
    def peak(self) -> float:
        return self.stages[self.fullest].total


Judge = Callable[[Recipe], LayoutCandidate]


@dataclass(frozen=True)
class LayoutPlan:
    """What `plan` found. ``fitting`` is best first, ``others`` nearest first."""

    gpu: Gpu
    gpu_memory: float
    gpus: int
    trainer_gpus: int
    engine: EngineMemory
    own: LayoutCandidate
    """The recipe's own layout."""
    host_memory: float
    """Bytes of main memory that saving a checkpoint takes on a trainer node, in that layout."""
    own_faults: tuple[str, ...]
    """Why the recipe as it stands does not fit; empty when it does."""
    fitting: tuple[LayoutCandidate, ...]
    others: tuple[LayoutCandidate, ...]

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
) -> LayoutPlan:
    """Lay the model out on ``gpus`` GPUs of ``gpu_memory`` bytes each.

    The engines take what the recipe says and the trainer the rest; with ``trainer_gpus`` the engines are as many
    as the rest holds. Raises RecipeError when nothing is left for either.
    """
    recipe, trainer_gpus = _split(recipe, gpus, trainer_gpus)
    engine = engine_memory(recipe, config, gpu_memory)
    judge = partial(_judge, config=config, engine=engine, gpu_memory=gpu_memory, gpu=gpu)
    own = judge(recipe)
    fitting, others = _sorted_out(_layouts(recipe, config, trainer_gpus), judge, config.num_layers)
    faults = own.faults
    if engine.fault:
        faults += (engine.fault,)
    if recipe.actor.world_size > trainer_gpus:
        faults += (
            f"the recipe's actor takes {recipe.actor.world_size} GPUs (tensor x pipeline x context x data); "
            f"{trainer_gpus} of {gpus} are the trainer's",
        )
    return LayoutPlan(
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


def _sorted_out(
    layouts: Iterator[Recipe | LayoutCandidate], judge: Judge, num_layers: int
) -> tuple[list[LayoutCandidate], list[LayoutCandidate]]:
    """Those that fit, fastest first, and the others, those that miss by least first."""
    fitting: list[LayoutCandidate] = []
    others: list[LayoutCandidate] = []
    for layout in layouts:
        candidate = layout
        if isinstance(candidate, Recipe):
            candidate = _with_least_recomputation(candidate, judge, num_layers)
        if candidate.fits:
            fitting.append(candidate)
        else:
            others.append(candidate)
    fitting.sort(key=attrgetter("seconds"))
    others.sort(key=_peak_if_it_can_be)
    return fitting, others


def _peak_if_it_can_be(candidate: LayoutCandidate) -> float:
    """Bytes; no number of them is enough for a layout that cannot be."""
    if not candidate.stages:
        return float("inf")
    return candidate.peak


def changed_keys(given: ActorConfig, wanted: ActorConfig) -> dict[str, object]:
    """Keys in which two actor sections differ, with the second's values."""
    changed: dict[str, object] = {}
    for key in KEYS:
        if key == "recompute_layers" and wanted.recompute != "block":
            continue  # it says nothing then
        value = getattr(wanted, key)
        if getattr(given, key) != value:
            changed[f"actor.{key}"] = value
    return changed


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


def _layouts(recipe: Recipe, config: ModelConfig, ranks: int) -> Iterator[Recipe | LayoutCandidate]:
    """Every layout of so many ranks: the recipe in it, or why it cannot be.

    A microbatch's tokens over all context-parallel ranks stay the recipe's. Sequence parallelism and the
    distributed optimizer cost nothing and are used wherever they can be.
    """
    for tensor, pipeline, context, data, expert in _sizes(config, ranks):
        keys: dict[str, object] = {
            "tensor_parallel": tensor,
            "pipeline_parallel": pipeline,
            "context_parallel": context,
            "expert_parallel": expert,
            "data_parallel": data,
            "sequence_parallel": tensor > 1,
            "distributed_optimizer": data * context > 1,
            **_context_keys(recipe.actor, context),
        }
        chunks_to_try: tuple[int, ...] = (1,)
        if pipeline > 1:
            chunks_to_try = (1, 2, 4)
        for chunks in chunks_to_try:
            yield _legal(recipe, config, {**keys, "virtual_pipeline": chunks})


def _context_keys(actor: ActorConfig, context: int) -> dict[str, object]:
    """Those that depend on the number of context-parallel ranks."""
    budget = actor.microbatch_tokens
    if context == 1:
        return {"context_exchange": None, "max_tokens_per_microbatch": budget}
    # An even number: sequences are padded to a multiple of twice the context-parallel ranks.
    tokens = 2 * math.ceil(budget / (2 * context))
    return {"context_exchange": actor.context_exchange, "max_tokens_per_microbatch": tokens}


def _sizes(config: ModelConfig, ranks: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(tensor, pipeline, context, data, expert) sizes whose product, experts aside, is the number of ranks."""
    for tensor in _divisors(ranks, GPUS_PER_NODE):
        for pipeline in _divisors(ranks // tensor, config.num_layers):
            rest = ranks // tensor // pipeline
            for context in _divisors(rest, GPUS_PER_NODE):
                experts = [1]
                if config.experts:
                    experts = _divisors(tensor * rest, config.experts.number)
                for expert in experts:
                    yield tensor, pipeline, context, rest // context, expert


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _legal(recipe: Recipe, config: ModelConfig, keys: dict[str, object]) -> Recipe | LayoutCandidate:
    actor = recipe.actor.model_copy(update=keys)
    try:
        made = parse_recipe({**recipe.model_dump(), "actor": {**recipe.actor.model_dump(), **keys}})
    except RecipeError as error:
        lines = [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
        return LayoutCandidate(actor, tuple(lines))
    faults = layout_faults(made, config)
    if faults:
        return LayoutCandidate(actor, tuple(faults))
    return made


def _with_least_recomputation(recipe: Recipe, judge: Judge, num_layers: int) -> LayoutCandidate:
    """The fastest kind of recomputation that fits; where none does, all of it is shown."""
    layers = num_layers // recipe.actor.chunks

    def judged(kind: str, count: int = 1) -> LayoutCandidate:
        update = {"recompute": kind, "recompute_layers": count}
        actor = recipe.actor.model_copy(update=update)
        return judge(recipe.model_copy(update={"actor": actor}))

    full = judged("full")
    if not full.fits:
        return full
    none = judged("none")
    if none.fits:
        return none
    low, high = 1, layers  # the shortest block that fits; all of the layers are full recomputation
    while low < high:
        middle = (low + high) // 2
        if judged("block", middle).fits:
            high = middle
        else:
            low = middle + 1
    least = full
    if low < layers:
        least = judged("block", low)
    selective = judged("selective")
    if selective.fits and selective.seconds < least.seconds:
        return selective
    return least


def _judge(
    recipe: Recipe, *, config: ModelConfig, engine: EngineMemory, gpu_memory: float, gpu: Gpu
) -> LayoutCandidate:
    faults = layout_faults(recipe, config)
    if faults:
        return LayoutCandidate(recipe.actor, tuple(faults))
    stages = tuple(rank_memory(recipe, config, stage) for stage in range(recipe.actor.pipeline_parallel))
    candidate = LayoutCandidate(recipe.actor, (), stages, step_time(recipe, config, engine, gpu))
    over = candidate.peak - gpu_memory
    if over <= 0:
        return candidate
    memory, stage = stages[candidate.fullest], candidate.fullest
    parts = {kind: getattr(memory, kind) for kind in ("weights", "gradients", "optimizer", "activations")}
    largest = max(parts, key=parts.__getitem__)
    where = "every rank"
    if len(stages) > 1:
        where = f"stage {stage} of {len(stages)}"
    fault = f"{over / GIB:.1f} GiB over on {where}, most of it {largest} ({parts[largest] / GIB:.1f} GiB)"
    return LayoutCandidate(recipe.actor, (fault,), stages, candidate.time)
