"""Which layers a model has: Transformer Engine's only where they run and compute what the engines compute."""

import importlib.util
import sys
from typing import Any

import pytest
import torch

from megatron_empg.actor import layer_spec, model, platform
from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.dtypes import dtype_of
from megatron_empg.upstream import transformer_engine
from megatron_empg.weights.mapping.model_config import ModelConfig

BOTH_PARTS = {"transformer_engine", "transformer_engine_torch"}


@pytest.fixture
def config() -> ModelConfig:
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    rest = {"intermediate_size": 96, "vocab_size": 301, "max_position_embeddings": 128, "rope_theta": 1e4}
    return ModelConfig(family="qwen2", rms_norm_eps=1e-6, tie_word_embeddings=True, qkv_bias=True, **sizes, **rest)


def install(monkeypatch: pytest.MonkeyPatch, parts: set[str], *, cuda: bool = True) -> None:
    """Let it look as if these parts of Transformer Engine, and a CUDA device, were here."""
    found = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return name in parts or None if name in BOTH_PARTS else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize(
    ("parts", "cuda", "usable"),
    [
        (BOTH_PARTS, True, True),
        (BOTH_PARTS, False, False),
        ({"transformer_engine"}, True, False),
        (set(), True, False),
    ],
)
def test_transformer_engine_wants_both_its_parts_and_a_device(
    monkeypatch: pytest.MonkeyPatch, parts: set[str], cuda: bool, usable: bool
) -> None:
    install(monkeypatch, parts, cuda=cuda)
    assert transformer_engine.available() == usable


def test_float32_has_local_layers_where_transformer_engine_is(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig
) -> None:
    platform.prepare()
    from megatron.core.models.gpt import gpt_layer_specs

    asked = []
    monkeypatch.setattr(
        gpt_layer_specs,
        "get_gpt_layer_with_transformer_engine_spec",
        lambda **_: asked.append("transformer_engine") or "fused layer",
    )
    install(monkeypatch, BOTH_PARTS)
    assert layer_spec.layer_spec(config, torch.bfloat16) == "fused layer"
    assert layer_spec.block_spec(config, torch.bfloat16) == "fused layer"
    asked.clear()
    local = layer_spec.layer_spec(config, torch.float32)
    assert local.submodules.input_layernorm is layer_spec.RMSNorm
    assert callable(layer_spec.block_spec(config, torch.float32))
    assert asked == []


@pytest.mark.parametrize(("dtype", "fused"), [("float32", False), ("bfloat16", True)])
def test_what_hangs_on_transformer_engine_follows_the_dtype_too(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig, dtype: str, fused: bool
) -> None:
    install(monkeypatch, BOTH_PARTS)
    torch_dtype = dtype_of(dtype)
    assert model._fusions(torch_dtype)["apply_rope_fusion"] == fused
    assert model.context_exchanges(torch_dtype)[0] == ("p2p" if fused else "all_gather")
    other = ActorConfig(context_parallel=2, context_exchange="all_gather" if fused else "p2p")
    with pytest.raises(ValueError, match=f"in {dtype}; it can do"):
        model.transformer_config(config, other, torch_dtype)


def test_a_half_installed_transformer_engine_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron catches that one; the package itself would answer with a FileNotFoundError."""
    install(monkeypatch, {"transformer_engine"})
    monkeypatch.setitem(sys.modules, "transformer_engine", sys)  # forgotten with the patch
    transformer_engine.hide_half_installed()
    with pytest.raises(ImportError):
        importlib.import_module("transformer_engine")
    with pytest.raises(ImportError):
        importlib.import_module("transformer_engine.pytorch")


def test_float32_products_stay_float32_whatever_was_chosen_before() -> None:
    torch.set_float32_matmul_precision("high")
    platform.prepare()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("dtype", "recompute", "warns"),
    [("bfloat16", "selective", True), ("float32", "selective", False), ("bfloat16", "full", False)],
)
def test_recomputing_attention_that_keeps_nothing_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dtype: str, recompute: str, warns: bool
) -> None:
    install(monkeypatch, BOTH_PARTS)
    assert model._recompute_settings(ActorConfig(recompute=recompute), dtype_of(dtype))
    assert ("actor.recompute=selective" in caplog.text) == warns
