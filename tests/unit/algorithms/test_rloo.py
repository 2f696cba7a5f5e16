import pytest
import torch

from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.rloo import Rloo, leave_one_out
from tests.unit.algorithms.experiences import doubles, experience, random_experience


def test_a_reward_is_compared_with_the_mean_of_the_others() -> None:
    # 3 against (0 + 1) / 2, 0 against (3 + 1) / 2, 1 against (3 + 0) / 2.
    batch = experience(rewards=[[1.0, 2.0], [0.0], [1.0]])
    advantages = Rloo().advantages(batch, [])
    torch.testing.assert_close(advantages.episodes, doubles([2.5, -2.0, -0.5]))
    torch.testing.assert_close(advantages.turns, doubles([2.5, 2.5, -2.0, -0.5]))


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_those_of_a_loop_over_the_others(seed: int) -> None:
    batch = random_experience(seed)
    rewards, groups = batch.rewards.tolist(), batch.groups.tolist()
    expected = []
    for episode, group in enumerate(groups):
        others = [r for i, r in enumerate(rewards) if groups[i] == group and i != episode]
        expected.append(rewards[episode] - (sum(others) / len(others) if others else 0.0))
    torch.testing.assert_close(leave_one_out(batch.rewards, batch.groups), doubles(expected))


def test_a_lone_episode_is_compared_with_nothing() -> None:
    assert leave_one_out(torch.tensor([0.75, 1.0, 1.0]), torch.tensor([3, 1, 1])).tolist() == [0.75, 0.0, 0.0]


def test_equal_rewards_give_exactly_zero() -> None:
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    assert leave_one_out(rewards, torch.zeros(3, dtype=torch.long)).tolist() == [0.0, 0.0, 0.0]


def test_nothing_gives_nothing() -> None:
    assert Rloo().advantages(experience(rewards=[]), []).turns.shape == (0,)


def test_a_reward_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"rewards\[1\] is inf"):
        leave_one_out(torch.tensor([0.0, float("inf")]), torch.tensor([0, 0]))


def test_tokens_are_clipped_one_by_one() -> None:
    clip = Rloo(clip_high=0.3).surrogate()
    assert isinstance(clip, TokenClip)
    assert (clip.clip_low, clip.clip_high) == (0.2, 0.3)
