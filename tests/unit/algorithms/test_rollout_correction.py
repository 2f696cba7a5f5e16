import math

import pytest
import torch

from megatron_empg.algorithms.rollout_correction import logprob_gap, truncated_importance_weights


def test_weights_are_ratios_up_to_the_cap_and_carry_no_gradient() -> None:
    actor = torch.tensor([-1.0, -1.0, -9.0, 600.0], requires_grad=True)
    rollout = torch.tensor([-1.0, -1.5, -1.0, 0.0])
    weights = truncated_importance_weights(actor, rollout, cap=1.5)
    assert weights.tolist() == pytest.approx([1.0, 1.5, math.exp(-8), 1.5])
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="cap is 0"):
        truncated_importance_weights(actor, rollout, cap=0)


def test_equal_policies_weigh_exactly_one() -> None:
    logprobs = -torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(truncated_importance_weights(logprobs, logprobs.clone()), torch.ones(100))


def test_gap_by_hand() -> None:
    gap = logprob_gap(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -2.0]))
    assert gap == (0.5, 1.0, 3)
    assert logprob_gap(torch.zeros(0), torch.zeros(0)) == (0.0, 0.0, 0)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_gap_that_is_no_number_exceeds_every_limit(bad: float) -> None:
    gap = logprob_gap(torch.tensor([-1.0, bad]), torch.tensor([-1.0, -1.0]))
    assert gap.mean > 1e30
    assert gap.max > 1e30
