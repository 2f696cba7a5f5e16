"""One table per model family: every parameter of a layer, its Hugging Face tensors, its shapes, how it shards.

Import, export, weight sync and checkpoint conversion read these tables through
`megatron_empg.weights.mapping.parameters`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["replicated", "vocabulary", "row", "qkv", "gate_up"]


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter of a layer; a ``{}`` in the names is the expert's number."""

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    shapes: tuple[str, ...]
    """Of the Hugging Face tensors, in the names of `megatron_empg.weights.mapping.parameters.sizes`."""

    @property
    def of_an_expert(self) -> bool:
        return "{}" in self.megatron


@dataclass(frozen=True)
class Family:
    """A model family: its Hugging Face architecture and its layer."""

    architecture: str
    layer: tuple[Entry, ...]

    def has(self, megatron: str) -> bool:
        """Whether a layer has this parameter."""
        return any(entry.megatron == megatron for entry in self.layer)


_Q, _K, _V = (f"self_attn.{name}_proj" for name in "qkv")
_INPUT_NORM = Entry("input_layernorm.weight", ("input_layernorm.weight",), "replicated", ("hidden",))
_QKV = Entry(
    "self_attention.linear_qkv.weight",
    (f"{_Q}.weight", f"{_K}.weight", f"{_V}.weight"),
    "qkv",
    ("q hidden", "kv hidden", "kv hidden"),
)
_QKV_BIAS = Entry(
    "self_attention.linear_qkv.bias", (f"{_Q}.bias", f"{_K}.bias", f"{_V}.bias"), "qkv", ("q", "kv", "kv")
)
_QK_NORM = (
    Entry("self_attention.q_layernorm.weight", ("self_attn.q_norm.weight",), "replicated", ("head",)),
    Entry("self_attention.k_layernorm.weight", ("self_attn.k_norm.weight",), "replicated", ("head",)),
)
_PROJECTION = Entry("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), "row", ("hidden q",))
_MLP_NORM = Entry("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), "replicated", ("hidden",))
_MLP = (
    _MLP_NORM,
    Entry(
        "mlp.linear_fc1.weight",
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "gate_up",
        ("inner hidden", "inner hidden"),
    ),
    Entry("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), "row", ("hidden inner",)),
)
_EXPERTS = (
    _MLP_NORM,
    Entry("mlp.router.weight", ("mlp.gate.weight",), "replicated", ("experts hidden",)),
    Entry(
        "mlp.experts.{}.linear_fc1.weight",
        ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"),
        "gate_up",
        ("expert_inner hidden", "expert_inner hidden"),
    ),
    Entry(
        "mlp.experts.{}.linear_fc2.weight",
        ("mlp.experts.{}.down_proj.weight",),
        "row",
        ("hidden expert_inner",),
    ),
)

FAMILIES: dict[str, Family] = {
    "qwen2": Family("Qwen2ForCausalLM", (_INPUT_NORM, _QKV, _QKV_BIAS, _PROJECTION, *_MLP)),
    "qwen3": Family("Qwen3ForCausalLM", (_INPUT_NORM, _QKV, *_QK_NORM, _PROJECTION, *_MLP)),
    "llama": Family("LlamaForCausalLM", (_INPUT_NORM, _QKV, _PROJECTION, *_MLP)),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", (_INPUT_NORM, _QKV, *_QK_NORM, _PROJECTION, *_EXPERTS)),
}
"""By the name used in `ModelConfig.family`. SmolLM2 is of the Llama family."""


def family_of(architecture: str) -> str | None:
    """The name of the family with this Hugging Face architecture."""
    return next((name for name, family in FAMILIES.items() if family.architecture == architecture), None)
