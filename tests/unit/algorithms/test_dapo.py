import pytest
import torch

from megatron_empg.algorithms.dapo import informative_groups, overlong_penalty


def test_groups_of_equal_rewards_are_dropped() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.3])
    groups = torch.tensor([9, 9, 4, 4, 1, 1, 6])
    assert informative_groups(rewards, groups).tolist() == [True, True, False, False, False, False, False]


def test_episodes_of_a_group_may_lie_apart() -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 0.5, 1.0]), torch.tensor([0, 1, 0, 1])
    assert informative_groups(rewards, groups).tolist() == [True, False, True, False]


def test_overlong_penalty_by_hand() -> None:
    lengths = torch.tensor([0, 60, 70, 100, 150])
    penalties = overlong_penalty(lengths, max_length=100, buffer=40, penalty=2.0)
    torch.testing.assert_close(penalties, torch.tensor([0.0, 0.0, -0.5, -2.0, -2.0]))


def test_a_buffer_longer_than_the_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer is 200 tokens"):
        overlong_penalty(torch.tensor([1]), max_length=100, buffer=200)
