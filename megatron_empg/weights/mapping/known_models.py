"""The models that shipped recipes name: where each is published, and its shape, known before it is downloaded.

The figures are those of the published config.json files (Hugging Face, Qwen/…). A model folder that is there is
always read instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """A published model. `shape`: keys of its config.json; `weight_bytes`: of all its tensors, in bfloat16."""

    hub_id: str
    weight_bytes: int
    shape: MappingProxyType[str, Any]


def _qwen(family: str, **figures: Any) -> MappingProxyType[str, Any]:
    """What every Qwen config.json says, and this one's figures."""
    architecture = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]
    common = {
        "architectures": [architecture],
        "model_type": family,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
    }
    return MappingProxyType(common | figures)


KNOWN = (
    KnownModel(
        "Qwen/Qwen2.5-32B-Instruct",
        65_527_752_704,
        _qwen(
            "qwen2",
            hidden_size=5120,
            intermediate_size=27648,
            num_hidden_layers=64,
            num_attention_heads=40,
            num_key_value_heads=8,
            vocab_size=152064,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
        ),
    ),
    KnownModel(
        "Qwen/Qwen2.5-7B-Instruct",
        15_231_233_024,
        _qwen(
            "qwen2",
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
        ),
    ),
    KnownModel(
        "Qwen/Qwen2.5-1.5B-Instruct",
        3_087_428_608,
        _qwen(
            "qwen2",
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            vocab_size=151936,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
        ),
    ),
    KnownModel(
        "Qwen/Qwen3-4B",
        8_044_936_192,
        _qwen(
            "qwen3",
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        ),
    ),
)


def known_model(folder: Path) -> KnownModel | None:
    """The published model that a folder of this name is meant to hold, as models/Qwen2.5-32B-Instruct."""
    name = folder.name.lower()
    for model in KNOWN:
        if model.hub_id.partition("/")[2].lower() == name:
            return model
    return None


def known_by_id(hub_id: str) -> KnownModel | None:
    """The model of this id on the hub, as OWNER/NAME."""
    for model in KNOWN:
        if model.hub_id.lower() == hub_id.lower():
            return model
    return None


def how_to_get(folder: Path) -> str:
    """The command that fetches the model of a folder that is not there."""
    model = known_model(folder)
    if model is None:
        return (
            "give a Hugging Face model folder: one that is there, or one downloaded as by "
            f"`hf download OWNER/NAME --local-dir {folder}` (`empg plan` needs its config.json alone)"
        )
    return f"fetch it by `hf download {model.hub_id} --local-dir {folder}`"
