"""A run that learns nothing ends, and shows an episode."""

from typing import Any

import pytest
import torch

from megatron_empg.actor.packing import Sequence
from megatron_empg.recipe import parse_recipe
from megatron_empg.trainer.batch import Batch
from megatron_empg.trainer.errors import TrainingError
from megatron_empg.trainer.progress_guard import ProgressGuard


def guard(algorithm: dict[str, Any] | None = None, **limits: Any) -> ProgressGuard:
    return ProgressGuard(parse_recipe({
        "run": {"folder": "runs/x", "steps": 1},
        "model": {"path": "models/x"},
        "environment": {"name": "deep_search"},
        "rollout": {"groups": 16, "group_size": 2},
        "algorithm": algorithm or {},
        "limits": limits,
    }))  # fmt: skip


def batch_of(groups: int, **metrics: float) -> Batch:
    count = 2 * groups
    sequence = Sequence(torch.arange(3), torch.tensor([[1, 3]]), {"rollout_logprobs": torch.zeros(2)})
    example = "  task t7, sample 0, failure\n  turn 1 (stop): 'I give up'"
    named = {f"train/{name}": value for name, value in metrics.items()}
    ids = torch.arange(count) // 2
    return Batch(
        [sequence] * count, torch.zeros(count), ids, torch.zeros(count, 2), metrics=named, example=example
    )


def test_too_few_groups_are_not_trained_on_and_end_the_run_when_it_goes_on() -> None:
    progress = guard(max_idle_steps=2)
    assert not progress.check_batch(0, batch_of(2))  # an eighth of 16
    for step in (1, 2):
        assert progress.check_batch(step, batch_of(1))
    assert not progress.check_batch(3, batch_of(5))
    for step in (4, 5):
        assert progress.check_batch(step, batch_of(0))
    with pytest.raises(TrainingError) as caught:
        progress.check_batch(6, batch_of(1, groups_dropped_equal=9, reward=0.0))
    message = str(caught.value)
    for part in (
        "step 6",
        "1 groups",
        "limits.min_groups",
        "limits.max_idle_steps 2",
        "9 groups were dropped since",
    ):
        assert part in message
    assert "the mean reward was 0" in message
    assert "t7" in message
    assert "I give up" in message


def test_equal_rewards_in_every_group_teach_nothing() -> None:
    """Without a bonus all advantages are 0; dynamic sampling would have dropped such groups."""
    progress = guard({"name": "grpo", "modulation": "none"}, max_idle_steps=1)
    equal, unequal = batch_of(16, reward=0.0), batch_of(16)
    unequal.rewards[0] = 1.0
    assert not progress.check_batch(0, unequal)
    assert progress.check_batch(1, equal)
    assert not progress.check_batch(2, unequal)
    assert progress.check_batch(3, equal)
    with pytest.raises(TrainingError, match=r"0 groups to learn from.*the mean reward was 0"):
        progress.check_batch(4, equal)
    no_bonus = guard({"name": "grpo", "modulation": "empg", "empg": {"zeta": 0.0}})
    assert no_bonus.check_batch(0, equal)
    assert not guard({"name": "grpo", "modulation": "empg"}).check_batch(0, equal)


def test_zero_idle_steps_allowed_means_none() -> None:
    with pytest.raises(TrainingError, match=r"limits\.max_idle_steps 0"):
        guard(max_idle_steps=0).check_batch(0, batch_of(1))


def test_a_policy_that_no_environment_understands_ends_the_run_at_once() -> None:
    with pytest.raises(TrainingError, match=r"none of the batch's 35 turns(.|\n)*I give up"):
        guard().check_batch(0, batch_of(16, malformed_actions=35, turns=35 / 32, episodes=32))
    assert not guard().check_batch(0, batch_of(16, malformed_actions=34, turns=35 / 32, episodes=32))
    assert not guard().check_batch(0, batch_of(16))  # nobody counted


def test_skipped_updates_in_a_row_end_the_run_also_across_steps() -> None:
    progress = guard(max_skipped_updates=2)
    progress.check_updates(0, [False, False, True, False])
    progress.check_updates(1, [False])
    with pytest.raises(TrainingError, match=r"3 optimizer steps in a row(.|\n)*limits.max_skipped_updates is 2"):
        progress.check_updates(2, [False, True])
