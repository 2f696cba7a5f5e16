import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms import gigpo
from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.gigpo import Gigpo, step_groups
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.policy_loss import TokenClip
from tests.unit.algorithms.experiences import doubles, experience, random_experience


@pytest.fixture(autouse=True)
def nothing_was_said_yet() -> Iterator[None]:
    gigpo._warn_once.cache_clear()
    yield
    gigpo._warn_once.cache_clear()


def by_a_loop(batch: Experience, *, omega: float, gamma: float, normalize_std: bool, eps: float = 1e-6) -> Tensor:
    """The paper's equations, turn by turn, with a dict of states."""
    visits: dict[tuple[int, int], list[float]] = {}
    keys, returns = [], []
    for episode in range(len(batch.rewards)):
        turns = (batch.episode_of_turn == episode).nonzero().flatten().tolist()
        for place, turn in enumerate(turns):
            to_come = [gamma**k * batch.turn_rewards[t].item() for k, t in enumerate(turns[place:])]
            keys.append((batch.groups[episode].item(), batch.anchors[turn].item()))
            returns.append(sum(to_come))
            visits.setdefault(keys[-1], []).append(returns[-1])
    outcome = Grpo(normalize_std=normalize_std).advantages(batch, []).turns
    expected = []
    for turn, (key, value) in enumerate(zip(keys, returns, strict=True)):
        pool = visits[key]
        mean = sum(pool) / len(pool)
        std = (sum((other - mean) ** 2 for other in pool) / max(1, len(pool) - 1)) ** 0.5
        step = (value - mean) / (std + eps) if normalize_std else value - mean
        expected.append(outcome[turn].item() + omega * step)
    return doubles(expected)


def test_a_turn_is_compared_with_those_that_acted_in_its_state() -> None:
    # Both episodes begin in state 7. The first goes by 8 and earns 1 at its end, the second earns nothing. With
    # gamma 0.5 state 7 was worth 0.5 and 0, hence 0.25 and -0.25; states 8 and 9 were met once. Outcomes: ±0.5.
    batch = experience(rewards=[[0.0, 1.0], [0.0, 0.0]], anchors=[[7, 8], [7, 9]])
    advantages = Gigpo(gamma=0.5, omega=2.0, normalize_std=False).advantages(batch, [])
    torch.testing.assert_close(advantages.turns, doubles([1.0, 0.5, -1.0, -0.5]))
    torch.testing.assert_close(advantages.episodes, doubles([0.5, -0.5]))


def test_the_same_state_in_another_question_is_another_state() -> None:
    batch = experience(rewards=[[1.0], [0.0], [5.0], [3.0]], groups=[0, 1, 0, 1], anchors=[[7], [7], [7], [7]])
    assert step_groups(batch).index.tolist() == [0, 1, 0, 1]
    turns = Gigpo(normalize_std=False).advantages(batch, []).turns
    torch.testing.assert_close(turns, doubles([-4.0, -3.0, 4.0, 3.0]))


def test_a_state_met_twice_in_one_episode_is_compared_too() -> None:
    batch = experience(rewards=[[0.0, 0.0, 1.0]], anchors=[[7, 8, 7]])
    turns = Gigpo(gamma=0.5, normalize_std=False).advantages(batch, []).turns
    # A lone episode's own advantage is its reward; state 7 was worth 0.25 and 1.
    torch.testing.assert_close(turns, doubles([1 - 0.375, 1.0, 1 + 0.375]))


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_advantages_are_those_of_a_loop_over_states(seed: int, normalize_std: bool) -> None:
    batch = random_experience(seed)
    section = Gigpo(omega=0.7, gamma=0.9, normalize_std=normalize_std)
    expected = by_a_loop(batch, omega=0.7, gamma=0.9, normalize_std=normalize_std)
    torch.testing.assert_close(section.advantages(batch, []).turns, expected, rtol=1e-9, atol=1e-9)


def test_states_may_have_any_number_for_a_name() -> None:
    batch = random_experience(5)
    names = torch.tensor([-(2**63), 2**63 - 1, 0, -1])
    renamed = replace(batch, anchors=names[batch.anchors])
    torch.testing.assert_close(Gigpo().advantages(renamed, []).turns, Gigpo().advantages(batch, []).turns)


def test_where_no_state_repeats_the_episodes_advantage_is_all() -> None:
    batch = random_experience(6)
    apart = replace(batch, anchors=torch.arange(len(batch.anchors)))
    assert torch.equal(Gigpo().advantages(apart, []).turns, Grpo().advantages(apart, []).turns)


def test_turns_of_equal_worth_in_a_state_get_nothing_at_all() -> None:
    batch = experience(rewards=[[0.1], [0.1], [0.1]], anchors=[[7], [7], [7]])
    assert Gigpo().advantages(batch, []).turns.tolist() == [0.0, 0.0, 0.0]


def test_a_shaped_reward_counts_at_the_last_turn() -> None:
    batch = experience(rewards=[[0.0, 1.0], [0.0, 1.0]], anchors=[[7, 8], [7, 8]])
    shaped = replace(batch, rewards=doubles([0.5, 1.0]))
    turns = Gigpo(gamma=0.5, normalize_std=False).advantages(shaped, []).turns
    torch.testing.assert_close(turns, doubles([-0.25 - 0.125, -0.5, 0.25 + 0.125, 0.5]))


def test_nothing_gives_nothing_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    advantages = Gigpo().advantages(experience(rewards=[]), [])
    assert advantages.turns.shape == (0,)
    assert advantages.episodes.shape == (0,)
    assert not caplog.records


def test_that_no_state_repeats_is_said_once_and_by_name(caplog: pytest.LogCaptureFixture) -> None:
    batch = experience(rewards=[[0.0, 1.0], [0.0, 0.0]])
    with caplog.at_level(logging.WARNING):
        Gigpo().advantages(batch, [])
        Gigpo().advantages(batch, [])
    assert len(caplog.records) == 1
    assert "gigpo: no state beyond the first one of each question was met twice" in caplog.text


def test_the_prompt_that_all_episodes_begin_with_is_no_repeated_state(caplog: pytest.LogCaptureFixture) -> None:
    first_alone = experience(rewards=[[0.0, 1.0], [0.0, 0.0]], anchors=[[7, 8], [7, 9]])
    come_back = experience(rewards=[[0.0, 1.0], [0.0, 0.0]], anchors=[[7, 8], [7, 8]])
    with caplog.at_level(logging.WARNING):
        Gigpo().advantages(come_back, [])
        assert not caplog.records
        Gigpo().advantages(first_alone, [])
    assert len(caplog.records) == 1


def test_a_hundred_thousand_turns_take_no_loop_over_turns() -> None:
    episodes, turns = 1000, 100
    generator = torch.Generator().manual_seed(0)
    batch = replace(
        experience(rewards=[]),
        rewards=torch.rand(episodes, generator=generator),
        groups=torch.arange(episodes) // 8,
        episode_of_turn=torch.arange(episodes).repeat_interleave(turns),
        turn_lengths=torch.ones(episodes * turns, dtype=torch.long),
        turn_rewards=torch.zeros(episodes * turns),
        anchors=torch.randint(0, 50, (episodes * turns,), generator=generator),
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        advantages = Gigpo().advantages(batch, [])
    assert advantages.turns.isfinite().all()
    assert sum(event.count for event in profile.key_averages()) < 1000


def test_tokens_are_clipped_one_by_one() -> None:
    assert isinstance(Gigpo().surrogate(), TokenClip)
    assert Gigpo().mean == "token"
