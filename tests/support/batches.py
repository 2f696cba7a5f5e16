"""Batches for tests, from the spans of their turns."""

from collections.abc import Sequence
from typing import Any

import torch

from megatron_empg.algorithms.base import Credit, Scores
from megatron_empg.algorithms.sample import Sample
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.experience import experience_of

Spans = Sequence[tuple[int, int]]


def batch_of(
    spans: Sequence[Spans], rewards: Sequence[float], groups: Sequence[int], *, length: int = 14, **others: Any
) -> Batch:
    """Episodes of one sample with the turns at ``spans``; the engine's log-probs are 0."""
    own = sum(end - start for turns in spans for start, end in turns)
    samples = [Sample(torch.arange(length), torch.tensor(turns).reshape(-1, 2)) for turns in spans]
    known = {name: others.pop(name) for name in ("anchors", "cut", "truncated", "turn_rewards") if name in others}
    experience = experience_of(
        samples,
        torch.arange(len(samples)),
        rewards=torch.tensor(rewards),
        groups=torch.tensor(groups, dtype=torch.long),
        rollout_logprobs=others.pop("rollout_logprobs", torch.zeros(own)),
        **known,
    )
    versions = others.pop("policy_versions", torch.zeros(len(samples), 2, dtype=torch.long))
    return Batch(experience, versions, **others)


def empty_batch(**others: Any) -> Batch:
    return batch_of([], [], [], **others)


def plain_credit(batch: Batch, algorithm: Any) -> Credit:
    """What the algorithm makes of the batch where every token's entropy is 0.5 nats."""
    own = len(batch.experience.rollout_logprobs)
    return algorithm.credit(batch.experience, Scores(torch.zeros(own), torch.full((own,), 0.5)), [])
