"""AEM (arXiv 2605.00425): EMPG's entropy scaling of a whole response, with no bonus and no centring."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.algorithms.collectives import Group, reduce_sum
from megatron_empg.algorithms.empg import RANGE_EPS, normalized_entropy


@torch.no_grad()
def response_scale(
    entropies: Float[Tensor, "responses"],
    sets: Int[Tensor, "responses"] | None = None,
    *,
    strength: float = 1.0,
    group: Group | None = None,
) -> Float[Tensor, "responses"]:
    """``alpha = exp(-strength·H) / mean exp(-strength·H)``, to multiply any estimator's advantages with.

    ``entropies`` (nats) are means over each response's own tokens. H is min-max normalised, and the mean taken,
    over all responses of all ranks of ``group``; or, where ``sets`` names each response's set by an integer
    (its trajectory, or its question), over the responses of that set on this rank. The paper's text allows
    both readings. ``strength`` is the paper's lambda, whose value is not published. Raises ValueError for
    other shapes, entropies that are not finite, or a negative strength.
    """
    if entropies.ndim != 1 or (sets is not None and sets.shape != entropies.shape):
        given = "" if sets is None else f" and sets {tuple(sets.shape)}"
        raise ValueError(f"entropies have shape {tuple(entropies.shape)}{given}; both must be [responses]")
    if not entropies.isfinite().all():
        raise ValueError("entropies must be finite")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is {strength}; it must be a finite number of at least 0")
    if sets is None:
        scale = torch.exp(-strength * normalized_entropy(entropies, group))
        total, count = reduce_sum(torch.stack([scale.sum(), scale.new_tensor(float(len(scale)))]), group)
        return (scale / (total / count)).to(entropies.dtype)
    return _scale_by_set(entropies.double(), sets, strength).to(entropies.dtype)


def _scale_by_set(entropies: Tensor, sets: Tensor, strength: float) -> Tensor:
    _, index, counts = sets.unique(return_inverse=True, return_counts=True)
    low = entropies.new_full((len(counts),), math.inf).scatter_reduce(0, index, entropies, "amin")
    high = entropies.new_full((len(counts),), -math.inf).scatter_reduce(0, index, entropies, "amax")
    scale = torch.exp(-strength * (entropies - low[index]) / (high - low + RANGE_EPS)[index])
    mean = torch.zeros_like(low).index_add(0, index, scale) / counts
    return scale / mean[index]
