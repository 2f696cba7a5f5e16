"""AEM (arXiv 2605.00425): EMPG's entropy scaling of a whole response, with no bonus and no centring.

A response is a turn here: what the policy wrote in one piece.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from megatron_empg.algorithms.base import ModulatedAdvantages, Stateless
from megatron_empg.algorithms.normalization import by_extremes, by_extremes_of_sets, fault_in
from megatron_empg.common.lazy_torch import torch, without_gradient
from megatron_empg.common.ranks import RankGroup, sum_over_ranks_
from megatron_empg.common.section import NonNegativeCoefficient, Section

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience


class Aem(Section):
    """Constants of arXiv 2605.00425, whose authors have released no code."""

    name: Literal["aem"] = "aem"
    strength: NonNegativeCoefficient = 1.0
    """The paper's lambda. Chosen here: not published."""
    set: Literal["batch", "question", "trajectory"] = "batch"
    """Over which turns entropies are normalised and the mean scale is 1: those of the whole batch, of a question's
    episodes, or of an episode. Chosen here: the paper's text allows all three readings."""

    def make(self) -> AemModulation:
        return AemModulation(self)


class AemModulation(Stateless):
    """AEM over the batches of a run."""

    def __init__(self, section: Aem) -> None:
        self.section = section

    @without_gradient
    def modulate(
        self, advantages: Float[Tensor, "turns"], entropies: Float[Tensor, "turns"], experience: Experience
    ) -> ModulatedAdvantages:
        """``A·alpha`` over the whole batch, which every rank holds. Raises ValueError for impossible values."""
        fault = _fault_in_turns(advantages, entropies, experience)
        if fault is not None:
            raise ValueError(fault)
        sets = self._sets(experience)
        h_norm = _normalized(entropies, sets)
        scale = response_scale(entropies.double(), sets, strength=self.section.strength)
        modulated = advantages.double() * scale
        dtype = advantages.dtype
        return ModulatedAdvantages(
            modulated.to(dtype),
            h_norm=h_norm.to(dtype),
            scale=scale.to(dtype),
            bonus=torch.zeros_like(advantages),
            metrics=scale_metrics(scale),
        )

    def _sets(self, experience: Experience) -> Int[Tensor, "turns"] | None:
        """The set of each turn by its number; None where all turns are one."""
        if self.section.set == "batch":
            return None
        if self.section.set == "trajectory":
            return experience.episode_of_turn
        return experience.groups[experience.episode_of_turn]


def scale_metrics(scale: Float[Tensor, "turns"]) -> dict[str, float]:
    """``aem/scale_{min,max}``, and the shares of turns with a scale above and below 1; {} without turns."""
    if not len(scale):
        return {}
    low, high = scale.aminmax()
    return {
        "aem/scale_min": float(low),
        "aem/scale_max": float(high),
        "aem/amplified_turns": float((scale > 1).double().mean()),
        "aem/damped_turns": float((scale < 1).double().mean()),
    }


@without_gradient
def response_scale(
    entropies: Float[Tensor, "responses"],
    sets: Int[Tensor, "responses"] | None = None,
    *,
    strength: float = 1.0,
    group: RankGroup | None = None,
) -> Float[Tensor, "responses"]:
    """``alpha = exp(-strength·H) / mean exp(-strength·H)``, to multiply any estimator's advantages with.

    ``entropies`` (nats) are means over each response's own tokens. H is min-max normalised, and the mean taken,
    over all responses of all ranks of ``group``; or, where ``sets`` names each response's set by an integer
    (its trajectory, or its question), over the responses of that set on this rank. The paper's text allows
    both readings. ``strength`` is the paper's lambda, whose value is not published. Raises ValueError for
    other shapes, entropies that are not finite, or a negative strength.
    """
    if entropies.ndim != 1 or (sets is not None and sets.shape != entropies.shape):
        given = ""
        if sets is not None:
            given = f" and sets {tuple(sets.shape)}"
        raise ValueError(f"entropies have shape {tuple(entropies.shape)}{given}; both must be [responses]")
    fault = fault_in("entropies", entropies)
    if fault is not None:
        raise ValueError(fault)
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is {strength}; it must be a finite number of at least 0")
    h_norm = _normalized(entropies, sets, group)
    if sets is None:
        scale = _scale(h_norm, strength, group)
    else:
        scale = _scale_by_set(h_norm, sets, strength)
    return scale.to(entropies.dtype)


def _normalized(entropies: Tensor, sets: Tensor | None, group: RankGroup | None = None) -> Tensor:
    """H over all turns of all ranks of ``group``, or over those of each set."""
    if sets is None:
        return by_extremes(entropies, group)
    names, index = sets.unique(return_inverse=True)
    return by_extremes_of_sets(entropies, index, len(names))


def _scale(h_norm: Tensor, strength: float, group: RankGroup | None) -> Tensor:
    scale = torch.exp(-strength * h_norm)
    total, count = sum_over_ranks_(torch.stack([scale.sum(), scale.new_tensor(float(len(scale)))]), group)
    return scale / (total / count)


def _scale_by_set(h_norm: Tensor, sets: Tensor, strength: float) -> Tensor:
    scale = torch.exp(-strength * h_norm)
    _, index, counts = sets.unique(return_inverse=True, return_counts=True)
    mean = h_norm.new_zeros(len(counts)).index_add(0, index, scale) / counts
    return scale / mean[index]


def _fault_in_turns(advantages: Tensor, entropies: Tensor, experience: Experience) -> str | None:
    """What is wrong with the input, or None."""
    shapes = [tuple(values.shape) for values in (advantages, entropies, experience.episode_of_turn)]
    if advantages.ndim != 1 or len(set(shapes)) > 1:
        return f"advantages have shape {shapes[0]}, entropies {shapes[1]}, turns {shapes[2]}; all must be [turns]"
    return fault_in("advantages", advantages) or fault_in("entropies", entropies, lowest=0)
