"""Batches for tests of algorithms, written as nested lists: by episode, then by turn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.sample import Sample

PROMPT = 3
"""Tokens before an episode's first turn."""
OBSERVATION = 2
"""Tokens between two turns."""

ByTurn = Sequence[Sequence[float]]


def experience(
    rewards: ByTurn,
    groups: Sequence[int] | None = None,
    lengths: Sequence[Sequence[int]] | None = None,
    *,
    anchors: Sequence[Sequence[int]] | None = None,
    truncated: Sequence[bool] | None = None,
    cut: Sequence[Sequence[bool]] | None = None,
    rollout_logprobs: Sequence[float] | None = None,
    gold: Sequence[Sequence[int]] | None = None,
    progress: float = 0.0,
) -> Experience:
    """A batch of episodes whose turns earned ``rewards``; each episode is one sample.

    Unless given: all episodes answer one question, a turn has one own token, no two states are equal, nothing is
    truncated or cut, log-probs are -1, and no gold turn is known. Token ids say where they are: 1000 times the
    episode, plus the position. Numbers are float64, so that they can be compared with those of a plain loop.
    """
    turns = [len(of_episode) for of_episode in rewards]
    own = lengths if lengths is not None else [[1] * count for count in turns]
    samples = [_sample(episode, of_episode) for episode, of_episode in enumerate(own)]
    tokens = sum(sum(of_episode) for of_episode in own)
    states = _flat(anchors, torch.long) if anchors is not None else torch.arange(sum(turns))
    logprobs = rollout_logprobs if rollout_logprobs is not None else [-1.0] * tokens
    return Experience(
        rewards=torch.tensor([sum(of_episode) for of_episode in rewards], dtype=torch.float64),
        groups=torch.tensor(groups if groups is not None else [0] * len(turns), dtype=torch.long),
        truncated=torch.tensor(truncated if truncated is not None else [False] * len(turns), dtype=torch.bool),
        episode_of_turn=torch.arange(len(turns)).repeat_interleave(torch.tensor(turns, dtype=torch.long)),
        turn_lengths=_flat(own, torch.long),
        turn_rewards=_flat(rewards, torch.float64),
        anchors=states,
        cut=_flat(cut, torch.bool) if cut is not None else torch.zeros(sum(turns), dtype=torch.bool),
        rollout_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        samples=samples,
        episode_of_sample=torch.arange(len(turns)),
        gold=[torch.tensor(of_episode, dtype=torch.long) for of_episode in gold or []],
        progress=progress,
    )


def random_experience(seed: int, *, episodes: int = 24, groups: int = 5, states: int = 4) -> Experience:
    """Episodes of 1 to 6 turns of 1 to 5 own tokens, with rewards at any turn, few states and few questions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, count: int) -> list[int]:
        """``count`` integers of [low, high)."""
        return torch.randint(low, high, (count,), generator=generator).tolist()

    turns = draw(1, 7, episodes)
    return experience(
        rewards=[[value / 4 for value in draw(-2, 5, count)] for count in turns],
        groups=draw(0, groups, episodes),
        lengths=[draw(1, 6, count) for count in turns],
        anchors=[draw(0, states, count) for count in turns],
        gold=[draw(5, 50, count) for count in draw(1, 5, episodes)],
    )


def doubles(values: Sequence[float]) -> Tensor:
    """Numbers worked out by hand, to compare with."""
    return torch.tensor(values, dtype=torch.float64)


def _flat(values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """What episodes hold, laid end to end."""
    return torch.tensor([value for of_episode in values for value in of_episode], dtype=dtype)


def _sample(episode: int, lengths: Sequence[int]) -> Sample:
    """A prompt, then turns of ``lengths`` own tokens with an observation between them."""
    turns = []
    end = PROMPT - OBSERVATION
    for length in lengths:
        start = end + OBSERVATION
        end = start + length
        turns.append([start, end])
    tokens = 1000 * episode + torch.arange(max(end, PROMPT))
    return Sample(tokens, torch.tensor(turns, dtype=torch.long).reshape(-1, 2))
