"""The sequence clip against one ratio per sample, differentiated as the paper writes it."""

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.algorithms.segments import Segments
from megatron_empg.algorithms.sequence_clip import SequenceClip

LENGTHS = [3, 1, 6, 2]
CLIPS = {"clip_low": 0.1, "clip_high": 0.2}


def segments_of(lengths: list[int]) -> Segments:
    """Samples of one turn each."""
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return Segments(owner, owner, len(lengths), len(lengths))


def random_tokens(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs with gradient, those of the old policy, and an advantage at each sample's tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(LENGTHS)
    old = -torch.rand(tokens, generator=generator, dtype=torch.float64) * 3
    change = 0.4 * torch.randn(tokens, generator=generator, dtype=torch.float64)
    advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
    return (old + change).requires_grad_(), old, advantages.repeat_interleave(torch.tensor(LENGTHS))


def mean_over_samples(values: Tensor) -> Tensor:
    return torch.stack([sample.mean() for sample in values.split(LENGTHS)]).mean()


def plainly(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """GSPO's objective: one differentiable ratio of each sample, clipped as one."""
    losses = []
    for now, before, advantage in zip(
        logprobs.split(LENGTHS), old.split(LENGTHS), advantages.split(LENGTHS), strict=True
    ):
        ratio = (now - before).mean().exp()
        clipped = ratio.clamp(1 - CLIPS["clip_low"], 1 + CLIPS["clip_high"])
        losses.append(torch.maximum(-advantage[0] * ratio, -advantage[0] * clipped))
    return torch.stack(losses).mean()


def test_value_and_gradient_are_those_of_one_ratio_per_sample() -> None:
    clipped = 0.0
    for seed in range(8):
        logprobs, old, advantages = random_tokens(seed)
        streams = TokenStreams(old_logprobs=old, advantages=advantages, mean_weights=torch.ones_like(old))
        loss, statistics = SequenceClip(**CLIPS)(logprobs, logprobs, streams, segments_of(LENGTHS))
        expected = plainly(logprobs, old, advantages)
        torch.testing.assert_close(mean_over_samples(loss), expected)
        (ours,) = torch.autograd.grad(mean_over_samples(loss), logprobs)
        (plain,) = torch.autograd.grad(expected, logprobs)
        torch.testing.assert_close(ours, plain)
        assert set(statistics) == set(SequenceClip(**CLIPS).statistics)
        assert all(not values.requires_grad for values in statistics.values())
        clipped += statistics["clipped"].mean().item() / 8
    assert 0.05 < clipped < 0.95


def test_a_samples_tokens_are_clipped_together() -> None:
    logprobs, old, advantages = random_tokens(3)
    streams = TokenStreams(old_logprobs=old, advantages=advantages, mean_weights=torch.ones_like(old))
    _, statistics = SequenceClip(**CLIPS)(logprobs, logprobs, streams, segments_of(LENGTHS))
    for name in ("ratio", "clipped"):
        for sample in statistics[name].split(LENGTHS):
            assert (sample == sample[0]).all()


def test_what_the_loss_does_not_see_decides_on_no_clip() -> None:
    """The tokens that are left are trained as if the sample held no others."""
    logprobs, old, advantages = random_tokens(4)
    far = torch.tensor([number % 3 == 1 for number in range(sum(LENGTHS))])
    far[4:10] = False  # of the third sample everything is seen
    old = old - 5.0 * far
    seen = ~far
    lengths = [int(kept.sum()) for kept in seen.split(LENGTHS)]
    alone = TokenStreams(
        old_logprobs=old[seen], advantages=advantages[seen], mean_weights=torch.ones(sum(lengths))
    )
    expected, numbers = SequenceClip(**CLIPS)(logprobs[seen], logprobs[seen], alone, segments_of(lengths))
    streams = TokenStreams(old_logprobs=old, advantages=advantages, mean_weights=seen.double())
    loss, statistics = SequenceClip(**CLIPS)(logprobs, logprobs, streams, segments_of(LENGTHS))
    torch.testing.assert_close(loss[seen], expected)
    torch.testing.assert_close(statistics["ratio"][seen], numbers["ratio"])


def test_a_sample_that_is_masked_whole_has_the_ratio_1() -> None:
    logprobs, old, advantages = random_tokens(4)
    streams = TokenStreams(old_logprobs=old, advantages=advantages, mean_weights=torch.zeros_like(old))
    _, statistics = SequenceClip(**CLIPS)(logprobs, logprobs, streams, segments_of(LENGTHS))
    assert (statistics["ratio"] == 1).all()


def test_on_policy_the_loss_is_minus_the_advantage_exactly() -> None:
    logprobs, _, advantages = random_tokens(1)
    logprobs, advantages = logprobs.detach().float().requires_grad_(), advantages.float()
    streams = TokenStreams(
        old_logprobs=logprobs.detach().clone(), advantages=advantages, mean_weights=torch.ones_like(advantages)
    )
    for clip in (SequenceClip(3e-4, 4e-4), TokenClip(0.2, 0.28)):
        loss, statistics = clip(logprobs, logprobs, streams, segments_of(LENGTHS))
        assert torch.equal(loss, -advantages)
        assert statistics["clipped"].sum() == 0
        (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        assert torch.equal(gradient, -advantages)


def test_samples_of_one_token_are_clipped_as_tokens() -> None:
    logprobs, old, advantages = random_tokens(5)
    streams = TokenStreams(old_logprobs=old, advantages=advantages, mean_weights=torch.ones_like(old))
    alone = segments_of([1] * len(old))
    by_sample, ours = SequenceClip(**CLIPS)(logprobs, logprobs, streams, alone)
    by_token, theirs = TokenClip(**CLIPS)(logprobs, logprobs, streams, alone)
    torch.testing.assert_close(by_sample, by_token)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_sample_may_be_split_over_ranks() -> None:
    """Two ranks hold every other token; the reduction between them is played by adding the other's sums."""
    logprobs, old, advantages = random_tokens(2)
    whole = segments_of(LENGTHS)
    streams = TokenStreams(old_logprobs=old, advantages=advantages, mean_weights=torch.ones_like(old))
    expected, _ = SequenceClip(**CLIPS)(logprobs, logprobs, streams, whole)
    log_ratio = (logprobs - old).detach()
    for rank in (0, 1):
        mine, other = slice(rank, None, 2), slice(1 - rank, None, 2)

        def add_other(sums: Tensor, other: slice = other) -> None:
            sums[0].index_add_(0, whole.sample_of_token[other], log_ratio[other])
            sums[1].index_add_(0, whole.sample_of_token[other], torch.ones_like(log_ratio[other]))

        part = Segments(
            whole.sample_of_token[mine], whole.turn_of_token[mine], whole.samples, whole.turns, reduce=add_other
        )
        ours, _ = SequenceClip(**CLIPS)(
            logprobs[mine], logprobs[mine], streams.map(lambda values, mine=mine: values[mine]), part
        )
        torch.testing.assert_close(ours, expected[mine])


@pytest.mark.parametrize("clip", [SequenceClip(0.1, 0.2), TokenClip(0.1, 0.2, dual_clip=3.0)])
def test_no_tokens_and_huge_ratios_are_no_fault(clip: SequenceClip | TokenClip) -> None:
    empty = torch.zeros(0)
    loss, _ = clip(
        empty, empty, TokenStreams(old_logprobs=empty, advantages=empty, mean_weights=empty), segments_of([])
    )
    assert loss.shape == (0,)
    logprobs, old = torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0])
    streams = TokenStreams(old_logprobs=old, advantages=torch.tensor([-1.0, 1.0]), mean_weights=torch.ones(2))
    loss, statistics = clip(logprobs, logprobs, streams, segments_of([1, 1]))
    for values in (loss, *statistics.values()):
        assert values.isfinite().all()
