"""The driver: no GPU and no state of its own; plays the episodes of a step and hands over a batch.

What a step's batch is follows from (seed, step, weights) alone, so a driver can die and come back, or be asked
twice. Started by the launcher: ``python -m megatron_empg.trainer.driver RECIPE --port P --engine URL …``.
"""

import argparse
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import Split, TaskSource
from megatron_empg.environments.registry import make_task_source
from megatron_empg.processes import die_with_parent
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.rollout.access import TokenMiddleware, token_from_environment
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import Sampling
from megatron_empg.rollout.episode import Limits
from megatron_empg.rollout.episodes import Group, Rollout, RolloutSettings
from megatron_empg.rollout.fleet import Fleet
from megatron_empg.rollout.seeds import derive_seed
from megatron_empg.trainer.collect import Collection
from megatron_empg.trainer.evaluation import Evaluation

EVALUATION_STEP = -1
"""Stands for the training step in the seeds of an evaluation: it draws the same each time."""


class DriverError(RuntimeError):
    """No batch can be made; the message says what happened to the episodes."""


class Driver:
    """Plays whole batches and evaluations over open connections to the engines."""

    def __init__(self, recipe: Recipe, source: TaskSource, rollout: Rollout, end_of_turn: int) -> None:
        self.recipe, self.source, self.rollout = recipe, source, rollout
        self._stop = (end_of_turn,)

    async def collect(self, step: int) -> bytes:
        """The batch of a training step. Raises DriverError when errors left nothing to train on."""
        recipe = self.recipe
        dapo = recipe.algorithm.name == "dapo"
        collection = Collection(wanted=recipe.rollout.groups, drop_equal=dapo)
        rounds = recipe.algorithm.dapo.max_generation_rounds if dapo else 1
        for number in range(rounds):
            # The first round asks for a whole batch, later ones for what the filter took.
            seed = derive_seed(recipe.run.seed, step, "questions", number, 0)
            tasks = self.source.sample("train", collection.missing, seed)
            groups = [Group(task, i, range(recipe.rollout.group_size)) for i, task in enumerate(tasks)]
            episodes = await self.rollout.run_group_batch(groups, step)
            shuffle = seed if recipe.algorithm.shuffle_rewards else None
            collection.add(tasks, episodes, shuffle)
            if not collection.missing:
                break
        if all(e.outcome == "error" for e in collection.played):
            raise DriverError(
                f"step {step}: every episode ended in an error, the first: {collection.played[0].error}"
            )
        return collection.batch().to_bytes()

    async def evaluate(self, split: Split, greedy: bool) -> Evaluation:
        """Success on the split's fixed questions, sampled at temperature 1 or greedily; errors do not count."""
        started = time.monotonic()
        tasks = self.source.fixed(split, self.recipe.evaluation.questions)
        groups = [Group(task, i, [0]) for i, task in enumerate(tasks)]
        sampling = Sampling(temperature=0.0 if greedy else 1.0, stop_token_ids=self._stop)
        episodes = await self.rollout.run_group_batch(groups, EVALUATION_STEP, sampling=sampling)
        played = [(task, e) for task, e in zip(tasks, episodes, strict=True) if e.outcome != "error"]
        if not played:
            raise DriverError(
                f"evaluation of {split}: every episode ended in an error, the first: {episodes[0].error}"
            )
        by_kind: dict[str, list[bool]] = {}
        for task, episode in played:
            by_kind.setdefault(str(task.payload.get("kind", "all")), []).append(episode.outcome == "success")
        return Evaluation(
            split,
            greedy,
            success=sum(map(sum, by_kind.values())) / len(played),
            questions=len(played),
            errors=len(episodes) - len(played),
            seconds=time.monotonic() - started,
            by_kind={kind: sum(wins) / len(wins) for kind, wins in sorted(by_kind.items())},
        )


@asynccontextmanager
async def open_driver(recipe: Recipe, engine_urls: list[str], token: str) -> AsyncIterator[Driver]:
    """A driver connected to the engines."""
    chat = ChatTokens.from_pretrained(recipe.model.path)
    acting = recipe.environment
    source = make_task_source(acting.name, max_turns=acting.max_turns, **acting.settings)
    rollout = recipe.rollout
    settings = RolloutSettings(
        sampling=Sampling(temperature=rollout.temperature, stop_token_ids=(chat.end_of_turn,)),
        limits=Limits(recipe.environment.max_turns, rollout.max_turn_tokens, rollout.max_episode_tokens),
        run_seed=recipe.run.seed,
        concurrency=rollout.concurrency,
        request_timeout=recipe.limits.rollout_timeout,
    )
    # An environment that asks a service must not hold up the other episodes while it waits.
    executor = ThreadPoolExecutor(64) if recipe.environment.settings.get("search_url") else None
    async with Rollout(Fleet(engine_urls), token, chat, source.make, settings, executor) as connected:
        yield Driver(recipe, source, connected, chat.end_of_turn)


def application(recipe: Recipe, engine_urls: list[str], token: str) -> Any:
    """The driver as an ASGI application; every route wants the run's token."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_driver(recipe, engine_urls, token) as driver:
            app.state.driver = driver
            yield

    async def collect(request: Request) -> Response:
        data = await request.app.state.driver.collect(int(request.path_params["step"]))
        return Response(data, media_type="application/octet-stream")

    async def evaluate(request: Request) -> Response:
        asked = await request.json()
        result = await request.app.state.driver.evaluate(asked["split"], bool(asked["greedy"]))
        return JSONResponse(result.to_json())

    async def health(_: Request) -> Response:
        return JSONResponse({"healthy": True})

    async def explain(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=500)

    return Starlette(
        routes=[
            Route("/rollout/{step:int}", collect, methods=["POST"]),
            Route("/evaluate", evaluate, methods=["POST"]),
            Route("/health", health),
        ],
        middleware=[Middleware(TokenMiddleware, token=token)],
        exception_handlers={DriverError: explain},
        lifespan=lifespan,
    )


def main() -> None:
    import uvicorn

    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m megatron_empg.trainer.driver")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", action="append", required=True, help="URL of an engine; repeat for each")
    arguments = parser.parse_args()
    app = application(load_recipe(arguments.recipe), arguments.engine, token_from_environment())
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_keep_alive=600)


if __name__ == "__main__":
    main()
