"""A run that learns nothing ends, and shows an episode."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.trainer.errors import TrainingError
from megatron_empg.trainer.progress_guard import ProgressGuard
from tests.support.batches import batch_of, plain_credit
from tests.support.recipes import least


class Guarded:
    """A guard, and batches on their way to it: each gets the algorithm's credit."""

    def __init__(self, algorithm: dict[str, Any] | None = None, **limits: Any) -> None:
        recipe = least(rollout={"groups": 16}, algorithm=algorithm or {}, limits=limits)
        self.algorithm, self.progress = Algorithm(recipe.algorithm), ProgressGuard(recipe)

    def check(self, step: int, batch: Batch) -> bool:
        return self.progress.check_batch(step, batch, plain_credit(batch, self.algorithm))


def some_groups(count: int, *, rewards: list[float] | None = None, cut: int = 0, **metrics: float) -> Batch:
    """Groups of two episodes of one turn, one of which earns a reward; the first ``cut`` were cut."""
    episodes = 2 * count
    return batch_of(
        [[(1, 3)]] * episodes,
        [1.0, 0.0] * count if rewards is None else rewards,
        [number // 2 for number in range(episodes)],
        cut=torch.arange(episodes) < cut,
        metrics={f"train/{name}": value for name, value in metrics.items()},
        example="  task t7, sample 0, failure\n  turn 1 (stop): 'I give up'",
    )


def test_too_few_groups_are_not_trained_on_and_end_the_run_when_it_goes_on() -> None:
    guarded = Guarded(max_idle_steps=2)
    assert not guarded.check(0, some_groups(2))  # an eighth of 16
    for step in (1, 2):
        assert guarded.check(step, some_groups(1))
    assert not guarded.check(3, some_groups(5))
    for step in (4, 5):
        assert guarded.check(step, some_groups(0))
    with pytest.raises(TrainingError) as caught:
        guarded.check(6, some_groups(1, groups_dropped_equal=9, reward=0.0))
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


@pytest.mark.parametrize("enough", [True, False])
def test_a_rank_that_counts_otherwise_does_and_counts_what_the_first_one_says(enough: bool) -> None:
    guarded = Guarded(max_idle_steps=1)
    batch = some_groups(1 if enough else 16)
    credit = plain_credit(batch, guarded.algorithm)
    asked = []

    def first_rank(own: bool) -> bool:
        asked.append(own)
        return enough

    assert guarded.progress.check_batch(0, batch, credit, first_rank) is not enough
    assert asked == [not enough]
    assert guarded.progress.idle_steps == (0 if enough else 1)


def test_equal_rewards_in_every_group_teach_nothing() -> None:
    """Without a bonus all advantages are 0; dynamic sampling would have dropped such groups."""
    guarded = Guarded({"name": "grpo", "modulation": "none"}, max_idle_steps=1)
    equal = some_groups(16, rewards=[0.0] * 32, reward=0.0)
    unequal = some_groups(16, rewards=[1.0, *[0.0] * 31])
    assert not guarded.check(0, unequal)
    assert guarded.check(1, equal)
    assert not guarded.check(2, unequal)
    assert guarded.check(3, equal)
    with pytest.raises(TrainingError, match=r"0 groups to learn from.*the mean reward was 0"):
        guarded.check(4, equal)
    assert Guarded({"name": "grpo", "modulation": {"name": "empg", "zeta": 0.0}}).check(0, equal)


def test_a_bonus_for_some_turns_is_something_to_learn() -> None:
    """Of turns that are followed by another and such that are not: centring leaves all equal ones 0."""
    spans = [[(1, 3), (5, 6)]] * 32
    batch = batch_of(spans, [0.0] * 32, [number // 2 for number in range(32)])
    assert not Guarded({"name": "grpo", "modulation": "empg"}).check(0, batch)
    assert Guarded({"name": "grpo", "modulation": "none"}).check(0, batch)


def test_groups_that_the_masks_leave_out_teach_nothing() -> None:
    masked = Guarded({"modulation": "none", "masks": {"cut_turns": True}}, max_idle_steps=0)
    assert not masked.check(0, some_groups(16, cut=28))
    with pytest.raises(TrainingError, match=r"1 groups to learn from.*algorithm\.masks left out 60 of 64 tokens"):
        masked.check(1, some_groups(16, cut=30))
    assert not Guarded({"modulation": "none"}).check(0, some_groups(16, cut=30))


def test_groups_whose_tokens_the_correction_rejects_teach_nothing() -> None:
    """The actor's log-probs are 0 here: ratios of e where the engine's are -1."""
    logprobs = torch.zeros(64)
    logprobs[:60] = -1.0
    batch = some_groups(16)
    batch.experience = replace(batch.experience, rollout_logprobs=logprobs)
    rejecting = Guarded({"modulation": "none", "correction": "sequence_rejection"}, max_idle_steps=0)
    with pytest.raises(TrainingError, match=r"1 groups to learn from.*correction rejected 60 of 64 tokens"):
        rejecting.check(0, batch)
    assert not Guarded({"modulation": "none", "correction": "tis"}).check(0, batch)


def test_zero_idle_steps_allowed_means_none() -> None:
    with pytest.raises(TrainingError, match=r"limits\.max_idle_steps 0"):
        Guarded(max_idle_steps=0).check(0, some_groups(1))


def test_a_policy_that_no_environment_understands_ends_the_run_at_once() -> None:
    with pytest.raises(TrainingError, match=r"none of the batch's 35 turns(.|\n)*I give up"):
        Guarded().check(0, some_groups(16, malformed_actions=35, turns=35 / 32, episodes=32))
    assert not Guarded().check(0, some_groups(16, malformed_actions=34, turns=35 / 32, episodes=32))
    assert not Guarded().check(0, some_groups(16))  # nobody counted


def test_skipped_updates_in_a_row_end_the_run_also_across_steps() -> None:
    progress = Guarded(max_skipped_updates=2).progress
    progress.check_updates(0, [False, False, True, False])
    progress.check_updates(1, [False])
    with pytest.raises(TrainingError, match=r"3 optimizer steps in a row(.|\n)*limits.max_skipped_updates is 2"):
        progress.check_updates(2, [False, True])
