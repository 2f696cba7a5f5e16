"""The updates that are compared: each is a sum of turns' gradients, with a weight for each turn of a batch.

An update here is the gradient of one optimizer step's loss on fresh episodes, where every ratio is 1 and nothing
is clipped: the mean over own tokens of advantage times gradient of the log-prob, as the actor takes it, with the
sign of an ascent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.dapo import informative_groups
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.grpo import group_relative
from megatron_empg.algorithms.rloo import leave_one_out

Base = Literal["dapo", "grpo"]
Weights = Float[Tensor, "turns"]
TRUTH = "success"
"""The row of the policy gradient itself: reward less that of the question's other episodes, of all groups and with
no normalisation, whose mean is the gradient of the success rate."""
PLAIN = "plain"
BINS = 8

MODULATIONS: dict[str, Empg | Aem | None] = {
    PLAIN: None,
    "scaling": Empg(zeta=0.0),
    "scaling, k 3": Empg(k=3.0, zeta=0.0),
    "scaling, quantile": Empg(zeta=0.0, normalize="quantile"),
    "scaling, reversed": Empg(zeta=0.0, reverse=True),
    "bonus": Empg(k=0.0),
    "bonus, zeta 0.4": Empg(k=0.0, zeta=0.4),
    "bonus, reversed": Empg(k=0.0, reverse=True),
    "EMPG": Empg(),
    "EMPG, zeta 0.05": Empg(zeta=0.05),
    "EMPG, k 3": Empg(k=3.0),
    "EMPG, quantile": Empg(normalize="quantile"),
    "EMPG, rank": Empg(normalize="rank"),
    "EMPG, not centred": Empg(center=False),
    "EMPG, token weights": Empg(weights="token"),
    "EMPG, reversed": Empg(reverse=True),
    "AEM": Aem(),
}
BASES: tuple[Base, ...] = ("dapo", "grpo")


@dataclass(frozen=True)
class Row:
    """One of the compared updates, by its base and what modulates it, or the bin of entropy that it is cut to."""

    base: Base | None
    name: str

    @property
    def label(self) -> str:
        return self.name if self.base is None else f"{self.base}: {self.name}"


def bin_name(number: int) -> str:
    """The plain DAPO update by the turns of one bin of entropy alone, the surest first."""
    return f"bin {number}"


def rows() -> list[Row]:
    """All of them, in the order in which they are kept."""
    found = [Row(None, TRUTH)]
    for base in BASES:
        found += [Row(base, name) for name in MODULATIONS]
    return found + [Row("dapo", bin_name(number)) for number in range(BINS)]


def row_weights(
    experience: Experience, entropies: Weights, edges: Float[Tensor, "inner_edges"]
) -> Float[Tensor, "rows turns"]:
    """Of each row the weight of each turn; ``edges`` part the bins of entropy."""
    truth = leave_one_out(experience.rewards.double(), experience.groups)
    found = [truth[experience.episode_of_turn] / len(experience.rewards)]
    for base in BASES:
        found += _base_weights(experience, entropies, _kept_episodes(experience, base))
    plain_dapo = found[rows().index(Row("dapo", PLAIN))]
    bin_of_turn = torch.bucketize(entropies, edges.to(entropies.dtype))
    for number in range(BINS):
        found.append(plain_dapo.where(bin_of_turn == number, 0.0))
    return torch.stack(found)


def _kept_episodes(experience: Experience, base: Base) -> list[int]:
    if base == "grpo":
        return list(range(len(experience.rewards)))
    return informative_groups(experience.rewards, experience.groups).nonzero()[:, 0].tolist()


def _base_weights(experience: Experience, entropies: Weights, kept: list[int]) -> list[Weights]:
    """By modulation each kept turn's advantage, by the number of kept own tokens; 0 for the others."""
    turns, part = experience.turns_of(kept), experience.select(kept)
    plain = group_relative(part, normalize_std=True).turns
    found = []
    for section in MODULATIONS.values():
        advantages = plain
        if section is not None and kept:
            advantages = section.make().modulate(plain, entropies[turns], part).advantages
        weights = torch.zeros(len(entropies), dtype=torch.float64)
        weights[turns] = advantages.double() / part.turn_lengths.sum()
        found.append(weights)
    return found
