"""The policy as it was at the start, kept on the CPU and swapped in when its log-probs are wanted."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_empg.actor.actor import Actor


class FrozenReference:
    """A copy of this rank's weights; costs no device memory until it is swapped in."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        actor.settle()
        self._parameters = [p for chunk in actor.model for p in chunk.parameters()]
        self._frozen = [p.detach().cpu().clone() for p in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model is the reference; afterwards it is itself again, bit for bit."""
        self._actor.settle()
        current = [p.detach().cpu().clone() for p in self._parameters]
        self._fill(self._frozen)
        try:
            yield
        finally:
            self._fill(current)

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
