"""The KL term against autograd of the exact KL of a softmax, every token enumerated."""

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.kl import KlSection, KlTerm
from megatron_empg.algorithms.policy_loss import kl_estimate
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.algorithms.segments import Segments
from tests.unit.algorithms.experiences import random_experience

VOCABULARY = 5
ESTIMATORS = ("k1", "k2", "k3")
TOKENS = torch.arange(VOCABULARY)
SEGMENTS = Segments(torch.zeros_like(TOKENS), torch.zeros_like(TOKENS), 1, 1)


def random_logits(seed: int, *, spread: float = 2.0) -> list[Tensor]:
    """Of the policy, the policy that drew the tokens, and the reference."""
    generator = torch.Generator().manual_seed(seed)
    policy, change, reference = torch.randn(3, VOCABULARY, generator=generator, dtype=torch.float64)
    return [spread * policy, spread * policy + 0.5 * change, spread * reference]


def exact_kl(logits: Tensor, reference: Tensor) -> Tensor:
    ours, theirs = logits.log_softmax(0), reference.log_softmax(0)
    return (ours.exp() * (ours - theirs)).sum()


def expected_term(logits: Tensor, old: Tensor, reference: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Mean of term and statistic over tokens that the old policy draws: each token by its probability."""
    logprobs, before = logits.log_softmax(0), old.log_softmax(0).detach()
    streams = TokenStreams(old_logprobs=before, reference_logprobs=reference.log_softmax(0).detach())
    term, statistics = KlTerm(1.0, estimator)(logprobs, logprobs, streams, SEGMENTS)
    return (before.exp() * term).sum(), (before.exp() * statistics["kl_to_reference"]).sum()


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, other, dim=0).item()


def test_the_gradient_is_that_of_the_kl_on_and_off_policy() -> None:
    for seed in range(10):
        policy, elsewhere, reference = random_logits(seed)
        logits = policy.clone().requires_grad_()
        (exact,) = torch.autograd.grad(exact_kl(logits, reference), logits)
        for old in (policy, elsewhere):
            for estimator in ESTIMATORS:
                term, _ = expected_term(logits, old, reference, estimator)
                (gradient,) = torch.autograd.grad(term, logits)
                torch.testing.assert_close(gradient, exact)


def test_the_value_is_the_estimators_and_unbiased_for_k1_and_k3() -> None:
    for seed in range(10):
        policy, elsewhere, reference = random_logits(seed)
        kl = exact_kl(policy, reference)
        logprobs, theirs = policy.log_softmax(0), reference.log_softmax(0)
        for old in (policy, elsewhere):
            for estimator in ESTIMATORS:
                term, statistic = expected_term(policy, old, reference, estimator)
                torch.testing.assert_close(term, statistic)
                own = (logprobs.exp() * kl_estimate(logprobs, theirs, estimator)).sum()
                torch.testing.assert_close(statistic, own)
                if estimator != "k2":
                    torch.testing.assert_close(statistic, kl)


def test_differentiating_the_estimators_themselves_gives_other_gradients() -> None:
    """Why the term has a gradient of its own; only k2's is right, and that on policy alone."""
    policy, elsewhere, reference = random_logits(4)
    logits = policy.clone().requires_grad_()
    (exact,) = torch.autograd.grad(exact_kl(logits, reference), logits)
    for estimator, old, right in (
        ("k3", policy, False),
        ("k2", policy, True),
        ("k2", elsewhere, False),
    ):
        values = kl_estimate(logits.log_softmax(0), reference.log_softmax(0), estimator)
        (plain,) = torch.autograd.grad((old.softmax(0) * values).sum(), logits)
        assert (cosine(plain, exact) > 0.999999) == right


def test_a_far_reference_gives_no_huge_gradient() -> None:
    """19 nats away k3 differentiated plainly has a slope of exp(19)."""
    logprobs = torch.tensor([-20.0], requires_grad=True)
    streams = TokenStreams(old_logprobs=torch.tensor([-20.0]), reference_logprobs=torch.tensor([-1.0]))
    term, statistics = KlTerm(1.0, "k3")(logprobs, logprobs, streams, SEGMENTS)
    (gradient,) = torch.autograd.grad(term.sum(), logprobs)
    assert gradient.item() == pytest.approx(-19.0)
    assert not statistics["kl_to_reference"].requires_grad


def test_ratios_beyond_every_float_stay_finite() -> None:
    logprobs = torch.tensor([0.0, -500.0], requires_grad=True)
    streams = TokenStreams(
        old_logprobs=torch.tensor([-500.0, 0.0]), reference_logprobs=torch.tensor([-300.0, -300.0])
    )
    for estimator in ESTIMATORS:
        term, statistics = KlTerm(0.01, estimator)(logprobs, logprobs, streams, SEGMENTS)
        (gradient,) = torch.autograd.grad(term.sum(), logprobs)
        assert term.isfinite().all()
        assert gradient.isfinite().all()
        assert statistics["kl_to_reference"].isfinite().all()


def test_the_section_asks_for_the_reference_only_where_there_is_a_term() -> None:
    batch = random_experience(0)
    assert KlSection().probes(batch) == []
    assert KlSection().term() is None
    section = KlSection(coefficient=0.01)
    (probe,) = section.probes(batch)
    assert (probe.samples, probe.policy) == (batch.samples, "reference")
    term = section.term()
    assert term is not None
    assert term.statistics == ("kl_to_reference",)


def test_the_coefficient_scales_the_term_and_not_the_statistic() -> None:
    policy, old, reference = (logits.log_softmax(0) for logits in random_logits(1))
    streams = TokenStreams(old_logprobs=old, reference_logprobs=reference)
    one, statistic = KlTerm(1.0, "k3")(policy, policy, streams, SEGMENTS)
    small, same = KlTerm(0.01, "k3")(policy, policy, streams, SEGMENTS)
    torch.testing.assert_close(small, 0.01 * one)
    assert torch.equal(statistic["kl_to_reference"], same["kl_to_reference"])


def test_a_negative_coefficient_and_an_unknown_estimator_are_refused() -> None:
    for key, value in (("coefficient", -0.1), ("estimator", "k4")):
        with pytest.raises(ValueError, match=key):
            KlSection.model_validate({key: value})
