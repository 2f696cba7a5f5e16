from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from megatron_empg.algorithms.dapo import Dapo, informative_groups, overlong_penalty
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.policy_loss import TokenClip
from tests.unit.algorithms.experiences import doubles, experience, random_experience


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
    torch.testing.assert_close(penalties, doubles([0.0, 0.0, -0.5, -2.0, -2.0]))


@pytest.mark.parametrize("section", [Grpo, Dapo])
def test_a_dual_clip_is_off_unless_given_and_above_1(section: type[Grpo] | type[Dapo]) -> None:
    for bound in (None, 3.0):
        clip = section(dual_clip=bound).surrogate()
        assert isinstance(clip, TokenClip)
        assert clip.dual_clip == bound
    assert section().dual_clip is None
    with pytest.raises(ValidationError, match="dual_clip"):
        section(dual_clip=1.0)


def test_a_buffer_longer_than_the_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer is 200 tokens"):
        overlong_penalty(torch.tensor([1]), max_length=100, buffer=200)


def test_the_clip_has_more_room_upwards_and_groups_that_teach_nothing_are_asked_for_again() -> None:
    section = Dapo()
    clip = section.surrogate()
    assert isinstance(clip, TokenClip)
    assert (clip.clip_low, clip.clip_high) == (0.2, 0.28)
    assert section.generation_rounds == 10
    assert section.asked_by_wanted == 1.0
    assert Dapo(max_generation_rounds=3, oversampling=1.5).generation_rounds == 3
    assert Dapo(max_generation_rounds=3, oversampling=1.5).asked_by_wanted == 1.5


def test_a_group_is_kept_whose_rewards_differ() -> None:
    section = Dapo()
    assert section.keeps(torch.tensor([0.0, 0.0, 0.1]))
    assert not section.keeps(torch.tensor([0.1, 0.1, 0.1]))
    assert not section.keeps(torch.tensor([1.0]))


def test_advantages_are_those_of_grpo() -> None:
    batch = random_experience(3)
    dapo = Dapo(normalize_std=False).advantages(batch, [])
    grpo = Grpo(normalize_std=False).advantages(batch, [])
    assert torch.equal(dapo.turns, grpo.turns)
    assert torch.equal(dapo.episodes, grpo.episodes)


def test_without_a_buffer_rewards_stay_what_they_are() -> None:
    batch = experience(rewards=[[1.0], [0.0]], lengths=[[500], [5]])
    assert Dapo().shaped_rewards(batch) is batch.rewards


def test_the_own_tokens_of_an_episode_are_what_is_too_long() -> None:
    # Own tokens 6, 8, 12 against a penalty that grows from 0 at 6 to 0.5 at 10; prompts and observations are free.
    batch = experience(rewards=[[0.0, 1.0], [1.0], [0.0, 0.0, 1.0]], lengths=[[1, 5], [8], [4, 4, 4]])
    section = Dapo(overlong={"buffer": 4, "max_length": 10, "penalty": 0.5})
    torch.testing.assert_close(section.shaped_rewards(batch), doubles([1.0, 0.75, 0.5]))


def test_a_shaped_group_has_advantages_though_its_rewards_were_equal() -> None:
    batch = experience(rewards=[[1.0], [1.0]], lengths=[[1], [10]])
    section = Dapo(overlong={"buffer": 5, "max_length": 10}, normalize_std=False)
    shaped = replace(batch, rewards=section.shaped_rewards(batch))
    assert section.advantages(shaped, []).turns.tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"overlong": {"buffer": 4}}, "overlong.buffer is 4 and overlong.max_length, below which it lies"),
        ({"overlong": {"buffer": 11, "max_length": 10}}, "overlong.buffer is 11 own tokens, more than"),
        ({"oversampling": 0.5}, "greater than or equal to 1"),
        ({"max_generation_rounds": 0}, "greater than or equal to 1"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Dapo(**keys)
