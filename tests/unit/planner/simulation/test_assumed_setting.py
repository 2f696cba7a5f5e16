"""A recipe's setting by the planner's assumptions, and what the simulation makes of it."""

import random
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.common.gpus import GPUS
from megatron_empg.planner.assumptions import PLANNED, Assumptions
from megatron_empg.planner.engines import engine_memory
from megatron_empg.planner.search import GIB
from megatron_empg.planner.shape import shape_of
from megatron_empg.planner.simulation.assumed import Machine, assumed_setting, assumed_workload
from megatron_empg.planner.simulation.choice import HEADROOM, splits
from megatron_empg.planner.simulation.loop import simulate
from megatron_empg.planner.simulation.sensitivity import SHARES, gains
from megatron_empg.planner.simulation.workload import mean_tokens
from megatron_empg.planner.timing import step_time
from megatron_empg.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[4]


def shipped(*overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes/deepsearch_32b.yaml", list(overrides))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(shape_of(Path("models/Qwen2.5-32B-Instruct")).config, GPUS["H100"], 79 * GIB)


def test_episodes_are_as_long_as_the_planner_takes_them_to_be() -> None:
    workload, numbers = assumed_workload(shipped(), PLANNED), random.Random(0)
    drawn = workload.draw_group(numbers, 2000)
    assert max(plan.own_tokens for plan in drawn) == 24 * 1024
    assert max(plan.tokens for plan in drawn) == pytest.approx(32768, rel=0.001)
    assert mean_tokens(workload) == pytest.approx(0.5 * 32768, rel=0.03)
    assert sum(plan.own_tokens for plan in drawn) / 2000 == pytest.approx(0.5 * 24 * 1024, rel=0.03)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.65])
def test_another_share_is_another_mean_of_the_same_longest_episode(share: float) -> None:
    workload = assumed_workload(shipped(), Assumptions(episode_share=share))
    assert mean_tokens(workload) == pytest.approx(share * 32768, rel=0.04)


def test_where_turns_are_samples_each_reads_a_prompt_of_its_own() -> None:
    workload = assumed_workload(shipped("rollout.history=strip", "environment.max_turns=20"), PLANNED)
    assert workload.anew
    assert workload.turn.read + workload.turn.own == pytest.approx(0.5 * 32768, rel=0.001)


def test_train_and_sync_are_the_plans(machine: Machine) -> None:
    recipe = shipped()
    memory = engine_memory(recipe, machine.config, machine.gpu_memory)
    planned = step_time(recipe, machine.config, memory, machine.gpu)
    outcome = simulate(assumed_setting(recipe, machine), steps=6)
    assert outcome.worked_seconds == pytest.approx(planned.score + planned.update + planned.sync, rel=0.03)
    # The plan holds every pass to a full batch until the longest episode is over; here the batch thins out.
    assert 0.7 * planned.rollout < outcome.waited_seconds < planned.rollout


def test_engines_that_are_always_full_decode_at_the_plans_speed(machine: Machine) -> None:
    """So many episodes that the longest does not matter: the rollout is the plan's, but for its shares of time."""
    recipe = shipped("rollout.groups=256")
    memory = engine_memory(recipe, machine.config, machine.gpu_memory)
    planned = step_time(recipe, machine.config, memory, machine.gpu)
    outcome = simulate(assumed_setting(recipe, machine), steps=2, warm_up=1)
    assert outcome.waited_seconds == pytest.approx(planned.rollout, rel=0.2)


def test_an_assumption_changes_what_it_is_about(machine: Machine) -> None:
    plain, recipe = assumed_setting(shipped(), machine), shipped()
    slower = assumed_setting(recipe, machine, Assumptions(mfu=0.2))
    assert slower.train_token_seconds > 1.5 * plain.train_token_seconds
    assert slower.rates == plain.rates
    narrow = assumed_setting(recipe, machine, Assumptions(decode_bandwidth=0.3))
    assert narrow.rates.weights_seconds == pytest.approx(2 * plain.rates.weights_seconds)
    assert narrow.rates.context_seconds == pytest.approx(2 * plain.rates.context_seconds)
    small = assumed_setting(recipe, machine, Assumptions(engine_workspace=20 * GIB))
    assert small.cache_tokens < plain.cache_tokens
    assert assumed_setting(recipe, machine, Assumptions(sync_seconds=9.2)).sync_seconds == pytest.approx(
        plain.sync_seconds + 7
    )


def test_every_assumption_is_varied_and_no_share_is_above_1(machine: Machine) -> None:
    lagged: Any = assumed_setting(shipped(), machine, max_lag=1, concurrency=512, slots=512)
    found = list(gains(shipped("rollout.groups=2"), machine, lagged, steps=2))
    assert [gain.assumption for gain in found[1::2]] == list(vars(PLANNED))
    assert [gain.assumption for gain in found[2::2]] == list(vars(PLANNED))
    assert all(gain.value <= 1 for gain in found if gain.assumption in SHARES)
    assert all(gain.gain > 1 for gain in found)


def test_a_split_takes_all_nodes_and_leaves_room_on_each_gpu(machine: Machine) -> None:
    found = {split.trainer_nodes: split for split in splits(shipped(), machine, 64)}
    assert 4 in found
    assert 1 not in found, "32B with its optimizer does not fit eight GPUs"
    for nodes, split in found.items():
        assert split.actor.world_size == 8 * nodes
        assert split.engines * 4 == 64 - 8 * nodes
        assert split.recipe.engines.count == split.engines
    assert HEADROOM == 5 * GIB
