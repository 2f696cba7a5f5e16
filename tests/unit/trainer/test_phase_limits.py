"""No phase may take longer than it is allowed by the limits of what it is made of; ranks wait longer than all."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_empg.cluster.watchdog import Watchdog
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.run.heartbeat import PHASE_LIMIT, Beat
from megatron_empg.trainer.loop import Training
from megatron_empg.trainer.phase_limits import collective_timeout, driver_timeout, phase_limits
from megatron_empg.trainer.phases import Phases
from tests.support.recipes import least

SECONDS = st.integers(1, 20_000)


def recipe(**limits: Any) -> Recipe:
    return least(rollout={"groups": 16}, evaluation={"questions": 4}, limits=limits)


@given(SECONDS, SECONDS, st.none() | SECONDS, SECONDS)
def test_every_phase_may_take_what_its_parts_may(batch: int, sync: int, phase: int | None, start: int) -> None:
    try:
        settings = recipe(rollout_timeout=batch, sync_timeout=sync, phase_timeout=phase)
    except RecipeError:
        return  # waits that do not lie inside each other
    settings.engines.start_timeout = start
    limits, asked = phase_limits(settings), driver_timeout(settings)
    assert settings.waits.batch < asked < limits["rollout"]  # a batch, asked for over HTTP
    assert asked < limits["evaluate"]  # one pass
    assert settings.waits.batch + settings.waits.sync < limits["sync"]  # it waits for an engine, then sends
    assert start + settings.waits.sync < limits["start"]  # engines start, and the trainer joins them
    assert all(limit < collective_timeout(settings) for limit in limits.values())
    longest = max(PHASE_LIMIT, settings.waits.phase + settings.waits.sync, limits["start"])
    assert all(limit <= longest for limit in limits.values())


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_wait_longer_for_each_other_than_a_phase_takes(path: Path) -> None:
    kind: Any = SftRecipe if "\nsft:" in path.read_text(encoding="utf-8") else Recipe
    settings = load_recipe(path, kind=kind)
    limits = {"update": PHASE_LIMIT} | phase_limits(settings)
    assert collective_timeout(settings) > max(limits.values())


def test_a_supervised_start_may_take_as_long_as_its_checkpoint_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = sorted(Path("recipes").glob("*.yaml"))
    shipped = next(path for path in recipes if "\nsft:" in path.read_text(encoding="utf-8"))
    settings = load_recipe(shipped, [f"run.folder={tmp_path}"], SftRecipe)
    assert phase_limits(settings) == {"start": PHASE_LIMIT}
    monkeypatch.setattr("megatron_empg.trainer.phase_limits.reading_seconds", lambda folder: 2000.0)
    assert phase_limits(settings) == {"start": PHASE_LIMIT + 2000.0}
    assert collective_timeout(settings) > PHASE_LIMIT + 2000.0


class Clock:
    """Two ranks in an evaluation, as the watchdog sees them: rank 0 asks the driver, rank 1 waits for it."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.limits, self.watchdog, self.verdicts = limits, Watchdog(silence=1e9), []
        self.now, self.phase, self.collectives, self.step = 0.0, "start", 0, 0

    def enter(self, phase: str) -> None:
        self.phase = phase

    def agree(self, flag: bool) -> bool:
        self.collectives += 1
        self.look()
        return flag

    def look(self) -> None:
        limit = self.limits.get(self.phase, PHASE_LIMIT)
        beats = [
            Beat(rank, "node", rank, int(self.now), 0, self.phase, self.collectives + rank, "x", limit)
            for rank in (0, 1)
        ]
        self.watchdog.read(beats, self.now)
        self.verdicts += self.watchdog.verdict(self.now)


class SlowDriver:
    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def evaluate(self, split: str, greedy: bool) -> Evaluation:
        for _ in range(50):
            self.clock.now += self.seconds / 50
            self.clock.look()
        return Evaluation(split, greedy, success=0.5, questions=4, errors=0, seconds=self.seconds)


@pytest.mark.parametrize(("share", "hangs"), [(0.99, False), (1.2, True)])
def test_an_evaluation_of_slow_passes_is_not_hanging_and_a_pass_that_hangs_is(
    share: float, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe()
    clock: Any = Clock(phase_limits(settings))
    monkeypatch.setattr(Training, "_agree", lambda training, flag: clock.agree(flag))
    training: Any = object.__new__(Training)
    training.recipe, training.phases = settings, Phases(clock)
    training.folder = None  # the stand-in notes no question
    training.driver = SlowDriver(clock, share * driver_timeout(settings))
    metrics = training._evaluate(0)
    assert bool(clock.verdicts) == hangs
    assert clock.collectives == 4  # one after each of two splits, sampled and greedily
    assert {f"eval/{split}/{how}" for split in ("test_id", "test_ood") for how in ("sampled", "greedy")} < {
        *metrics
    }


def test_without_questions_nothing_is_evaluated() -> None:
    settings = recipe()
    settings.evaluation.questions = 0
    training: Any = object.__new__(Training)
    training.recipe, training.phases, training.driver = settings, Phases(None), None
    assert training._evaluate(0) == {}
