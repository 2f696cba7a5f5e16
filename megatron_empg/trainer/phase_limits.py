"""How long a phase of training may take, for the watchdog, and how long ranks wait for each other."""

from megatron_empg.recipe import Recipe, SftRecipe
from megatron_empg.run.checkpoint_folders import reading_seconds
from megatron_empg.run.heartbeat import PHASE_LIMIT

LOADING = 600.0
"""Seconds to build the actor, read its weights or a small checkpoint and join the engines' group."""
SFT_COLLECTIVE = 1800.0
"""Seconds that the ranks of a supervised run wait for each other, more where reading its checkpoint takes longer:
none of them waits for another program."""


def phase_limits(recipe: Recipe | SftRecipe) -> dict[str, float]:
    """Seconds by phase. A phase in which rank 0 waits for another program may take as long as that may.

    A supervised run has a limit of its own for the start alone, in which it reads its newest checkpoint.
    """
    if isinstance(recipe, SftRecipe):
        return {"start": PHASE_LIMIT + reading_seconds(recipe.run.folder)}
    waits = recipe.waits
    computing = min(PHASE_LIMIT, waits.phase)
    loading = LOADING + reading_seconds(recipe.run.folder)
    return {
        # Rank 0 waits for the engines, and then joins them; all ranks read a checkpoint, each by itself.
        "start": recipe.engines.start_timeout + waits.sync + loading,
        "rollout": waits.phase,
        "evaluate": waits.phase,
        "sync": waits.phase + waits.sync,  # it may wait for an engine as long as for a batch, before it sends
        "score": computing,
        "update": computing,
        "checkpoint": computing,
        "export": computing,
    }


def driver_timeout(recipe: Recipe) -> float:
    """Seconds that rank 0 waits for an answer of the driver.

    They are more than a batch may take, so that the driver's own words arrive, and fewer than the phase's.
    """
    waits = recipe.waits
    return (waits.batch + waits.phase) / 2


def collective_timeout(recipe: Recipe | SftRecipe) -> float:
    """Seconds that ranks wait for each other: longer than any phase."""
    least = SFT_COLLECTIVE if isinstance(recipe, SftRecipe) else recipe.waits.collective
    return max(least, max(phase_limits(recipe).values()) + 60)
