"""The dimensions of a model's tensors, and whether ranks can share them out."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY_UNIT = 128
"""Megatron pads the embedding's rows to a multiple of this on every tensor-parallel rank."""


@dataclass(frozen=True)
class ModelSizes:
    """Dimensions by the names that the families' tables use.

    Example: Qwen2.5-7B is ``ModelSizes(layers=28, vocabulary=152064, hidden=3584, head=128, q=3584, kv=512,
    inner=18944, experts=0, expert_inner=0)``.
    """

    layers: int
    vocabulary: int
    """Rows of the embedding, not padded."""
    hidden: int
    head: int
    """Width of one attention head."""
    q: int
    """Width of all query heads together."""
    kv: int
    """Width of all key heads together, and of all value heads."""
    inner: int
    """Width of the MLP's gate, and of its up projection."""
    experts: int
    """Number of experts of a layer; 0 in a model without."""
    expert_inner: int
    """Width of one expert's gate, and of its up projection."""

    @property
    def qkv(self) -> int:
        """Rows of the query-key-value projection."""
        return self.q + 2 * self.kv

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.kv // self.head

    def shape(self, dimensions: str) -> tuple[int, ...]:
        """The sizes of named dimensions: ``"kv hidden"`` is (kv, hidden)."""
        return tuple(getattr(self, name) for name in dimensions.split())

    def padded_vocabulary(self, tensor_parallel: int) -> int:
        """Rows of the embedding as Megatron pads it: a multiple of 128 on every tensor-parallel rank."""
        unit = VOCABULARY_UNIT * tensor_parallel
        units = -(-self.vocabulary // unit)
        return units * unit


@dataclass(frozen=True)
class SizeFault:
    """A size that does not fit the model. The caller knows what its user calls that size.

    Example: ``SizeFault("tensor_parallel", 3, "which does not divide …")``; ``told("actor.tensor_parallel")`` is
    "actor.tensor_parallel is 3, which does not divide …".
    """

    size: str
    """The parameter of `megatron_empg.weights.mapping.model_config.ModelConfig.layout_faults`."""
    value: int
    rule: str
    """What the value breaks, as the end of a sentence."""

    def told(self, name: str) -> str:
        """The fault in a user's words, who knows the size by this name."""
        return f"{name} is {self.value}, {self.rule}"
