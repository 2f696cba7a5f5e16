"""Entropy-Modulated Policy Gradients (arXiv 2509.09265): one trajectory advantage becomes step advantages.

A confident step (low entropy) takes more of its trajectory's advantage, right or wrong; an uncertain one less
(self-calibrating gradient scaling, g). A step that leads to a clearer one earns a bonus (future clarity, f).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from megatron_empg.algorithms.collectives import Group, raise_together, reduce_max, reduce_sum

ROUNDING = 1e-6  # an entropy this far below zero is zero, rounded
RANGE_EPS = 1e-8  # the paper's epsilon in the min-max normalisation


class Modulation(NamedTuple):
    """What became of each step's advantage, and why: ``advantage = A·g + bonus - (mean over steps)``."""

    h_norm: Float[Tensor, "steps"]
    """Step entropy, min-max normalised over the batch: 0 is the surest step, 1 the least sure."""
    g: Float[Tensor, "steps"]
    """Scale of the trajectory advantage; its mean over the batch is 1."""
    bonus: Float[Tensor, "steps"]
    """zeta·f(H of the next step); 0 at the last step of a trajectory."""
    advantage: Float[Tensor, "steps"]
    """The final advantage of the step's tokens."""


def modulate_advantages(
    advantages: Float[Tensor, "steps"],
    entropies: Float[Tensor, "steps"],
    trajectory_ids: Int[Tensor, "steps"],
    *,
    k: float = 1.0,
    k_f: float = 1.0,
    zeta: float = 0.1,
    center: bool = True,
    group: Group | None = None,
) -> Float[Tensor, "steps"]:
    """The final step advantages of `modulation`, whose arguments and errors these are."""
    return modulation(
        advantages, entropies, trajectory_ids, k=k, k_f=k_f, zeta=zeta, center=center, group=group
    ).advantage


@torch.no_grad()
def modulation(
    advantages: Float[Tensor, "steps"],
    entropies: Float[Tensor, "steps"],
    trajectory_ids: Int[Tensor, "steps"],
    *,
    k: float = 1.0,
    k_f: float = 1.0,
    zeta: float = 0.1,
    center: bool = True,
    group: Group | None = None,
) -> Modulation:
    """Modulate trajectory advantages by step entropies (the paper's equations 5 to 8).

    ``advantages`` holds the trajectory's advantage at each of its steps, ``entropies`` (nats) the mean token
    entropy of each step; a trajectory's steps are contiguous, in order, and all on one rank. Minimum, maximum
    and means are over all steps of all ranks of ``group``: every rank must call, with no steps too. Without a
    spread of entropies (no step, one step, all equal) H_norm is 0. Computed in float64, returned in the dtype
    of ``advantages``; with k = 0, zeta = 0 and no centring they come back bit for bit.

    Raises ValueError, on every rank, for wrong shapes, non-finite values, negative entropies, trajectories
    whose steps are scattered, or a negative k.
    """
    fault = _fault(advantages, entropies, trajectory_ids, k, k_f, zeta)
    raise_together(fault, group, advantages.device)
    h_norm = normalized_entropy(entropies, group)
    scale = torch.exp(-k * h_norm)
    scale_sum, steps = reduce_sum(_sum_and_count(scale), group)
    g = scale / (scale_sum / steps)

    bonus = torch.zeros_like(h_norm)
    has_next = has_next_step(trajectory_ids)
    bonus[has_next] = zeta * torch.exp(-k_f * h_norm.roll(-1)[has_next])

    modulated = advantages.double() * g + bonus
    if center:
        total, steps = reduce_sum(_sum_and_count(modulated), group)
        modulated = modulated - total / steps
    return Modulation(*(part.to(advantages.dtype) for part in (h_norm, g, bonus, modulated)))


def normalized_entropy(entropies: Float[Tensor, "steps"], group: Group | None) -> Float[Tensor, "steps"]:
    """``(H - min) / (max - min + 1e-8)`` in float64, over the steps of all ranks of ``group``."""
    values = entropies.double()
    # One collective for both: the minimum is the maximum of the negated. A rank without steps gives -inf.
    extremes = values.new_full((2,), -math.inf)
    if len(values):
        extremes = torch.stack([(-values).max(), values.max()])
    negated_low, high = reduce_max(extremes, group)
    return (values + negated_low) / (high + negated_low + RANGE_EPS)


def has_next_step(trajectory_ids: Int[Tensor, "steps"]) -> Bool[Tensor, "steps"]:
    """True where the following step belongs to the same trajectory."""
    following = torch.zeros_like(trajectory_ids, dtype=torch.bool)
    following[:-1] = trajectory_ids[1:] == trajectory_ids[:-1]
    return following


def _sum_and_count(values: Tensor) -> Tensor:
    return torch.stack([values.sum(), values.new_tensor(float(len(values)))])


def _fault(
    advantages: Tensor, entropies: Tensor, trajectory_ids: Tensor, k: float, k_f: float, zeta: float
) -> str | None:
    """What is wrong with the input, or None."""
    for name, value, lowest in (("k", k, 0.0), ("k_f", k_f, 0.0), ("zeta", zeta, -math.inf)):
        if not (math.isfinite(value) and value >= lowest):
            return f"{name} is {value}; it must be a finite number" + (" of at least 0" if lowest == 0 else "")
    shapes = {
        "advantages": tuple(advantages.shape),
        "entropies": tuple(entropies.shape),
        "trajectory_ids": tuple(trajectory_ids.shape),
    }
    if advantages.ndim != 1 or len(set(shapes.values())) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        return f"all three must be one-dimensional over the same steps; got shapes {given}"
    if not advantages.is_floating_point() or not entropies.is_floating_point():
        return f"advantages ({advantages.dtype}) and entropies ({entropies.dtype}) must be floating point"
    if trajectory_ids.is_floating_point():
        return f"trajectory_ids have dtype {trajectory_ids.dtype}; a trajectory is named by an integer"
    return _fault_in_values(advantages, entropies, trajectory_ids)


def _fault_in_values(advantages: Tensor, entropies: Tensor, trajectory_ids: Tensor) -> str | None:
    checks = (
        ("advantages", advantages, advantages.isfinite(), "finite"),
        ("entropies", entropies, entropies.isfinite() & (entropies >= -ROUNDING), "finite and not negative"),
    )
    for name, values, good, wanted in checks:
        if not good.all():
            position = int((~good).nonzero()[0])
            return f"{name}[{position}] is {values[position].item()}; {name} must be {wanted}"
    runs = trajectory_ids.unique_consecutive()
    names, counts = runs.unique(return_counts=True)
    if len(names) < len(runs):
        scattered = names[counts > 1][0].item()
        return f"the steps of trajectory {scattered} are not contiguous in trajectory_ids"
    return None
