"""A model's shape, read from a Hugging Face ``config.json``; what cannot be represented is refused by name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.weights.families import FAMILIES, family_of


class ModelConfigError(ValueError):
    """A config.json this project cannot represent; the message names the key."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of rotary positions: low frequencies divided by `factor`, high ones left alone."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


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
            raw = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ModelConfigError(f"cannot read the model's configuration {path}: {error}") from error
        try:
            return cls.from_dict(raw)
        except ModelConfigError as error:
            raise ModelConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Interpret the keys of a config.json. Raises ModelConfigError."""
        architecture = (raw.get("architectures") or ["none"])[0]
        name = family_of(architecture)
        if name is None:
            supported = ", ".join(family.architecture for family in FAMILIES.values())
            raise ModelConfigError(f"architectures: {architecture} is not supported; supported: {supported}")
        family = FAMILIES[name]
        _refuse_unsupported(raw)
        try:
            return cls(
                family=name,
                hidden_size=raw["hidden_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=raw["num_attention_heads"],
                num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
                head_dim=_head_dim(raw, name),
                intermediate_size=raw["intermediate_size"],
                vocab_size=raw["vocab_size"],
                max_position_embeddings=raw["max_position_embeddings"],
                rope_theta=_rope_theta(raw),
                rms_norm_eps=raw["rms_norm_eps"],
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                qkv_bias=family.has("self_attention.linear_qkv.bias"),
                initializer_range=raw.get("initializer_range", 0.02),
                qk_norm=family.has("self_attention.q_layernorm.weight"),
                rope_scaling=_rope_scaling(raw),
                experts=_experts(raw) if family.has("mlp.router.weight") else None,
            )
        except KeyError as error:
            raise ModelConfigError(f"{error.args[0]}: missing from config.json") from None

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """Rows of the embedding as Megatron pads it: a multiple of 128 on every tensor-parallel rank."""
        unit = 128 * tensor_parallel
        return -(-self.vocab_size // unit) * unit

    @property
    def qkv_rows(self) -> int:
        """Rows of the query-key-value projection over all tensor-parallel ranks."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def _splits_a_head(self, tensor_parallel: int) -> bool:
        """Whether key-value heads are not shared out evenly; Megatron lets whole groups of ranks share one."""
        if self.num_kv_heads >= tensor_parallel:
            return self.num_kv_heads % tensor_parallel != 0
        return tensor_parallel % self.num_kv_heads != 0 or self.qkv_rows % tensor_parallel != 0

    def layout_faults(
        self, *, tensor_parallel: int, pipeline_parallel: int, max_sequence_length: int
    ) -> list[str]:
        """Why the model cannot be laid out so; empty when it can."""
        faults = []
        for what, size in (
            ("num_attention_heads", self.num_heads),
            *((("intermediate_size", self.intermediate_size),) if self.experts is None else ()),
        ):
            if size % tensor_parallel:
                allowed = [n for n in range(1, size + 1) if size % n == 0][:8]
                faults.append(
                    f"actor.tensor_parallel is {tensor_parallel}, which does not divide the model's {what} "
                    f"({size}); divisors: {allowed}"
                )
        if self._splits_a_head(tensor_parallel):
            faults.append(
                f"actor.tensor_parallel is {tensor_parallel}, which neither divides the model's "
                f"num_key_value_heads ({self.num_kv_heads}) nor is a multiple of it that divides the rows of its "
                f"query-key-value projection ({self.qkv_rows})"
            )
        if self.num_layers % pipeline_parallel:
            faults.append(
                f"actor.pipeline_parallel is {pipeline_parallel}, which does not divide the model's "
                f"num_hidden_layers ({self.num_layers})"
            )
        if max_sequence_length > self.max_position_embeddings:
            faults.append(
                f"rollout.max_episode_tokens is {max_sequence_length}, more than the model's "
                f"max_position_embeddings ({self.max_position_embeddings})"
            )
        return faults


def _head_dim(raw: dict[str, Any], family: str) -> int:
    if family == "qwen3":  # Hugging Face's own default there is not hidden_size / num_attention_heads
        return int(raw["head_dim"])
    return int(raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"])


def _rope(raw: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the key under which config.json speaks of rotary positions, what it says); older files use rope_scaling."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    return key, raw.get(key) or {}


def _rope_type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _rope_theta(raw: dict[str, Any]) -> float:
    return float(raw.get("rope_theta") or _rope(raw)[1].get("rope_theta") or 10000.0)


def _rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    key, rope = _rope(raw)
    if _rope_type(rope) != "llama3":
        return None
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ModelConfigError(f"{key}.{error.args[0]}: missing from config.json") from None


def _experts(raw: dict[str, Any]) -> Experts:
    if raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1:
        key = "mlp_only_layers" if raw.get("mlp_only_layers") else "decoder_sparse_step"
        raise ModelConfigError(f"{key}: {raw[key]} is not supported; every layer must be a mixture of experts")
    return Experts(
        number=raw["num_local_experts"] if "num_local_experts" in raw else raw["num_experts"],
        per_token=raw["num_experts_per_tok"],
        intermediate_size=raw["moe_intermediate_size"],
        normalise=bool(raw.get("norm_topk_prob", False)),
    )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    key, rope = _rope(raw)
    if (kind := _rope_type(rope)) not in ("default", "llama3"):
        raise ModelConfigError(f"{key}: type {kind!r} is not supported; supported: default, llama3")
    for place, factor in (("", raw), (f"{key}.", rope)):
        if factor.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelConfigError(f"{place}partial_rotary_factor: below 1 is not supported")
    if raw.get("use_sliding_window") and raw.get("sliding_window", True) is not None:
        raise ModelConfigError("use_sliding_window: true is not supported; attention here is full")
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if raw.get(key):
            raise ModelConfigError(f"{key}: {raw[key]} is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelConfigError(f"hidden_act: {raw['hidden_act']!r} is not supported; supported: silu")
