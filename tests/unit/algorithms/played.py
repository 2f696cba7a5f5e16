"""Random and degenerate batches for tests that hold algorithms against plain loops, and a made-up model."""

import itertools
import random
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from megatron_empg.algorithms.base import Experience, Probe, Scores
from megatron_empg.algorithms.sample import Sample
from megatron_empg.algorithms.segments import Segments
from tests.unit.algorithms.experiences import experience
from tests.unit.algorithms.oracles import Batch, episodes_of

SEEDS = range(50)
CARRIED = 1e-6
"""Relative error where a carrier is float32."""


@dataclass(frozen=True)
class Played:
    """A batch, what the actor said of it, and the same as nested lists."""

    experience: Experience
    scores: Scores

    @cached_property
    def lists(self) -> Batch:
        return episodes_of(self.experience, self.scores)


def random_batch(seed: int, *, equal_rewards: bool = False, equal_entropies: bool = False) -> Played:
    """Uneven episodes of few questions and few states, some questions with one episode; rewards vary by seed."""
    chance = random.Random(seed)
    episodes = chance.randint(2, 14)
    turns = [chance.randint(1, 6) for _ in range(episodes)]
    lengths = [[chance.choice([1, 2, 4]) for _ in range(count)] for count in turns]
    rewards = [_rewards(chance, seed % 4, count) for count in turns]
    if equal_rewards:
        rewards = [[0.0] * (count - 1) + [0.3] for count in turns]
    played = experience(
        rewards,
        groups=[chance.choice([3, 5, 5, 8, 8, 8, 11]) for _ in range(episodes)],
        lengths=lengths,
        anchors=[[chance.randint(0, 3) for _ in range(count)] for count in turns],
        truncated=[chance.random() < 0.3 for _ in range(episodes)],
        cut=[[chance.random() < 0.2 for _ in range(count)] for count in turns],
        gold=[[chance.randint(10, 99) for _ in range(chance.randint(1, 4))] for _ in range(episodes)],
        progress=chance.random(),
    )
    return scored(split_samples(played, chance), chance, equal_entropies=equal_entropies, ties=seed % 3 == 0)


def _rewards(chance: random.Random, kind: int, turns: int) -> list[float]:
    if kind == 0:
        return [0.0] * (turns - 1) + [float(chance.random() < 0.5)]
    if kind == 1:
        return [chance.gauss(0, 2) for _ in range(turns)]
    if kind == 2:
        return [chance.choice([-0.1, 0.0, 0.3]) for _ in range(turns)]
    return [-1.0 - chance.random()] + [0.0] * (turns - 1)


def split_samples(batch: Experience, chance: random.Random) -> Experience:
    """The same episodes, each cut between turns into one sample or more."""
    samples, owners = [], []
    for episode, whole in enumerate(batch.samples):
        turns = whole.turns.tolist()
        places = [place for place in range(1, len(turns)) if chance.random() < 0.3]
        for first, end in itertools.pairwise([0, *places, len(turns)]):
            own = torch.tensor(turns[first:end])
            samples.append(Sample(whole.tokens[: own[-1, 1]] + 7 * first, own))
            owners.append(episode)
    return replace(batch, samples=samples, episode_of_sample=torch.tensor(owners, dtype=torch.long))


def scored(
    batch: Experience, chance: random.Random, *, equal_entropies: bool = False, ties: bool = False
) -> Played:
    """Log-probs and entropies of the actor, and an engine that differs from it, at some tokens by much."""
    tokens = int(batch.turn_lengths.sum())
    logprobs = [-3 * chance.random() for _ in range(tokens)]
    rollout = [value + chance.gauss(0, chance.choice([0.0, 0.003, 0.5])) for value in logprobs]
    entropies = [chance.choice([0.25, 0.5, 1.25]) if ties else 2 * chance.random() for _ in range(tokens)]
    if equal_entropies:
        entropies = [0.75] * tokens
    scores = Scores(float64(logprobs), float64(entropies))
    return Played(replace(batch, rollout_logprobs=float64(rollout)), scores)


def float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def degenerate_batches() -> dict[str, Played]:
    chance = random.Random(0)
    one_turn_each = experience(
        [[1.0], [0.0], [0.5], [-1.0], [0.0]],
        groups=[1, 1, 1, 2, 3],
        lengths=[[2], [1], [3], [1], [2]],
        gold=[[5]] * 5,
    )
    one_state = experience(
        [[0.0, 1.0], [0.0, 0.0, 0.0], [1.0]],
        lengths=[[1, 2], [1, 1, 3], [2]],
        anchors=[[4, 4], [4, 4, 4], [4]],
        gold=[[5]] * 3,
    )
    return {
        "empty": scored(experience([]), chance),
        "one episode of one turn": scored(experience([[1.0]], gold=[[5, 6]]), chance),
        "one episode of three turns": scored(experience([[0.0, 0.0, 1.0]], gold=[[5]]), chance),
        "one-turn episodes": scored(one_turn_each, chance),
        "singleton groups": scored(
            experience([[1.0], [0.0, -1.0], [0.5, 0.5]], [0, 1, 2], gold=[[5]] * 3), chance
        ),
        "one state throughout": scored(one_state, chance),
        "equal rewards": random_batch(101, equal_rewards=True),
        "equal entropies": random_batch(102, equal_entropies=True),
        "equal rewards and entropies": random_batch(103, equal_rewards=True, equal_entropies=True),
    }


def batches() -> list[Played]:
    return [random_batch(seed) for seed in SEEDS] + list(degenerate_batches().values())


BATCHES = batches()


def assert_equal(found: Tensor, expected: list, *, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found.double(), float64(expected), rtol=rtol, atol=atol)


def invented_score(sample: Sample, policy: str = "current") -> Scores:
    """Log-probs that depend on all tokens up to the scored one: a stand-in for a model that no order can fool."""
    logprobs = []
    for start, end in sample.turns.tolist():
        for place in range(start, end):
            logprobs.append(invented_logprob(tuple(sample.tokens[: place + 1].tolist()), policy))
    return Scores(float64(logprobs), torch.zeros(len(logprobs), dtype=torch.float64))


@cache
def invented_logprob(tokens: tuple[int, ...], policy: str = "current") -> float:
    return -3 * random.Random(f"{policy} {tokens}").random()


def answers(probes: list[Probe]) -> list[Scores]:
    """The scores of probes, samples end to end."""
    found = []
    for probe in probes:
        scores = [invented_score(sample, probe.policy) for sample in probe.samples]
        logprobs = [score.logprobs for score in scores] or [torch.zeros(0, dtype=torch.float64)]
        found.append(Scores(torch.cat(logprobs), torch.zeros_like(torch.cat(logprobs))))
    return found


def gold_logprobs(batch: Experience) -> list[list[list[float]]]:
    """By episode and turn: the log-probs of the gold answer where that turn begins."""
    found: list[list[list[float]]] = [[] for _ in batch.rewards]
    for sample, episode in zip(batch.samples, batch.episode_of_sample.tolist(), strict=True):
        for start, _ in sample.turns.tolist():
            tokens, of_turn = sample.tokens[:start].tolist(), []
            for gold in batch.gold[episode].tolist():
                tokens = [*tokens, gold]
                of_turn.append(invented_logprob(tuple(tokens)))
            found[episode].append(of_turn)
    return found


def segments_of(samples: list[Sample]) -> Segments:
    """The samples of one microbatch, one after the other."""
    sample_of_token, turn_of_token, turns = [], [], 0
    for number, sample in enumerate(samples):
        for length in sample.turn_lengths:
            sample_of_token.extend([number] * length)
            turn_of_token.extend([turns] * length)
            turns += 1
    return Segments(torch.tensor(sample_of_token), torch.tensor(turn_of_token), len(samples), turns)
