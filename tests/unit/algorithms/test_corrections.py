"""The corrections of the gap between engine and actor, against plain loops over the samples."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.icepop import IcePop
from megatron_empg.algorithms.sample import Sample
from megatron_empg.algorithms.sequence_rejection import SequenceRejection
from megatron_empg.algorithms.truncated_sampling import Mis, Tis
from tests.unit.algorithms.experiences import experience, random_experience

Correction = Tis | Mis | IcePop | SequenceRejection
ALL: list[Correction] = [
    Tis(),
    Tis(level="sequence"),
    Mis(),
    Mis(low=0.0, high=3.0, level="sequence"),
    IcePop(),
    SequenceRejection(),
    SequenceRejection(measure="product"),
]


def with_ratios(ratios: list[list[float]]) -> tuple[Tensor, Experience]:
    """The actor's log-probs and a batch of one-sample episodes whose tokens have these ratios actor / engine."""
    batch = experience([[1.0]] * len(ratios), lengths=[[len(of_sample)] for of_sample in ratios])
    flat = torch.tensor([ratio for of_sample in ratios for ratio in of_sample], dtype=torch.float64)
    return batch.rollout_logprobs.double() + flat.log(), batch


def two_samples_an_episode(batch: Experience) -> Experience:
    """Each episode's turns after the first in a sample of their own, where there are any."""
    samples, owners = [], []
    for episode, whole in enumerate(batch.samples):
        for turns in (whole.turns[:1], whole.turns[1:]):
            if len(turns):
                samples.append(Sample(whole.tokens, turns))
                owners.append(episode)
    return replace(batch, samples=samples, episode_of_sample=torch.tensor(owners))


def random_gap(seed: int) -> tuple[Tensor, Experience]:
    """Log-probs of an actor that is often outside every bound, for samples that are not episodes."""
    batch = two_samples_an_episode(random_experience(seed))
    generator = torch.Generator().manual_seed(seed)
    gap = 0.5 * torch.randn(int(batch.turn_lengths.sum()), generator=generator, dtype=torch.float64)
    # A fifth of the samples nearly agree, so that narrow bounds keep some.
    near = torch.rand(len(batch.samples), generator=generator) < 0.2
    lengths = torch.tensor([sample.num_own_tokens for sample in batch.samples])
    gap = torch.where(near.repeat_interleave(lengths), 0.005 * gap, gap)
    return batch.rollout_logprobs.double() + gap, batch


def by_loop(correction: Correction, logprobs: Tensor, batch: Experience) -> list[float]:
    """Weights by the definition, sample by sample, in plain floats."""
    weights, start = [], 0
    for sample in batch.samples:
        span = slice(start, start + sample.num_own_tokens)
        start += sample.num_own_tokens
        gaps = (logprobs[span] - batch.rollout_logprobs[span].double()).tolist()
        ratios = [math.exp(gap) for gap in gaps]
        if getattr(correction, "level", "token") == "sequence":
            ratios = [math.exp(sum(gaps))] * len(gaps)
        if isinstance(correction, Tis):
            weights += [min(ratio, correction.cap) for ratio in ratios]
        elif isinstance(correction, SequenceRejection):
            low, high = correction.bounds
            exponent = 1 if correction.measure == "product" else 1 / len(gaps)
            kept = low <= math.exp(sum(gaps) * exponent) <= high
            weights += [float(kept)] * len(gaps)
        else:
            weights += [ratio if correction.low <= ratio <= correction.high else 0.0 for ratio in ratios]
    return weights


def test_weights_are_those_of_a_loop_over_samples() -> None:
    for seed in range(4):
        logprobs, batch = random_gap(seed)
        for correction in ALL:
            weighted = correction.weigh(logprobs, batch)
            assert weighted.weights.tolist() == pytest.approx(by_loop(correction, logprobs, batch))
            assert weighted.metrics["correction/mean_weight"] == pytest.approx(weighted.weights.mean().item())


def test_the_random_batches_have_tokens_on_both_sides_of_every_bound() -> None:
    for correction in ALL:
        shares = {"correction/truncated_share": 0.0, "correction/rejected_tokens": 0.0}
        for seed in range(4):
            metrics = correction.weigh(*random_gap(seed)).metrics
            for name in shares:
                shares[name] += metrics.get(name, 0.0) / 4
        assert 0.02 < sum(shares.values()) < 0.98, correction


def test_truncation_by_hand() -> None:
    logprobs, batch = with_ratios([[1.0, 4.0], [0.5, 0.25, 16.0]])
    by_token, by_sequence = Tis().weigh(logprobs, batch), Tis(level="sequence", cap=3.0).weigh(logprobs, batch)
    assert by_token.weights.tolist() == pytest.approx([1, 2, 0.5, 0.25, 2])
    assert by_token.metrics == pytest.approx(
        {"correction/mean_weight": 5.75 / 5, "correction/truncated_share": 0.4}
    )
    assert by_sequence.weights.tolist() == pytest.approx([3, 3, 2, 2, 2])
    assert by_sequence.metrics["correction/truncated_share"] == pytest.approx(0.4)


def test_masks_by_hand() -> None:
    logprobs, batch = with_ratios([[1.0, 4.0], [0.4, 6.0], [1.5]])
    icepop = IcePop().weigh(logprobs, batch)
    assert icepop.weights.tolist() == pytest.approx([1, 4, 0, 0, 1.5])
    assert icepop.metrics == pytest.approx(
        {
            "correction/mean_weight": 6.5 / 5,
            "correction/rejected_tokens": 2 / 5,
            "correction/rejected_episodes": 1 / 3,
        }
    )
    assert Mis().weigh(logprobs, batch).weights.tolist() == pytest.approx([1, 0, 0, 0, 1.5])
    whole = Mis(low=0.0, high=2.5, level="sequence").weigh(logprobs, batch)
    assert whole.weights.tolist() == pytest.approx([0, 0, 2.4, 2.4, 1.5])


def test_rejection_by_hand() -> None:
    logprobs, batch = with_ratios([[1.02, 1 / 1.02], [1.02, 1.02], [3.0, 0.5]])
    geometric = SequenceRejection().weigh(logprobs, batch)
    assert geometric.weights.tolist() == [1, 1, 0, 0, 0, 0]
    assert geometric.metrics["correction/rejected_episodes"] == pytest.approx(2 / 3)
    product = SequenceRejection(measure="product").weigh(logprobs, batch)
    assert product.weights.tolist() == [1] * 6
    narrow = SequenceRejection(measure="product", high=1.2).weigh(logprobs, batch)
    assert narrow.weights.tolist() == [1, 1, 1, 1, 0, 0]


def test_an_episode_is_rejected_only_when_all_its_samples_are() -> None:
    batch = two_samples_an_episode(experience([[0, 1], [0, 1]]))
    gap = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    weighted = SequenceRejection().weigh(batch.rollout_logprobs.double() + gap, batch)
    assert weighted.weights.tolist() == [1, 0, 0, 0]
    assert weighted.metrics["correction/rejected_tokens"] == 0.75
    assert weighted.metrics["correction/rejected_episodes"] == 0.5


def test_equal_policies_weigh_exactly_one_and_nothing_is_rejected() -> None:
    batch = random_experience(0)
    for correction in ALL:
        weighted = correction.weigh(batch.rollout_logprobs.clone().requires_grad_(), batch)
        assert torch.equal(weighted.weights, torch.ones_like(batch.rollout_logprobs))
        assert not weighted.weights.requires_grad
        for name, value in weighted.metrics.items():
            assert value == (1.0 if name == "correction/mean_weight" else 0.0)


def test_no_tokens_are_no_fault() -> None:
    empty = experience([])
    for correction in ALL:
        weighted = correction.weigh(torch.zeros(0), empty)
        assert weighted.weights.shape == (0,)
        assert weighted.metrics == {}


def test_an_episode_without_turns_is_not_counted() -> None:
    batch = experience([[], [1]])
    for correction in ALL:
        weighted = correction.weigh(batch.rollout_logprobs + 3.0, batch)
        assert weighted.weights.shape == (1,)
        if not isinstance(correction, Tis):
            assert weighted.metrics["correction/rejected_episodes"] == 1.0


def test_gaps_beyond_every_float_stay_finite() -> None:
    batch = experience([[1], [1]], rollout_logprobs=[-900.0, -0.5])
    logprobs = torch.tensor([-0.5, -900.0])
    for correction in ALL:
        assert correction.weigh(logprobs, batch).weights.isfinite().all()


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan, -9999.0])
def test_log_probs_that_are_no_numbers_are_refused_by_name(bad: float) -> None:
    engines = experience([[1], [1, 1]], rollout_logprobs=[-1.0, -1.0, bad])
    actors = experience([[1], [1, 1]])
    for correction in ALL:
        with pytest.raises(
            ValueError, match=r"rollout log-prob of own token 2, in episode 1, is .*use the correction"
        ):
            correction.weigh(torch.full((3,), -1.0), engines)
        if not math.isfinite(bad):
            with pytest.raises(ValueError, match="actor log-prob of own token 1, in episode 1"):
                correction.weigh(torch.tensor([-1.0, bad, -1.0]), actors)


def test_a_missing_log_prob_is_refused() -> None:
    for correction in ALL:
        with pytest.raises(ValueError, match="the actor has 1 log-probs and the engine 2"):
            correction.weigh(torch.zeros(1), experience([[1, 1]]))


def test_bounds_that_reject_agreement_are_refused() -> None:
    for section in (Mis, IcePop, SequenceRejection):
        for keys in ({"low": 1.5}, {"high": 0.7}):
            with pytest.raises(ValueError, match=r"interval must hold 1"):
                section.model_validate(keys)
    with pytest.raises(ValueError, match="cap"):
        Tis(cap=0.5)
