"""Corrections by importance weights, actor over engine: truncated at a cap, or masked outside bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from megatron_empg.algorithms.rollout_correction import (
    Level,
    RatioBound,
    at_level,
    bounded_ratio,
    inside,
    log_ratios,
    rejected,
    require_interval,
    truncated,
)
from megatron_empg.common.section import Section

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, TokenWeights

Cap = Annotated[float, Field(ge=1, le=1e6)]


class Tis(Section):
    """Truncated importance sampling (Yao et al., 2025): a token weighs ``min(actor / engine, cap)``."""

    name: Literal["tis"] = "tis"
    cap: Cap = 2.0
    """No token weighs more. (Default: released code.)"""
    level: Level = "token"
    """token: each token has its own ratio; sequence: a sample's tokens all have the product of theirs, which is
    unbiased and varies more the longer the sample is. (Default: released code.)"""

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> TokenWeights:
        """Raises ValueError where a log-prob is not finite."""
        log_ratio = at_level(log_ratios(logprobs, experience), experience, self.level)
        beyond = log_ratio > math.log(self.cap)
        return truncated(bounded_ratio(log_ratio).clamp(max=self.cap), beyond, logprobs.dtype)


class Mis(Section):
    """Masked importance sampling (Liu et al., 2025): a token weighs ``actor / engine``, and 0 outside bounds."""

    name: Literal["mis"] = "mis"
    low: RatioBound = 0.5
    """A smaller ratio weighs 0. (Default: released code of slime and verl, the inverse of ``high``; the authors'
    page masks above ``high`` alone, which is low 0.)"""
    high: RatioBound = 2.0
    """A greater ratio weighs 0. (Default: authors' page.)"""
    level: Level = "token"
    """token: each token has its own ratio; sequence: a sample's tokens all have the product of theirs, so that a
    sample is kept or masked whole. (Default chosen here: products over thousands of tokens are seldom in bounds;
    the authors' page has sequence.)"""

    @model_validator(mode="after")
    def _interval(self) -> Mis:
        require_interval(self.low, self.high)
        return self

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> TokenWeights:
        """Raises ValueError where a log-prob is not finite."""
        log_ratio = at_level(log_ratios(logprobs, experience), experience, self.level)
        kept = inside(log_ratio, self.low, self.high)
        return rejected(bounded_ratio(log_ratio), kept, experience, logprobs.dtype)
