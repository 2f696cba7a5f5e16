"""A model's shape, read from a Hugging Face ``config.json``; what is not understood is refused by name."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.json_files import JsonFileError, read_object
from megatron_empg.weights.mapping.config_keys import key_fault
from megatron_empg.weights.mapping.families import FAMILIES, Family, family_of
from megatron_empg.weights.mapping.known_models import how_to_get
from megatron_empg.weights.mapping.model_sizes import ModelSizes, SizeFault
from megatron_empg.weights.mapping.rope_config import RopeConfigError, RopeScaling, rope_scaling, rope_theta

__all__ = ["Experts", "ModelConfig", "ModelConfigError", "RopeScaling"]


class ModelConfigError(EmpgError, ValueError):
    """A config.json this project cannot represent; the message names the key."""

    exit_code = 2


@dataclass(frozen=True)
class Experts:
    """The mixture of experts that stands in the place of every layer's MLP."""

    number: int
    per_token: int
    intermediate_size: int
    normalise: bool
    """Whether the weights of a token's experts are scaled to sum to 1."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer with RMSNorm, rotary positions and gated SiLU MLPs."""

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    initializer_range: float = 0.02
    qk_norm: bool = False
    """Whether queries and keys are normalised, head by head."""
    rope_scaling: RopeScaling | None = None
    experts: Experts | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelConfig":
        """Read ``folder/config.json``. Raises ModelConfigError naming what is missing or unsupported."""
        path = Path(folder) / "config.json"
        try:
            raw = read_object(path)
        except JsonFileError as error:
            fix = ""
            if not path.exists():
                fix = f"; {how_to_get(Path(folder))}"
            raise ModelConfigError(f"{error}{fix}") from error
        try:
            return cls.from_dict(raw)
        except ModelConfigError as error:
            raise ModelConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Interpret the keys of a config.json, all of them. Raises ModelConfigError."""
        name = _family(raw)
        family = FAMILIES[name]
        with_experts = family.has("mlp.router.weight")
        if fault := key_fault(raw, experts=with_experts):
            raise ModelConfigError(fault)
        _refuse_partial_attention(raw, family)
        try:
            theta, scaling = rope_theta(raw), rope_scaling(raw)
        except RopeConfigError as error:
            raise ModelConfigError(str(error)) from None
        heads = _count(raw, "num_attention_heads")
        config = cls(
            family=name,
            hidden_size=_count(raw, "hidden_size"),
            num_layers=_count(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_count(raw, "num_key_value_heads", default=heads),
            head_dim=_head_dim(raw, family, heads),
            intermediate_size=_count(raw, "intermediate_size"),
            vocab_size=_count(raw, "vocab_size"),
            max_position_embeddings=_count(raw, "max_position_embeddings"),
            rope_theta=theta,
            rms_norm_eps=_number(raw, "rms_norm_eps"),
            tie_word_embeddings=_switch(raw, "tie_word_embeddings"),
            qkv_bias=family.has("self_attention.linear_qkv.bias"),
            initializer_range=_number(raw, "initializer_range", default=0.02),
            qk_norm=family.has("self_attention.q_layernorm.weight"),
            rope_scaling=scaling,
            experts=_experts(raw) if with_experts else None,
        )
        if config.num_heads % config.num_kv_heads:
            raise ModelConfigError(
                f"num_key_value_heads: {config.num_kv_heads} does not divide num_attention_heads "
                f"({config.num_heads})"
            )
        return config

    @property
    def sizes(self) -> ModelSizes:
        """The dimensions of the model's tensors."""
        experts = expert_inner = 0
        if self.experts:
            experts, expert_inner = self.experts.number, self.experts.intermediate_size
        return ModelSizes(
            layers=self.num_layers,
            vocabulary=self.vocab_size,
            hidden=self.hidden_size,
            head=self.head_dim,
            q=self.num_heads * self.head_dim,
            kv=self.num_kv_heads * self.head_dim,
            inner=self.intermediate_size,
            experts=experts,
            expert_inner=expert_inner,
        )

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """Rows of the embedding as Megatron pads it: a multiple of 128 on every tensor-parallel rank."""
        return self.sizes.padded_vocabulary(tensor_parallel)

    @property
    def qkv_rows(self) -> int:
        """Rows of the query-key-value projection over all tensor-parallel ranks."""
        return self.sizes.qkv

    def layout_faults(
        self, *, tensor_parallel: int, pipeline_parallel: int, max_sequence_length: int
    ) -> list[SizeFault]:
        """Why the model cannot be laid out so; empty when it can."""
        faults = []
        divided = [("num_attention_heads", self.num_heads)]
        if self.experts is None:
            divided.append(("intermediate_size", self.intermediate_size))
        for what, size in divided:
            if size % tensor_parallel:
                allowed = [n for n in range(1, size + 1) if size % n == 0][:8]
                rule = f"which does not divide the model's {what} ({size}); divisors: {allowed}"
                faults.append(SizeFault("tensor_parallel", tensor_parallel, rule))
        if self._splits_a_head(tensor_parallel):
            rule = (
                f"which neither divides the model's num_key_value_heads ({self.num_kv_heads}) nor is a multiple "
                f"of it that divides the rows of its query-key-value projection ({self.qkv_rows})"
            )
            faults.append(SizeFault("tensor_parallel", tensor_parallel, rule))
        if self.num_layers % pipeline_parallel:
            rule = f"which does not divide the model's num_hidden_layers ({self.num_layers})"
            faults.append(SizeFault("pipeline_parallel", pipeline_parallel, rule))
        if max_sequence_length > self.max_position_embeddings:
            rule = f"more than the model's max_position_embeddings ({self.max_position_embeddings})"
            faults.append(SizeFault("max_sequence_length", max_sequence_length, rule))
        return faults

    def _splits_a_head(self, tensor_parallel: int) -> bool:
        """Whether key-value heads are not shared out evenly; Megatron lets whole groups of ranks share one."""
        if self.num_kv_heads >= tensor_parallel:
            return self.num_kv_heads % tensor_parallel != 0
        return tensor_parallel % self.num_kv_heads != 0 or self.qkv_rows % tensor_parallel != 0


def _family(raw: dict[str, Any]) -> str:
    """The family's name, by the architecture. Raises ModelConfigError."""
    given = raw.get("architectures") or ["none"]
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], str):
        raise ModelConfigError(f"architectures: {given!r} is not a list of one name")
    name = family_of(given[0])
    if name is None:
        supported = ", ".join(family.architecture for family in FAMILIES.values())
        raise ModelConfigError(f"architectures: {given[0]} is not supported; supported: {supported}")
    if raw.get("model_type", name) != name:
        raise ModelConfigError(
            f"model_type: {raw['model_type']!r} is not of the architecture {given[0]} ({name!r})"
        )
    # Code of its own may compute anything under a known name; engines and actor run none.
    classes = map(str, raw.get("auto_map") or ())
    own = sorted(name for name in classes if "Model" in name)
    if own:
        raise ModelConfigError(f"auto_map: the model brings its own code ({', '.join(own)}), which is never run")
    return name


def _refuse_partial_attention(raw: dict[str, Any], family: Family) -> None:
    """Every layer here attends to everything before it. Raises ModelConfigError."""
    window = raw.get("sliding_window", "given by default")
    if raw.get("use_sliding_window") and window is not None:
        raise ModelConfigError("use_sliding_window: true is not supported; attention here is full")
    unsaid = raw.get("use_sliding_window") is None
    if raw.get("sliding_window") is not None and family.window_is_used and unsaid:
        raise ModelConfigError(
            f"sliding_window: {window!r} is not supported; attention here is full. Where the model was trained "
            "with full attention, take the key out or set use_sliding_window to false"
        )
    types = raw.get("layer_types")
    if types is None:
        return
    if isinstance(types, list):
        other = [kind for kind in types if kind != "full_attention"]
    else:
        other = [types]
    if other:
        raise ModelConfigError(f"layer_types: {other[0]!r} is not supported; supported: full_attention")
    if len(types) != raw.get("num_hidden_layers"):
        raise ModelConfigError(
            f"layer_types: names {len(types)} layers, num_hidden_layers is {raw.get('num_hidden_layers')}"
        )


def _head_dim(raw: dict[str, Any], family: Family, heads: int) -> int:
    if family.head_dim_is_said or raw.get("head_dim") is not None:
        size = _count(raw, "head_dim")
    elif _count(raw, "hidden_size") % heads:
        raise ModelConfigError(
            f"num_attention_heads: {heads} does not divide hidden_size ({raw['hidden_size']}), and there is no "
            "head_dim"
        )
    else:
        size = _count(raw, "hidden_size") // heads
    if size % 2:
        raise ModelConfigError(f"head_dim: {size} is odd; rotary positions turn pairs")
    return size


def _experts(raw: dict[str, Any]) -> Experts:
    if raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) not in (1, None):
        key = "decoder_sparse_step"
        if raw.get("mlp_only_layers"):
            key = "mlp_only_layers"
        raise ModelConfigError(f"{key}: {raw[key]} is not supported; every layer must be a mixture of experts")
    key_of_number = "num_local_experts"
    if raw.get("num_local_experts") is None:
        key_of_number = "num_experts"
    experts = Experts(
        number=_count(raw, key_of_number),
        per_token=_count(raw, "num_experts_per_tok"),
        intermediate_size=_count(raw, "moe_intermediate_size"),
        normalise=_switch(raw, "norm_topk_prob"),
    )
    if raw.get("num_experts") not in (None, experts.number):
        raise ModelConfigError(f"num_experts: {raw['num_experts']}, but num_local_experts is {experts.number}")
    if experts.per_token > experts.number:
        raise ModelConfigError(f"num_experts_per_tok: {experts.per_token} of {experts.number} experts")
    return experts


def _count(raw: dict[str, Any], key: str, *, default: int | None = None) -> int:
    """A positive integer; null and missing are alike. Raises ModelConfigError."""
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelConfigError(f"{key}: missing from config.json")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelConfigError(f"{key}: {value!r} is not a positive integer")
    return value


def _number(raw: dict[str, Any], key: str, *, default: float | None = None) -> float:
    """A positive, finite number. Raises ModelConfigError."""
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelConfigError(f"{key}: missing from config.json")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelConfigError(f"{key}: {value!r} is not a positive number")
    return float(value)


def _switch(raw: dict[str, Any], key: str) -> bool:
    """True or false, false where it is missing. Raises ModelConfigError."""
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelConfigError(f"{key}: {value!r} is neither true nor false")
    return bool(value)
