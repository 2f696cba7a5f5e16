"""By the weights of the mean, the actor's mean over all own tokens is the one that the algorithm takes."""

import random

import pytest
import torch

from megatron_empg.algorithms.algorithm import mean_weights
from megatron_empg.algorithms.base import Experience
from tests.unit.algorithms.played import BATCHES, CARRIED


def kept_values(batch: Experience, values: list[float], kept: list[bool]) -> list[list[float]]:
    """Of each sample, what its kept tokens have."""
    found, place = [], 0
    for length in batch.sample_lengths.tolist():
        own = range(place, place + length)
        found.append([values[token] for token in own if kept[token]])
        place += length
    return found


def token_mean(samples: list[list[float]]) -> float:
    values = [value for sample in samples for value in sample]
    return sum(values) / len(values)


def sequence_mean(samples: list[list[float]]) -> float:
    means = [sum(sample) / len(sample) for sample in samples if sample]
    return sum(means) / len(means)


MEANS = {"token": token_mean, "sequence": sequence_mean}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_masked_tokens_and_samples_count_in_no_mean(mean: str, share: float) -> None:
    emptied = 0
    for seed, played in enumerate(BATCHES):
        batch, chance = played.experience, random.Random(seed)
        tokens = int(batch.turn_lengths.sum())
        kept = [chance.random() < share for _ in range(tokens)]
        if not any(kept):
            continue
        values = [chance.gauss(0, 1) for _ in range(tokens)]
        samples = kept_values(batch, values, kept)
        emptied += sum(not sample for sample in samples)
        weights = mean_weights(batch, torch.tensor(kept), mean)
        found = float((torch.tensor(values, dtype=torch.float64) * weights).mean())
        assert found == pytest.approx(MEANS[mean](samples), rel=CARRIED, abs=CARRIED)
    assert (emptied > 0) == (share < 1)


@pytest.mark.parametrize("mean", MEANS)
def test_where_nothing_is_kept_nothing_counts(mean: str) -> None:
    for played in BATCHES:
        tokens = int(played.experience.turn_lengths.sum())
        weights = mean_weights(played.experience, torch.zeros(tokens, dtype=torch.bool), mean)
        assert weights.tolist() == [0.0] * tokens
