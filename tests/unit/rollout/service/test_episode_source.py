"""Where a run's episodes come from, and how the waits around them nest."""

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest

from megatron_empg.environments.base import Opening, Task, TaskSource
from megatron_empg.environments.workers.errors import WorkerTimeout
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.episode_source import EpisodeSource, open_episode_source
from megatron_empg.run.metric_names import find
from tests.support.recipes import quickstart

ROOT = Path(__file__).resolve().parents[4]
HANGS = f"{__name__}:Hangs"


class Hangs(TaskSource):
    """An environment in a worker process whose steps say something and never end."""

    isolation = "process"
    worker_memory_gib = 0.25

    def tasks(self, split: str) -> Any:
        return [Task("t", [{"role": "user", "content": "do"}], {})]

    def make(self, task: Any) -> Any:
        return HangingEpisode()


class HangingEpisode:
    async def reset(self) -> Any:
        return Opening()

    async def step(self, action: str) -> Any:
        print("about to hang")
        await asyncio.sleep(600)

    async def close(self) -> None:
        pass


def of(environment: str, *overrides: str) -> Recipe:
    whole = quickstart(f"environment.name={environment}", *overrides)
    return whole.model_copy(update={"environment": whole.environment.model_copy(update={"settings": {}})})


def test_a_step_is_over_before_the_wait_around_it() -> None:
    wanted = quickstart("limits.environment_timeout=20", "environment.max_turns=5")
    source = wanted.task_source()
    assert source.limits.max_turns == 5
    assert source.limits.step_timeout == pytest.approx(18.0)


class Counts(TaskSource):
    """An environment that counts what it was told to."""

    counted: ClassVar[dict[str, Any]] = {}

    def tasks(self, split: str) -> Any:
        return []

    def make(self, task: Any) -> Any:
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        return self.counted


async def metrics_of(environment: str) -> dict[str, float]:
    async with open_episode_source(of(environment).service_config()) as source:
        return source.metrics()


COUNTS = f"{__name__}:Counts"


@pytest.mark.parametrize("name", ["environment/kitchens", "environment/rooms/cold.1", "judge/requests"])
def test_what_an_environment_counts_is_a_metric(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Counts, "counted", {name: 3.0})
    assert asyncio.run(metrics_of(COUNTS)) == {name: 3.0}
    assert find(name) is not None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("train/reward", 1.0, "'environment/train/reward'"),
        ("rollout/environment_workers", 1.0, "not an environment's name"),
        ("step", 1.0, "'environment/step'"),
        ("environment/", 1.0, "not an environment's name"),
        ("environment/a b", 1.0, "not an environment's name"),
        ("judge/verdict", 1.0, "which no judge writes"),
        (7, 1.0, "not an environment's name"),
        ("environment/rooms", float("nan"), "must be a finite number"),
        ("environment/rooms", "many", "must be a finite number"),
    ],
)
def test_what_an_environment_counts_has_names_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: Any, value: Any, reason: str
) -> None:
    monkeypatch.setattr(Counts, "counted", {name: value})
    with pytest.raises(ValueError, match=reason):
        asyncio.run(metrics_of(COUNTS))


def test_a_worker_that_hangs_is_counted_and_shows_what_it_wrote() -> None:
    wanted = of(HANGS, "limits.environment_timeout=2", "limits.environment_memory=0.25")

    async def step(source: EpisodeSource) -> None:
        (task,) = source.tasks.sample("train", 1, seed=0)
        episode = source.make(task)
        await episode.reset()
        async with asyncio.timeout(wanted.waits.environment):
            await episode.step("go on")

    async def counted() -> dict[str, float]:
        async with open_episode_source(wanted.service_config()) as source:
            with pytest.raises(WorkerTimeout, match="about to hang"):
                await step(source)
            return source.metrics()

    assert asyncio.run(counted())["rollout/environment_workers_died"] == 1
