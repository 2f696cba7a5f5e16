from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from tests.unit.algorithms.experiences import doubles, experience, random_experience


def whitened_by_a_loop(batch: Experience, gamma: float, weights: str) -> Tensor:
    """A list of every token's (or turn's) return, whitened as a plain list."""
    returns = []
    for episode in range(len(batch.rewards)):
        rewards = batch.turn_rewards[batch.episode_of_turn == episode].tolist()
        for start in range(len(rewards)):
            returns.append(sum(gamma**k * reward for k, reward in enumerate(rewards[start:])))
    pool = []
    for value, length in zip(returns, batch.turn_lengths.tolist(), strict=True):
        pool += [value] * (length if weights == "token" else 1)
    mean = sum(pool) / len(pool)
    variance = sum((value - mean) ** 2 for value in pool) / (len(pool) - 1)
    return doubles([(value - mean) / (variance + 1e-8) ** 0.5 for value in returns])


def test_turns_are_weighed_by_their_tokens_as_in_released_code() -> None:
    # Returns 1, 1 and 0 with 1, 2 and 3 tokens: mean 1/2, unbiased variance 6·(1/4)/5.
    batch = experience(rewards=[[0.0, 1.0], [0.0]], lengths=[[1, 2], [3]], groups=[0, 1])
    expected = 0.5 / (0.3 + 1e-8) ** 0.5
    torch.testing.assert_close(ReinforcePP().advantages(batch, []).turns, doubles([expected, expected, -expected]))


def test_weighed_by_turns_long_turns_count_once() -> None:
    # Returns 1, 1 and 0: mean 2/3, unbiased variance (1/9 + 1/9 + 4/9)/2.
    batch = experience(rewards=[[0.0, 1.0], [0.0]], lengths=[[1, 2], [3]])
    std = (1 / 3 + 1e-8) ** 0.5
    expected = doubles([1 / 3 / std, 1 / 3 / std, -2 / 3 / std])
    torch.testing.assert_close(ReinforcePP(weights="turn").advantages(batch, []).turns, expected)


@pytest.mark.parametrize("weights", ["token", "turn"])
@pytest.mark.parametrize("gamma", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_advantages_are_those_of_a_loop(weights: Literal["token", "turn"], gamma: float, seed: int) -> None:
    batch = random_experience(seed)
    turns = ReinforcePP(gamma=gamma, weights=weights).advantages(batch, []).turns
    torch.testing.assert_close(turns, whitened_by_a_loop(batch, gamma, weights), rtol=1e-11, atol=1e-11)


def test_the_advantages_of_all_tokens_add_up_to_nothing() -> None:
    batch = random_experience(7)
    turns = ReinforcePP().advantages(batch, []).turns
    assert (turns * batch.turn_lengths).sum().abs().item() < 1e-9


def test_questions_are_not_told_apart() -> None:
    batch = random_experience(2)
    one_question = replace(batch, groups=torch.zeros_like(batch.groups))
    assert torch.equal(ReinforcePP().advantages(batch, []).turns, ReinforcePP().advantages(one_question, []).turns)


def test_an_episodes_own_advantage_is_that_of_its_whole_reward() -> None:
    batch = experience(rewards=[[1.0, 1.0], [0.0]], lengths=[[2, 3], [4]])
    advantages = ReinforcePP(gamma=1.0).advantages(batch, [])
    torch.testing.assert_close(advantages.episodes, advantages.turns[[0, 2]])


def test_a_shaped_reward_is_what_the_last_turn_came_to() -> None:
    batch = experience(rewards=[[0.5, 0.5], [0.0]])
    shaped = replace(batch, rewards=doubles([0.25, 0.0]))
    expected = experience(rewards=[[0.5, -0.25], [0.0]])
    torch.testing.assert_close(
        ReinforcePP().advantages(shaped, []).turns, ReinforcePP().advantages(expected, []).turns
    )


@pytest.mark.parametrize("rewards", [[[0.1], [0.1], [0.1]], [[1.0]], []])
@pytest.mark.parametrize("weights", ["token", "turn"])
def test_equal_returns_one_turn_and_no_turn_give_exactly_zero(
    rewards: list[list[float]], weights: Literal["token", "turn"]
) -> None:
    advantages = ReinforcePP(weights=weights).advantages(experience(rewards=rewards), [])
    assert advantages.turns.tolist() == [0.0] * len(rewards)
    assert advantages.episodes.tolist() == [0.0] * len(rewards)


def test_tokens_are_clipped_one_by_one() -> None:
    assert isinstance(ReinforcePP().surrogate(), TokenClip)
