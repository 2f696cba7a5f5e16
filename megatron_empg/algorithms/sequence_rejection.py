"""A correction that rejects whole samples on which engine and actor disagree, and leaves the others alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from megatron_empg.algorithms.rollout_correction import (
    RatioBound,
    inside,
    log_ratios,
    over_samples,
    rejected,
    require_interval,
)
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Section

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, TokenWeights

Measure = Literal["product", "geometric_mean"]
BOUNDS: dict[Measure, tuple[float, float]] = {"product": (0.5, 2.0), "geometric_mean": (0.99, 1.01)}
"""Low and high where nothing else is said."""


class SequenceRejection(Section):
    """A sample's tokens weigh 1 where the measure of its ratios actor / engine is in bounds, else 0."""

    name: Literal["sequence_rejection"] = "sequence_rejection"
    measure: Measure = "geometric_mean"
    """geometric_mean: of the sample's token ratios, whatever its length; product: of them all, the ratio of the
    whole sample. (Default chosen here: the product of thousands of tokens is seldom in bounds.)"""
    low: RatioBound | None = None
    """A sample of smaller measure is rejected; null: 0.99 for geometric_mean, 0.5 for product. (Released code.)"""
    high: RatioBound | None = None
    """A sample of greater measure is rejected; null: 1.01 for geometric_mean, 2 for product. (Released code.)"""

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds that are used: those of the keys, else the measure's own."""
        low, high = BOUNDS[self.measure]
        return low if self.low is None else self.low, high if self.high is None else self.high

    @model_validator(mode="after")
    def _interval(self) -> SequenceRejection:
        require_interval(*self.bounds)
        return self

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> TokenWeights:
        """Weigh every token of a sample by 1 or 0. Raises ValueError where a log-prob is not finite."""
        measured = over_samples(log_ratios(logprobs, experience), experience, self.measure)
        return rejected(torch.ones_like(measured), inside(measured, *self.bounds), experience, logprobs.dtype)
