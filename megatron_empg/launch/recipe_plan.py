"""The plan of a run, from its recipe: what the launcher must know of it."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from megatron_empg.environments.base import SideService
from megatron_empg.environments.registry import plugin
from megatron_empg.environments.settings import read_settings
from megatron_empg.launch.commands import EngineSettings
from megatron_empg.launch.ports import SERVICES
from megatron_empg.launch.run_plan import RunPlan, ServicePlan
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe
from megatron_empg.run.folder import RunFolder

SIZES = ("data_parallel", "context_parallel", "tensor_parallel", "pipeline_parallel")
"""Of an actor's layout: the number of its ranks is their product."""
CORE_MARGIN_SECONDS = 60
"""Beyond the longest weight transfer, for a core that ends it late."""
MOST_SEQUENCES = 1024
"""Sequences that an engine generates at once, at most, however many episodes there are."""


def plan_of(recipe: Recipe | SftRecipe, *, starts_services: bool = True) -> RunPlan:
    """The plan, with how far the run in its folder is by now. Raises RecipeError.

    `starts_services`: as a job does; on one machine episodes do without.
    """
    folder = RunFolder(recipe.run.folder)
    actor = recipe.actor
    layout = (
        f"tensor {actor.tensor_parallel} x pipeline {actor.pipeline_parallel} x context "
        f"{actor.context_parallel} x data {actor.data_parallel}"
    )
    above_one = [f"actor.{name}" for name in SIZES if getattr(actor, name) > 1]
    alone = RunPlan(
        kind="sft",
        run_folder=str(folder.root.absolute()),
        steps=recipe.run.steps,
        checkpoint=folder.last_checkpoint(),
        finished=folder.finished(recipe.run.steps),
        environment=recipe.environment.name,
        trainer_ranks=actor.world_size,
        engines=0,
        engine_size=1,
        engine_arguments=(),
        engine_start_seconds=math.inf,
        silence_seconds=math.inf,
        core_silence_seconds=math.inf,
        services=(),
        model_parallel=actor.world_size // actor.data_parallel,
        layout=layout,
        sizes_above_one=tuple(above_one),
    )
    if not isinstance(recipe, Recipe):
        return alone
    return replace(
        alone,
        kind="train",
        engines=recipe.engines.count,
        engine_size=recipe.engines.tensor_parallel,
        engine_arguments=engine_settings(recipe).arguments(),
        engine_start_seconds=recipe.engines.start_timeout,
        silence_seconds=recipe.engines.silence_timeout,
        core_silence_seconds=core_silence_seconds(recipe),
        services=service_plans(recipe) if starts_services else (),
    )


def core_silence_seconds(recipe: Recipe) -> float:
    """How long an engine's core may leave questions unanswered: it answers none in a weight transfer."""
    return max(recipe.engines.silence_timeout, recipe.limits.sync_timeout) + CORE_MARGIN_SECONDS


def engine_settings(recipe: Recipe) -> EngineSettings:
    """What each of the run's engines is started with."""
    engines = recipe.engines
    return EngineSettings(
        model=str(recipe.model.path),
        max_model_len=recipe.rollout.max_episode_tokens,
        dtype=recipe.model.dtype,
        max_num_seqs=min(MOST_SEQUENCES, recipe.rollout.concurrency),
        tensor_parallel=engines.tensor_parallel,
        kv_cache_bytes=engines.kv_cache_bytes,
    )


def service_plans(recipe: Recipe) -> tuple[ServicePlan, ...]:
    """The servers that a job starts for the environment, without those that run already. Raises RecipeError."""
    acting = recipe.environment
    try:
        kind = plugin(acting.name)
        found = kind.services(read_settings(kind.Settings, acting.settings, acting.name))
    except ValueError as error:
        raise RecipeError(f"environment.settings: {error}") from None
    if len(found) > len(SERVICES):
        raise RecipeError(
            f"the environment {acting.name} asks for {len(found)} services; a job starts {len(SERVICES)} at most"
        )
    for service in found:
        _check_words(service, acting.name)
    return tuple(
        ServicePlan(service.name, service.setting, service.token_variable, service.arguments) for service in found
    )


def _check_words(service: SideService, environment: str) -> None:
    words = (service.name, service.setting, service.token_variable)
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word) for word in words):
        raise RecipeError(f"the environment {environment} asks for the service {words}: these must be plain words")
