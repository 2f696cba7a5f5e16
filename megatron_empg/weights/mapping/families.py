"""One table per model family: every parameter of a layer, its Hugging Face tensors, its shapes, how it shards.

Import, export, weight sync, checkpoint conversion and the planner read these tables through
`megatron_empg.weights.mapping.parameters`.
"""

from dataclasses import dataclass

from megatron_empg.weights.mapping.mappings import ExpertGateUp, ExpertRow, GateUp, Qkv, Replicated, Row
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping


@dataclass(frozen=True)
class LayerParameter:
    """One Megatron parameter of a layer; a ``{}`` in the names is the expert's number."""

    megatron: str
    hf: tuple[str, ...]
    mapping: type[ParameterMapping]
    """How the tensors are merged and sharded."""
    shapes: tuple[str, ...]
    """Of the Hugging Face tensors, in the names of `megatron_empg.weights.mapping.model_sizes.ModelSizes`."""
    fused: str | None = None
    """Its name where Transformer Engine fuses it into the linear layer behind it; in checkpoints always."""

    @property
    def of_an_expert(self) -> bool:
        return "{}" in self.megatron

    @property
    def key(self) -> str:
        """The tensor of a Megatron checkpoint that holds it, of all layers and experts."""
        name = self.fused or self.megatron
        return f"decoder.layers.{name.replace('.{}.', '.experts.')}"


@dataclass(frozen=True)
class Family:
    """A model family: its Hugging Face architecture, its layer, and what its config.json leaves unsaid."""

    architecture: str
    layer: tuple[LayerParameter, ...]
    head_dim_is_said: bool = False
    """Whether config.json must have head_dim: the family's default is not hidden_size / num_attention_heads."""
    window_is_used: bool = False
    """Whether a sliding_window counts where config.json does not say use_sliding_window."""

    def has(self, megatron: str) -> bool:
        """Whether a layer has this parameter."""
        return any(parameter.megatron == megatron for parameter in self.layer)


_Q, _K, _V = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
_INPUT_NORM = LayerParameter(
    "input_layernorm.weight",
    ("input_layernorm.weight",),
    Replicated,
    ("hidden",),
    fused="self_attention.linear_qkv.layer_norm_weight",
)
_QKV = LayerParameter(
    "self_attention.linear_qkv.weight",
    (f"{_Q}.weight", f"{_K}.weight", f"{_V}.weight"),
    Qkv,
    ("q hidden", "kv hidden", "kv hidden"),
)
_QKV_BIAS = LayerParameter(
    "self_attention.linear_qkv.bias", (f"{_Q}.bias", f"{_K}.bias", f"{_V}.bias"), Qkv, ("q", "kv", "kv")
)
_QK_NORM = (
    LayerParameter("self_attention.q_layernorm.weight", ("self_attn.q_norm.weight",), Replicated, ("head",)),
    LayerParameter("self_attention.k_layernorm.weight", ("self_attn.k_norm.weight",), Replicated, ("head",)),
)
_PROJECTION = LayerParameter("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), Row, ("hidden q",))
_MLP = (
    LayerParameter(
        "pre_mlp_layernorm.weight",
        ("post_attention_layernorm.weight",),
        Replicated,
        ("hidden",),
        fused="mlp.linear_fc1.layer_norm_weight",
    ),
    LayerParameter(
        "mlp.linear_fc1.weight",
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        GateUp,
        ("inner hidden", "inner hidden"),
    ),
    LayerParameter("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), Row, ("hidden inner",)),
)
_EXPERTS = (
    # The router and the experts follow this norm: there is no one linear layer to fuse it with.
    LayerParameter("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), Replicated, ("hidden",)),
    LayerParameter("mlp.router.weight", ("mlp.gate.weight",), Replicated, ("experts hidden",)),
    LayerParameter(
        "mlp.experts.{}.linear_fc1.weight",
        ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"),
        ExpertGateUp,
        ("expert_inner hidden", "expert_inner hidden"),
    ),
    LayerParameter(
        "mlp.experts.{}.linear_fc2.weight",
        ("mlp.experts.{}.down_proj.weight",),
        ExpertRow,
        ("hidden expert_inner",),
    ),
)

FAMILIES: dict[str, Family] = {
    "qwen2": Family("Qwen2ForCausalLM", (_INPUT_NORM, _QKV, _QKV_BIAS, _PROJECTION, *_MLP)),
    "qwen3": Family("Qwen3ForCausalLM", (_INPUT_NORM, _QKV, *_QK_NORM, _PROJECTION, *_MLP), head_dim_is_said=True),
    "llama": Family("LlamaForCausalLM", (_INPUT_NORM, _QKV, _PROJECTION, *_MLP), window_is_used=True),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", (_INPUT_NORM, _QKV, *_QK_NORM, _PROJECTION, *_EXPERTS)),
}
"""By the name used in `ModelConfig.family`. SmolLM2 is of the Llama family."""


def family_of(architecture: str) -> str | None:
    """The name of the family with this Hugging Face architecture."""
    for name, family in FAMILIES.items():
        if family.architecture == architecture:
            return name
    return None


def unfused(name: str) -> str:
    """A layer's parameter by the tables' name, whether or not Transformer Engine fused it."""
    for family in FAMILIES.values():
        for parameter in family.layer:
            if parameter.fused == name:
                return parameter.megatron
    return name
