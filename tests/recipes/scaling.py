"""How a recipe is made small enough to rehearse: its numbers shrink, and nothing else changes.

Booleans, names and dtypes are what a recipe chooses; they stay. So do its limits, the rates of optimizer and
algorithm, and the settings of its environment. A degree (a number of ranks, of engines, of model chunks) that is
above 1 becomes 2: what happens only between ranks happens between these too. Where that takes more ranks than
there are, the degrees are spread over several passes.
"""

import math
from dataclasses import dataclass
from typing import Any

from megatron_empg.actor.config import ActorConfig
from megatron_empg.algorithms.dapo import Dapo, OverlongSection
from megatron_empg.recipe import Recipe, SftRecipe

DEGREES = ("tensor_parallel", "pipeline_parallel", "context_parallel", "data_parallel")
"""The actor's degrees that multiply to its ranks."""
DEGREE_KEYS = (
    *(f"actor.{name}" for name in (*DEGREES, "virtual_pipeline", "expert_parallel")),
    *("engines.count", "engines.tensor_parallel"),
)
"""Every degree of a recipe, by its key."""
KV_CACHE_GIB = 0.125

Overrides = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What a rehearsal may take. A recipe's own number stays where it is smaller."""

    steps: int = 2
    checkpoint_every: int = 1
    groups: int = 4
    group_size: int = 4
    questions: int = 2
    episode_tokens: int = 1024
    turn_tokens: int = 64
    concurrency: int = 32
    sft_batch: int = 8


def scaled(recipe: Recipe | SftRecipe, ranks: int, size: Size = Size()) -> list[Overrides]:
    """The passes that rehearse a recipe, each as overrides by key; together they cover every degree above 1.

    A pass has at most ``ranks`` ranks; more only where the recipe's flags bind so many degrees to each other
    (sequence parallelism and a context exchange, beside a third degree) that fewer ranks would not do.
    """
    return [_numbers(recipe, degrees, size) for degrees in _actor_passes(recipe.actor, ranks)]


def words(overrides: Overrides) -> list[str]:
    """Overrides as the command line has them."""
    return [f"{key}={value}" for key, value in overrides.items()]


def _actor_passes(actor: ActorConfig, ranks: int) -> list[dict[str, int]]:
    above = [name for name in DEGREES if getattr(actor, name) > 1]
    bound = [name for name in above if name in _bound_by_flags(actor)]
    free = [name for name in above if name not in bound]
    room = max(1, int(math.log2(ranks)) - len(bound))
    parts = [free[first : first + room] for first in range(0, len(free), room)] or [[]]
    return [_degrees(actor, {*bound, *part}) for part in parts]


def _bound_by_flags(actor: ActorConfig) -> set[str]:
    """Degrees that must be above 1 in every pass, as a flag of the recipe means nothing without them."""
    bound = set()
    if actor.sequence_parallel:
        bound.add("tensor_parallel")
    if actor.context_exchange is not None:
        bound.add("context_parallel")
    return bound


def _degrees(actor: ActorConfig, above: set[str]) -> dict[str, int]:
    """All of the actor's degrees in a pass where those in ``above`` are 2."""
    degrees = {name: 2 if name in above else 1 for name in DEGREES}
    degrees["virtual_pipeline"] = min(actor.virtual_pipeline, degrees["pipeline_parallel"])
    # Experts are split over a stage's ranks: over those of the other degrees.
    stage = math.prod(degrees[name] for name in DEGREES if name != "pipeline_parallel")
    degrees["expert_parallel"] = min(actor.expert_parallel, stage, 2)
    return degrees


def _numbers(recipe: Recipe | SftRecipe, degrees: dict[str, int], size: Size) -> Overrides:
    run, optimizer = recipe.run, recipe.actor.optimizer
    steps = min(run.steps, size.steps)
    numbers: Overrides = {f"actor.{name}": degree for name, degree in degrees.items()}
    numbers["run.steps"] = steps
    numbers["run.checkpoint_every"] = min(run.checkpoint_every, size.checkpoint_every)
    numbers["actor.recompute_layers"] = 1
    numbers["actor.optimizer.warmup_steps"] = math.ceil(optimizer.warmup_steps * steps / run.steps)
    if isinstance(recipe, SftRecipe):
        numbers["sft.batch_size"] = min(recipe.sft.batch_size, size.sft_batch)
        numbers["sft.validate_every"] = min(recipe.sft.validate_every, 1)
    else:
        numbers |= _batch(recipe, degrees, size)
        numbers |= _tokens(recipe, degrees["context_parallel"], size)
        numbers |= _others(recipe, size)
    return numbers


def _batch(recipe: Recipe, degrees: dict[str, int], size: Size) -> Overrides:
    """Few episodes, yet enough that each optimizer step has one for every stage of every pipeline."""
    rollout = recipe.rollout
    updates = min(recipe.algorithm.updates_per_batch, 2)
    wanted = updates * degrees["data_parallel"] * degrees["pipeline_parallel"]
    groups = max(min(rollout.groups, size.groups), recipe.limits.min_groups or 1)
    group_size = min(rollout.group_size, max(size.group_size, math.ceil(wanted / groups)))
    groups = max(groups, math.ceil(wanted / group_size))
    return {
        "algorithm.updates_per_batch": updates,
        "rollout.groups": groups,
        "rollout.group_size": group_size,
        "rollout.concurrency": min(rollout.concurrency, size.concurrency),
    }


def _tokens(recipe: Recipe, context: int, size: Size) -> Overrides:
    """Shorter episodes; a microbatch holds as many of them as before, if not just one.

    An episode that took many context ranks must fit a microbatch of few.
    """
    rollout, actor = recipe.rollout, recipe.actor
    budget, multiple = actor.max_tokens_per_microbatch, 2 * context if context > 1 else 1
    longest = budget * context - budget * context % multiple
    episode = min(rollout.max_episode_tokens, size.episode_tokens, longest)
    in_microbatch = budget * actor.context_parallel / rollout.max_episode_tokens
    microbatch = min(budget, math.ceil(episode * in_microbatch / context))
    padded = math.ceil(episode / multiple) * multiple
    turn = min(rollout.max_turn_tokens, size.turn_tokens, episode - 1)
    return {
        "rollout.max_episode_tokens": episode,
        "rollout.max_turn_tokens": turn,
        "actor.max_tokens_per_microbatch": max(microbatch, padded // context),
        **_overlong(recipe, episode, turn),
    }


def _overlong(recipe: Recipe, episode: int, turn: int) -> Overrides:
    """DAPO's penalty begins at the same share of the own tokens that an episode can have."""
    rollout = recipe.rollout
    overlong = recipe.algorithm.overlong if isinstance(recipe.algorithm, Dapo) else OverlongSection()
    if overlong.max_length is None:
        return {}
    turns = recipe.environment.max_turns
    share = min(episode, turns * turn) / min(rollout.max_episode_tokens, turns * rollout.max_turn_tokens)
    begins = math.floor((overlong.max_length - overlong.buffer) * share)
    buffer = max(1, math.floor(overlong.buffer * share))
    return {"algorithm.overlong.buffer": buffer, "algorithm.overlong.max_length": begins + buffer}


def _others(recipe: Recipe, size: Size) -> Overrides:
    engines, evaluation, algorithm = recipe.engines, recipe.evaluation, recipe.algorithm
    rounds = {}
    if "max_generation_rounds" in type(algorithm).model_fields:
        rounds = {"algorithm.max_generation_rounds": min(algorithm.generation_rounds, 2)}
    return {
        **rounds,
        "engines.count": min(engines.count, 2),
        "engines.tensor_parallel": min(engines.tensor_parallel, 2),
        "engines.kv_cache_gib": min(engines.kv_cache_gib or KV_CACHE_GIB, KV_CACHE_GIB),
        "algorithm.kl_to_initial_every": min(algorithm.kl_to_initial_every, 1),
        "evaluation.every": min(evaluation.every, size.steps),
        "evaluation.questions": min(evaluation.questions, size.questions),
    }
