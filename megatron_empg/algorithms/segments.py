"""Means over a sample's or a turn's own tokens inside a loss, wherever its tokens lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_empg.common.lazy_torch import torch, without_gradient

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Which sample and which turn of a microbatch each of this rank's own tokens belongs to.

    Context-parallel ranks hold parts of the same samples, numbered alike; ``reduce`` adds a tensor up over them,
    in place. Every one of them must ask for the same means, in the same order.
    """

    sample_of_token: Int[Tensor, "own_tokens"]
    turn_of_token: Int[Tensor, "own_tokens"]
    samples: int
    turns: int
    reduce: Callable[[Tensor], None] | None = None

    @without_gradient
    def sample_means(
        self, values: Float[Tensor, "own_tokens"], counted: Bool[Tensor, "own_tokens"]
    ) -> Float[Tensor, "own_tokens"]:
        """The mean at each token of ``values`` over its sample's ``counted`` own tokens; without gradient.

        0 in a sample of which no token counts.
        """
        return self._means(values, counted, self.sample_of_token, self.samples)

    @without_gradient
    def turn_means(
        self, values: Float[Tensor, "own_tokens"], counted: Bool[Tensor, "own_tokens"]
    ) -> Float[Tensor, "own_tokens"]:
        """The mean at each token of ``values`` over its turn's ``counted`` own tokens; without gradient."""
        return self._means(values, counted, self.turn_of_token, self.turns)

    def _means(self, values: Tensor, counted: Tensor, index: Tensor, count: int) -> Tensor:
        sums = torch.zeros(2, count, dtype=torch.float64, device=values.device)
        sums[0].index_add_(0, index, values.detach().double().where(counted, 0.0))
        sums[1].index_add_(0, index, counted.double())
        if self.reduce is not None:
            self.reduce(sums)
        means = sums[0] / sums[1].clamp(min=1)
        return means[index].to(values.dtype)
