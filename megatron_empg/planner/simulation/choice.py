"""How many nodes should train, how many groups a batch should have, and what a lag brings on each split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.gpus import GPUS_PER_NODE
from megatron_empg.planner.search import GIB, plan
from megatron_empg.planner.simulation.assumed import MOST_SLOTS, Machine, assumed_setting
from megatron_empg.planner.simulation.loop import simulate, steps_to_count
from megatron_empg.planner.simulation.result import SimulationResult
from megatron_empg.recipe import Recipe

HEADROOM = 5 * GIB
"""That a chosen layout leaves of each GPU, as docs/planning.md advises."""
TIMES_GROUPS = (1, 2)
"""Batches that are tried, by the recipe's."""
EPISODES = 3000
"""Simulated of each, at least four steps."""


@dataclass(frozen=True)
class NodeSplit:
    """Nodes shared out, with the fastest layout of the trainer's that leaves `HEADROOM`."""

    trainer_nodes: int
    engines: int
    actor: ActorConfig
    recipe: Recipe
    """With these engines and this layout."""


@dataclass(frozen=True)
class SimulatedChoice:
    """One split with a batch and a lag, and what the simulation says of it."""

    split: NodeSplit
    outcome: SimulationResult


def splits(recipe: Recipe, machine: Machine, gpus: int) -> Iterator[NodeSplit]:
    """Every number of trainer nodes that the model fits and that leaves room for an engine."""
    for nodes in range(1, gpus // GPUS_PER_NODE):
        trainer_gpus = nodes * GPUS_PER_NODE
        found = plan(
            recipe,
            machine.config,
            gpus=gpus,
            gpu_memory=machine.gpu_memory - HEADROOM,
            gpu=machine.gpu,
            trainer_gpus=trainer_gpus,
        )
        if not found.fitting:
            continue
        actor = found.fitting[0].actor
        count = (gpus - trainer_gpus) // recipe.engines.tensor_parallel
        engines = recipe.engines.model_copy(update={"count": count})
        yield NodeSplit(nodes, count, actor, recipe.model_copy(update={"engines": engines, "actor": actor}))


def choices(recipe: Recipe, machine: Machine, gpus: int, lags: Sequence[int]) -> Iterator[SimulatedChoice]:
    """All splits, batches and lags, each with as many episodes under way as its slots of groups hold."""
    for split in splits(recipe, machine, gpus):
        for times in TIMES_GROUPS:
            rollout = recipe.rollout.model_copy(update={"groups": times * recipe.rollout.groups})
            without = assumed_setting(split.recipe.model_copy(update={"rollout": rollout}), machine)
            for lag in lags:
                setting = replace(without, max_lag=lag)
                episodes = setting.slots_of_groups * setting.group_size
                setting = replace(setting, concurrency=episodes, slots=min(MOST_SLOTS, episodes))
                of_batch = setting.groups * setting.group_size
                counted = max(4, EPISODES // of_batch)
                yield SimulatedChoice(split, simulate(setting, steps=steps_to_count(counted, setting)))
