"""The KL of the policy to the run's initial one as a term of the loss, with the gradient that the KL has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.base import Probe
from megatron_empg.algorithms.policy_loss import LOG_RATIO_LIMIT, kl_estimate
from megatron_empg.common.section import NonNegativeCoefficient, Section

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm
    from megatron_empg.algorithms.sample import TokenStreams
    from megatron_empg.algorithms.segments import Segments

Estimator = Literal["k1", "k2", "k3"]


class KlSection(Section):
    """A term that holds the policy to the run's initial one."""

    coefficient: NonNegativeCoefficient = 0.0
    """The loss gets so many times the KL; 0 is no term, as DAPO has it (the agent papers use 0.01)."""
    estimator: Estimator = "k3"
    """By what `policy/kl_to_reference` is estimated, see `kl_estimate`. It changes no gradient. (Default chosen
    here: k3 is unbiased and never negative.)"""

    def probes(self, experience: Experience) -> list[Probe]:
        """The batch's samples by the initial policy, where there is a term."""
        if self.coefficient == 0:
            return []
        return [Probe(experience.samples, "reference")]

    def term(self) -> LossTerm | None:
        if self.coefficient == 0:
            return None
        return KlTerm(self.coefficient, self.estimator)


class KlTerm:
    """``coefficient`` times the KL(p‖q) of the policy p to the reference q, at tokens that the old policy drew.

    The value is the estimator's. The gradient is ``E_p[(log p - log q)·∇log p]``, that of the KL itself: k3
    differentiated plainly has that of KL(q‖p), and k1 has none on average. Both are multiplied by the detached
    ``p / p_old``, which makes a mean over the old policy's tokens one over p's.
    """

    weighted: bool = False

    def __init__(self, coefficient: float, estimator: Estimator) -> None:
        self.coefficient, self.estimator = coefficient, estimator
        self.statistics: tuple[str, ...] = ("kl_to_reference",)

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert streams.old_logprobs is not None
        assert streams.reference_logprobs is not None
        now = logprobs.detach()
        importance = (now - streams.old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        value = importance * kl_estimate(now, streams.reference_logprobs, self.estimator)
        slope = importance * (now - streams.reference_logprobs)
        # The last factor is 0 and has the gradient of the log-prob.
        term = value + slope * (logprobs - now)
        return self.coefficient * term, {"kl_to_reference": value}
