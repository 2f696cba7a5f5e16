import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.base import Experience, Scores
from megatron_empg.algorithms.igpo import Igpo, gold_in_place_of_turns
from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.sample import Sample
from tests.unit.algorithms.experiences import doubles, experience, random_experience

Gain = Literal["probability", "logprob"]


def scores(logprobs: list[float]) -> Scores:
    return Scores(torch.tensor(logprobs), torch.zeros(len(logprobs)))


def random_scores(batch: Experience, seed: int) -> Scores:
    """A log-prob for each token of the gold turn in each turn's place."""
    lengths = [len(gold) for gold in batch.gold]
    tokens = sum(lengths[episode] for episode in batch.episode_of_turn.tolist())
    logprobs = -3 * torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Scores(logprobs, torch.zeros(tokens))


def by_a_loop(batch: Experience, given: Scores, *, gain: Gain, gamma: float, divide: bool) -> Tensor:
    """Gains, groups and sums, one turn at a time."""
    logprobs = given.logprobs.tolist()
    rewards: list[list[float]] = []
    for episode, gold in enumerate(batch.gold):
        before = []
        for _ in range(int((batch.episode_of_turn == episode).sum())):
            mean = sum(logprobs[: len(gold)]) / len(gold)
            del logprobs[: len(gold)]
            before.append(math.exp(mean) if gain == "probability" else mean)
        gains = [after - until for until, after in pairwise(before)]
        rewards.append([*gains, batch.rewards[episode].item()])
    expected = []
    for episode, own in enumerate(rewards):
        group = batch.groups[episode]
        pool = [reward for other, turns in enumerate(rewards) if batch.groups[other] == group for reward in turns]
        mean = sum(pool) / len(pool)
        std = (sum((reward - mean) ** 2 for reward in pool) / max(1, len(pool) - 1)) ** 0.5
        scaled = [(reward - mean) / (std + 1e-6) if divide else reward - mean for reward in own]
        for start in range(len(scaled)):
            expected.append(sum(gamma**k * value for k, value in enumerate(scaled[start:])))
    return doubles(expected)


def test_the_gold_turn_stands_in_the_place_of_each_turn() -> None:
    # Tokens 0 1 2 are the prompt, 3 and 4 the first turn, 5 6 an observation, 7 the second turn.
    batch = experience(rewards=[[0.0, 1.0]], lengths=[[2, 1]], gold=[[90, 91, 92]])
    (probe,) = Igpo().probes(batch)
    assert probe.policy == "current"
    assert [sample.tokens.tolist() for sample in probe.samples] == [
        [0, 1, 2, 90, 91, 92],
        [0, 1, 2, 3, 4, 5, 6, 90, 91, 92],
    ]
    assert [sample.turns.tolist() for sample in probe.samples] == [[[3, 6]], [[7, 10]]]


def test_a_turn_stands_in_its_own_sample() -> None:
    # An episode whose second turn was played in a context written anew.
    first = Sample(torch.tensor([1, 2, 3]), torch.tensor([[2, 3]]))
    second = Sample(torch.tensor([4, 5, 6, 7]), torch.tensor([[1, 2], [3, 4]]))
    batch = experience(rewards=[[0.0, 0.0, 1.0]], gold=[[9]])
    batch = replace(batch, samples=[first, second], episode_of_sample=torch.tensor([0, 0]))
    assert [sample.tokens.tolist() for sample in gold_in_place_of_turns(batch)] == [
        [1, 2, 9],
        [4, 9],
        [4, 5, 6, 9],
    ]


def test_a_turn_earns_what_it_made_the_gold_turn_likelier() -> None:
    # Before the three turns the gold turn's two tokens have mean log-prob -3, -1 and -2: gains 2 and -1, then the
    # episode's reward 2. Their mean is 1, the sums from each turn on (2 - 1) + (-1 - 1) + (2 - 1), and so on.
    batch = experience(rewards=[[0.0, 0.0, 2.0]], gold=[[8, 9]])
    section = Igpo(gain="logprob", normalize_std=False)
    advantages = section.advantages(batch, [scores([-2.0, -4.0, -1.0, -1.0, -2.0, -2.0])])
    torch.testing.assert_close(advantages.turns, doubles([0.0, -1.0, 1.0]))
    torch.testing.assert_close(advantages.episodes, doubles([1.0]))


def test_by_default_the_gain_is_one_of_probability() -> None:
    # Mean log-probs ln 0.2 and ln 0.6: a gain of 0.4, then the reward 1. Mean 0.7, deviations -0.3 and 0.3.
    batch = experience(rewards=[[0.0, 1.0]], gold=[[8]])
    given = [scores([math.log(0.2), math.log(0.6)])]
    turns = Igpo(normalize_std=False, gamma=0.5).advantages(batch, given).turns
    torch.testing.assert_close(turns, doubles([-0.3 + 0.5 * 0.3, 0.3]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gain", ["probability", "logprob"])
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_those_of_a_loop(seed: int, gain: Gain, divide: bool) -> None:
    batch = random_experience(seed)
    given = random_scores(batch, seed)
    turns = Igpo(gain=gain, gamma=0.9, normalize_std=divide).advantages(batch, [given]).turns
    expected = by_a_loop(batch, given, gain=gain, gamma=0.9, divide=divide)
    torch.testing.assert_close(turns, expected, rtol=1e-9, atol=1e-9)


def test_scores_come_in_the_order_of_the_probes() -> None:
    batch = random_experience(1)
    (probe,) = Igpo().probes(batch)
    assert len(probe.samples) == len(batch.turn_lengths)
    owners = [sample.tokens[0].item() // 1000 for sample in probe.samples]
    assert owners == batch.episode_of_turn.tolist()


def test_the_reward_of_the_last_turn_is_the_shaped_one() -> None:
    batch = experience(rewards=[[0.0], [1.0]], gold=[[8], [8]])
    shaped = replace(batch, rewards=doubles([0.0, 0.5]))
    turns = Igpo(normalize_std=False).advantages(shaped, [scores([-1.0, -1.0])]).turns
    assert turns.tolist() == [-0.25, 0.25]


def test_equal_rewards_one_turn_and_no_turn_give_exactly_zero() -> None:
    section = Igpo()
    alone = experience(rewards=[[1.0]], gold=[[8]])
    equal = experience(rewards=[[0.1], [0.1], [0.1]], gold=[[8]] * 3)
    nothing = experience(rewards=[])
    assert section.advantages(alone, [scores([-1.0])]).turns.tolist() == [0.0]
    assert section.advantages(equal, [scores([-1.0, -2.0, -3.0])]).turns.tolist() == [0.0] * 3
    assert section.probes(nothing) == []
    assert section.advantages(nothing, []).turns.shape == (0,)


@pytest.mark.parametrize("gold", [None, [[8], []]])
def test_an_episode_without_a_gold_turn_is_refused_with_the_fix(gold: list[list[int]] | None) -> None:
    batch = experience(rewards=[[1.0], [0.0]], gold=gold)
    with pytest.raises(ValueError, match="let the environment name for every task") as raised:
        Igpo().probes(batch)
    counted = "2 of 2 episodes (first: 0)" if gold is None else "1 of 2 episodes (first: 1)"
    assert counted in str(raised.value)


def test_scores_that_are_not_the_probes_are_refused() -> None:
    batch = experience(rewards=[[0.0, 1.0]], gold=[[8, 9]])
    with pytest.raises(ValueError, match="3 log-probs of gold turns for 4 tokens"):
        Igpo().advantages(batch, [scores([-1.0, -1.0, -1.0])])
    with pytest.raises(ValueError, match="no scores of the gold turns"):
        Igpo().advantages(batch, [])
    with pytest.raises(ValueError, match="gold token 2 is -inf; it must be finite"):
        Igpo().advantages(batch, [scores([-1.0, -1.0, -math.inf, -1.0])])


def test_tokens_are_clipped_one_by_one() -> None:
    assert isinstance(Igpo().surrogate(), TokenClip)
