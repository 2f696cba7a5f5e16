"""A model's shape, read from a Hugging Face ``config.json``; what cannot be represented is refused by name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = {
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
}


class ModelConfigError(ValueError):
    """A config.json this project cannot represent; the message names the key."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer with RMSNorm, rotary positions and a gated SiLU MLP."""

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
        if architecture not in FAMILIES:
            raise ModelConfigError(
                f"architectures: {architecture} is not supported; supported: {', '.join(FAMILIES)}"
            )
        family = FAMILIES[architecture]
        _refuse_unsupported(raw)
        try:
            return cls(
                family=family,
                hidden_size=raw["hidden_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=raw["num_attention_heads"],
                num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
                head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
                intermediate_size=raw["intermediate_size"],
                vocab_size=raw["vocab_size"],
                max_position_embeddings=raw["max_position_embeddings"],
                rope_theta=_rope_theta(raw),
                rms_norm_eps=raw["rms_norm_eps"],
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                qkv_bias=family == "qwen2",
                initializer_range=raw.get("initializer_range", 0.02),
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
            ("intermediate_size", self.intermediate_size),
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


def _rope_theta(raw: dict[str, Any]) -> float:
    parameters = raw.get("rope_parameters") or {}
    return float(raw.get("rope_theta") or parameters.get("rope_theta") or 10000.0)


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ModelConfigError(f"rope_scaling: type {kind!r} is not supported; supported: default")
    if raw.get("use_sliding_window"):
        raise ModelConfigError("use_sliding_window: true is not supported; attention here is full")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ModelConfigError(f"{key}: true is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelConfigError(f"hidden_act: {raw['hidden_act']!r} is not supported; supported: silu")
