"""IcePop: a correction that leaves out the tokens on which engine and actor disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from megatron_empg.algorithms.rollout_correction import (
    RatioBound,
    bounded_ratio,
    inside,
    log_ratios,
    rejected,
    require_interval,
)
from megatron_empg.common.section import Section

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, TokenWeights


class IcePop(Section):
    """A token weighs ``actor / engine`` inside bounds and 0 outside (Ling team, 2025).

    It is masked importance sampling by tokens with bounds that forgive the actor being surer than the engine.
    """

    name: Literal["icepop"] = "icepop"
    low: RatioBound = 0.5
    """A smaller ratio weighs 0. (Default: authors' page.)"""
    high: RatioBound = 5.0
    """A greater ratio weighs 0. (Default: authors' page; some released code has 2.)"""

    @model_validator(mode="after")
    def _interval(self) -> IcePop:
        require_interval(self.low, self.high)
        return self

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> TokenWeights:
        """Raises ValueError where a log-prob is not finite."""
        log_ratio = log_ratios(logprobs, experience)
        kept = inside(log_ratio, self.low, self.high)
        return rejected(bounded_ratio(log_ratio), kept, experience, logprobs.dtype)
