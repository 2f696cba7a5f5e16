import pytest
import torch

from megatron_empg.algorithms.grpo import group_advantages, in_groups_of_at_least


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


def test_a_group_that_lost_members_is_normalised_over_the_rest() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 9.0]), torch.tensor([0, 0, 0, 1])
    kept = in_groups_of_at_least(groups)
    assert kept.tolist() == [True, True, True, False]
    torch.testing.assert_close(
        group_advantages(rewards[kept], groups[kept]), group_advantages(rewards[:3], groups[:3])
    )


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
