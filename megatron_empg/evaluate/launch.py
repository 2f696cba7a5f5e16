"""Starts engines on this machine for each policy in turn, and asks them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from megatron_empg.common.http import wait_until_healthy
from megatron_empg.evaluate.document import EvaluationDocument
from megatron_empg.evaluate.options import EvaluationOptions
from megatron_empg.evaluate.policies import Policy
from megatron_empg.evaluate.run import EvaluationRun
from megatron_empg.launch.local_parts import check_machine, engine_parts
from megatron_empg.launch.local_runner import processes_of
from megatron_empg.recipe import Recipe, dump_recipe
from megatron_empg.rollout.service.rollout_service import open_rollout_service
from megatron_empg.run.folder import RunFolder


def launch_evaluation(
    path: Path, overrides: list[str], options: EvaluationOptions | None = None
) -> EvaluationDocument:
    """Policies on the recipe's fixed questions, every split, sampled and greedy; prints as it goes.

    Raises RecipeError and EvaluationError before anything starts, LaunchError when a process fails.
    """
    with EvaluationRun(path, overrides, options or EvaluationOptions()) as evaluation:
        unanswered = evaluation.unanswered()
        if unanswered:
            check_machine(evaluation.recipe, trains=False)
        for policy in unanswered:
            _ask(evaluation, policy)
        return evaluation.finish()


def _ask(evaluation: EvaluationRun, policy: Policy) -> None:
    """By engines that are there for this policy alone."""
    recipe = evaluation.recipe_of(policy)
    folder = RunFolder(evaluation.scratch / policy.key).open(dump_recipe(recipe))
    engines = engine_parts(recipe, trains=False)
    urls = [url for engine in engines for url in engine.addresses]
    with processes_of(folder, goes_on=False) as runner:
        for engine in engines:
            runner.start(engine)
        wait_until_healthy(urls, runner.token, timeout=recipe.engines.start_timeout, check=runner.check)
        asyncio.run(_play(recipe, urls, runner.token, evaluation, policy))


async def _play(recipe: Recipe, urls: list[str], token: str, evaluation: EvaluationRun, policy: Policy) -> None:
    async with open_rollout_service(recipe.service_config(), urls, token) as driver:
        await evaluation.ask(driver, policy)
