import math

import pytest
import torch

from megatron_empg.algorithms.policy_loss import TokenClip, clipped_policy_loss, kl_estimate
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.algorithms.segments import Segments


def loss_of(ratio: float, advantage: float, **kwargs: float) -> tuple[float, float, float]:
    """Loss, its derivative by the log-probability, and whether it was clipped, of one token."""
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    clips = {"clip_low": 0.2, "clip_high": 0.28, **kwargs}
    loss, stats = clipped_policy_loss(logprob, torch.zeros_like(logprob), advantages, **clips)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return loss.item(), gradient.item(), stats["clipped"].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),  # inside both clips: d(-A r)/d log p = -A r
        (1.5, 2.0, -2.56, 0.0, 1),  # above 1.28 with A > 0: clipped
        (0.5, 2.0, -1.0, -1.0, 0),  # below 0.8 with A > 0: the worse, unclipped side holds
        (0.5, -2.0, 1.6, 0.0, 1),  # below 0.8 with A < 0: clipped
        (1.5, -2.0, 3.0, 3.0, 0),
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: float) -> None:
    assert loss_of(ratio, advantage) == pytest.approx((loss, gradient, clipped))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (5.0, -2.0, 6.0, 0.0, 1),  # -A r = 10 is bounded by -A c = 6
        (2.0, -2.0, 4.0, 4.0, 0),
        (5.0, 2.0, -2.56, 0.0, 1),  # untouched for A > 0
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: float) -> None:
    assert loss_of(ratio, advantage, dual_clip=3.0) == pytest.approx((loss, gradient, clipped))


def test_on_policy_the_loss_is_minus_the_advantage_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages = -torch.rand(50, generator=generator) * 9, torch.randn(50, generator=generator)
    loss, stats = clipped_policy_loss(logprobs, logprobs.clone(), advantages, clip_low=0.2, clip_high=0.2)
    assert torch.equal(loss, -advantages)
    assert stats["approx_kl"].abs().max() == 0
    assert stats["clipped"].sum() == 0


def test_huge_ratios_stay_finite() -> None:
    loss, stats = clipped_policy_loss(
        torch.tensor([0.0, -500.0]),
        torch.tensor([-500.0, 0.0]),
        torch.tensor([-1.0, 1.0]),
        clip_low=0.2,
        clip_high=0.2,
    )
    assert loss.isfinite().all()
    assert all(value.isfinite().all() for value in stats.values())


def test_approx_kl_estimates_the_kl_from_old_to_new() -> None:
    old, new = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    kl = (old.exp() * (old - new)).sum()
    _, stats = clipped_policy_loss(new, old, torch.zeros(3), clip_low=0.2, clip_high=0.2)
    torch.testing.assert_close((old.exp() * stats["approx_kl"]).sum(), kl)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased_for_the_kl_to_the_reference(estimator: str) -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.5, 0.3]).log()
    kl = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_estimate(policy, reference, estimator)).sum(), kl)


def test_k1_is_the_log_ratio_k2_half_its_square_and_k3_never_negative() -> None:
    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    assert kl_estimate(policy, reference, "k1").tolist() == [1.0, -1.0]
    assert (kl_estimate(policy, reference, "k3") >= 0).all()
    assert kl_estimate(policy, 2 * reference, "k2").tolist() == [4.5, 0.0]
    with pytest.raises(ValueError, match="estimator is 'k4'"):
        kl_estimate(policy, reference, "k4")  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match=r"advantages \(3,\)"):
        clipped_policy_loss(ones, ones, torch.ones(3), clip_low=0.2, clip_high=0.2)
    with pytest.raises(ValueError, match=r"dual_clip is 0\.5"):
        clipped_policy_loss(ones, ones, ones, clip_low=0.2, clip_high=0.2, dual_clip=0.5)


def test_the_term_is_the_function_on_the_streams() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs, old, advantages = torch.randn(3, 20, generator=generator)
    one = torch.zeros(20, dtype=torch.long)
    streams = TokenStreams(old_logprobs=old, advantages=advantages)
    clip = TokenClip(0.2, 0.28, dual_clip=3.0)
    loss, statistics = clip(logprobs, logprobs, streams, Segments(one, one, 1, 1))
    expected, numbers = clipped_policy_loss(logprobs, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert torch.equal(loss, expected)
    assert list(statistics) == list(clip.statistics) == list(numbers)
