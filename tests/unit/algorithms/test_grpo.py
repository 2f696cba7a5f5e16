from dataclasses import replace

import pytest
import torch

from megatron_empg.algorithms.grpo import Grpo, group_advantages
from megatron_empg.algorithms.policy_loss import TokenClip
from tests.unit.algorithms.experiences import doubles, experience


def test_two_groups_by_hand() -> None:
    # Group 7: rewards 1, 0, 0, 1; mean 0.5, unbiased std sqrt(1/3). Group 2: 2, 5; mean 3.5, std sqrt(4.5).
    rewards = torch.tensor([1.0, 2.0, 0.0, 0.0, 5.0, 1.0], dtype=torch.float64)
    groups = torch.tensor([7, 2, 7, 7, 2, 7])
    high, low = 0.5 / (3**-0.5 + 1e-6), -1.5 / (4.5**0.5 + 1e-6)
    expected = torch.tensor([high, low, -high, -high, -low, high], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, groups), expected, rtol=1e-14, atol=0)


def test_without_std_is_the_deviation_from_the_mean() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 0])
    advantages = group_advantages(rewards, groups, normalize_std=False)
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]


def test_equal_rewards_give_exactly_zero() -> None:
    advantages = group_advantages(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3, 3, 3]))
    assert advantages.tolist() == [0.0, 0.0, 0.0]


def test_a_single_episode_has_mean_zero_and_std_one() -> None:
    advantages = group_advantages(torch.tensor([1.0], dtype=torch.float64), torch.tensor([5]), eps=1e-6)
    assert advantages.item() == pytest.approx(1 / (1 + 1e-6), rel=1e-14)


def test_a_group_is_normalised_over_its_own_members() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 9.0]), torch.tensor([0, 0, 0, 1])
    torch.testing.assert_close(group_advantages(rewards, groups)[:3], group_advantages(rewards[:3], groups[:3]))


def test_nothing_gives_nothing() -> None:
    empty = group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert empty.shape == (0,)


@pytest.mark.parametrize(
    ("rewards", "groups", "named"),
    [
        (torch.zeros(3), torch.zeros(2, dtype=torch.long), "rewards have shape"),
        (torch.tensor([0.0, float("nan")]), torch.zeros(2, dtype=torch.long), r"rewards\[1\] is nan"),
        (torch.zeros(2), torch.zeros(2), "named by an integer"),
    ],
)
def test_bad_input_is_named(rewards: torch.Tensor, groups: torch.Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        group_advantages(rewards, groups)


def test_equal_rewards_give_exactly_zero_whatever_their_last_bit() -> None:
    # The mean of three times 0.1 is not 0.1 in float64, and 1e-17 / (1e-17 + 1e-6) is not 0.
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    assert group_advantages(rewards, torch.tensor([0, 0, 0])).tolist() == [0.0, 0.0, 0.0]


def test_every_turn_has_its_episodes_advantage_in_float64() -> None:
    batch = experience(rewards=[[0.0, 1.0], [0.0], [0.0, 0.0, 0.0]], groups=[4, 4, 4])
    advantages = Grpo(normalize_std=False).advantages(batch, [])
    torch.testing.assert_close(advantages.episodes, doubles([2 / 3, -1 / 3, -1 / 3]))
    torch.testing.assert_close(advantages.turns, doubles([2 / 3, 2 / 3, -1 / 3, -1 / 3, -1 / 3, -1 / 3]))


def test_the_standard_deviation_divides_by_default_as_in_the_paper() -> None:
    batch = experience(rewards=[[1.0], [0.0]])
    expected = 0.5 / (0.5**0.5 + 1e-6)
    torch.testing.assert_close(Grpo().advantages(batch, []).turns, doubles([expected, -expected]))


def test_single_precision_rewards_are_compared_in_double() -> None:
    batch = replace(experience(rewards=[[0.0], [0.0]]), rewards=torch.tensor([1e8, 1e8 + 8]))
    assert Grpo(normalize_std=False).advantages(batch, []).turns.tolist() == [-4.0, 4.0]


def test_an_empty_batch_has_no_advantages() -> None:
    advantages = Grpo().advantages(experience(rewards=[]), [])
    assert advantages.episodes.shape == (0,)
    assert advantages.turns.shape == (0,)


def test_all_groups_train_and_the_clip_is_that_of_the_keys() -> None:
    section = Grpo(clip_low=0.1, clip_high=0.3)
    assert section.keeps(torch.tensor([1.0, 1.0]))
    assert section.generation_rounds == 1
    assert section.mean == "token"
    clip = section.surrogate()
    assert isinstance(clip, TokenClip)
    assert (clip.clip_low, clip.clip_high, clip.dual_clip) == (0.1, 0.3, None)
