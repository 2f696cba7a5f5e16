"""On a GPU: Transformer Engine's layers, and torch's varlen attention, score and train as Hugging Face's model."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_cases import answer, fresh_actor, policy_loss, run_cases, sequences, with_old_logprobs
from models import save_random_model
from ranks import run_ranks

pytestmark = pytest.mark.gpu


def trained(folder: Path, layers: str, dtype: str) -> dict[str, Any]:
    from megatron_empg.actor import layer_spec

    if layers == "local":
        layer_spec.transformer_engine_available = lambda: False
    actor = fresh_actor(folder, {}, dtype=dtype)
    batch = torch.load(folder / "batch.pt", weights_only=False)
    scores = actor.score(batch)
    reports = [actor.update(batch, policy_loss()) for _ in range(3)]
    assert all(report.applied for report in reports)
    return {
        "scores": torch.cat([torch.stack([s.logprobs, s.entropies]) for s in scores], dim=1),
        "loss": [report.loss for report in reports],
    }


def local_float32(folder: Path) -> dict[str, Any]:
    return trained(folder, "local", "float32")


def local_bfloat16(folder: Path) -> dict[str, Any]:
    return trained(folder, "local", "bfloat16")


def fused_bfloat16(folder: Path) -> dict[str, Any]:
    return trained(folder, "fused", "bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gpu")
    model = save_random_model(made / "model", "qwen2")
    torch.save(with_old_logprobs(model, sequences([120, 9, 38, 83, 77, 24])), made / "batch.pt")
    return made


@pytest.fixture(scope="module")
def float32(folder: Path) -> dict[str, Any]:
    return answer(run_ranks(run_cases, 1, [local_float32], str(folder)), local_float32)


def test_float32_equals_hugging_face(folder: Path, float32: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
    expected = []
    for sequence in torch.load(folder / "batch.pt", weights_only=False):
        where = sequence.predictors()
        with torch.no_grad():
            logp = model(sequence.tokens[None]).logits[0].log_softmax(-1)[where]
        chosen = logp[torch.arange(len(where)), sequence.tokens[where + 1]]
        expected.append(torch.stack([chosen, -(logp.exp() * logp).sum(-1)]))
    torch.testing.assert_close(float32["scores"].double(), torch.cat(expected, dim=1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", [local_bfloat16, fused_bfloat16])
def test_bfloat16_is_near(case: Any, folder: Path, float32: dict[str, Any]) -> None:
    if case is fused_bfloat16 and importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("Transformer Engine is not installed")
    actual = answer(run_ranks(run_cases, 1, [case], str(folder)), case)
    assert float((actual["scores"] - float32["scores"]).abs().mean()) < 0.05
    assert actual["loss"] == pytest.approx(float32["loss"], abs=0.05)
