"""What a turn earned, and what came of it."""

from dataclasses import replace

import pytest
import torch

from megatron_empg.algorithms.returns import discounted_returns, is_last_turn, turn_rewards_in_force
from tests.unit.algorithms.experiences import doubles, experience, random_experience


def test_a_return_is_what_is_still_to_come_discounted_for_each_turn() -> None:
    # First episode: 4 + 0.5·2 + 0.25·8, then 2 + 0.5·8, then 8; the second keeps to itself.
    returns = discounted_returns(doubles([4.0, 2.0, 8.0, 1.0]), torch.tensor([0, 0, 0, 1]), 0.5)
    assert returns.tolist() == [7.0, 6.0, 8.0, 1.0]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_returns_are_those_of_a_loop_from_the_end(gamma: float, seed: int) -> None:
    batch = random_experience(seed)
    expected = []
    following = 0.0
    for turn in reversed(range(len(batch.turn_rewards))):
        if is_last_turn(batch.episode_of_turn)[turn]:
            following = 0.0
        following = batch.turn_rewards[turn].item() + gamma * following
        expected.append(following)
    returns = discounted_returns(batch.turn_rewards, batch.episode_of_turn, gamma)
    torch.testing.assert_close(returns, doubles(expected[::-1]), rtol=1e-12, atol=1e-12)


def test_equal_futures_have_equal_returns_bit_for_bit_whatever_came_before() -> None:
    future = [0.1, 0.0, 0.7, 0.0, 0.3]
    batch = experience(rewards=[[0.2, 0.9, *future], future, [5.0, *future]])
    returns = discounted_returns(batch.turn_rewards, batch.episode_of_turn, 0.95).tolist()
    assert returns[2:7] == returns[7:12] == returns[13:18]


def test_nothing_has_no_returns() -> None:
    assert discounted_returns(torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.9).shape == (0,)


def test_the_last_turn_takes_what_a_shaping_changed() -> None:
    batch = experience(rewards=[[0.25, 0.5], [1.0]])
    shaped = replace(batch, rewards=doubles([0.25, 1.0]))
    assert turn_rewards_in_force(batch).tolist() == [0.25, 0.5, 1.0]
    assert turn_rewards_in_force(shaped).tolist() == [0.25, 0.0, 1.0]


def test_an_episodes_reward_is_its_last_turns_where_no_turn_earned_one() -> None:
    batch = replace(experience(rewards=[[0.0, 0.0], [0.0]]), rewards=torch.tensor([1.0, -0.5]))
    assert turn_rewards_in_force(batch).tolist() == [0.0, 1.0, -0.5]


def test_the_rounding_of_a_sum_is_not_a_shaping() -> None:
    earned = torch.tensor([0.1, 0.2, 0.7])
    batch = replace(experience(rewards=[[0.0, 0.0, 0.0]]), turn_rewards=earned, rewards=earned.sum().reshape(1))
    assert turn_rewards_in_force(batch).tolist() == earned.double().tolist()


def test_a_reward_that_is_no_number_is_named() -> None:
    batch = experience(rewards=[[0.0, 0.0], [1.0]])
    with pytest.raises(ValueError, match=r"turn_rewards\[1\] is nan; every reward must be finite"):
        turn_rewards_in_force(replace(batch, turn_rewards=doubles([0.0, float("nan"), 1.0])))
    with pytest.raises(ValueError, match=r"rewards\[0\] is inf"):
        turn_rewards_in_force(replace(batch, rewards=doubles([float("inf"), 1.0])))
