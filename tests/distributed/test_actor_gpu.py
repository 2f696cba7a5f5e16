"""On a GPU: the actor scores and trains as Hugging Face's model, in both dtypes, and goes on from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_empg.actor import platform
from tests.distributed.actor_cases import (
    answer,
    assert_same,
    fresh_actor,
    optimizer_tensors,
    policy_loss,
    run_cases,
    sequences,
    weights_of,
    with_old_logprobs,
)
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model

pytestmark = pytest.mark.gpu
LENGTHS = [120, 9, 38, 83, 77, 24]
OVERLAPPING = {"distributed_optimizer": True, "overlap": True}


def batch_in(folder: Path) -> list[Any]:
    return torch.load(folder / "batch.pt", weights_only=False)


def trained(folder: Path, dtype: str) -> dict[str, Any]:
    actor, batch = fresh_actor(folder, {}, dtype=dtype), batch_in(folder)
    scores = actor.score(batch)
    reports = [actor.update(batch, policy_loss()) for _ in range(3)]
    assert all(report.applied for report in reports)
    return {
        "scores": torch.cat([torch.stack([s.logprobs, s.entropies]) for s in scores], dim=1),
        "loss": [report.loss for report in reports],
    }


def float32(folder: Path) -> dict[str, Any]:
    """Where something before has asked for TF32, and with Transformer Engine where that is installed."""
    torch.set_float32_matmul_precision("high")
    return trained(folder, "float32")


def local_bfloat16(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "transformer_engine_available", lambda: False)
        return trained(folder, "bfloat16")


def fused_bfloat16(folder: Path) -> dict[str, Any]:
    return trained(folder, "bfloat16")


def products_of_float32(folder: Path) -> float:
    """Largest error of a linear layer of the actor, relative to the largest output."""
    actor = fresh_actor(folder, {})
    linear = actor.model[0].module.decoder.layers[0].mlp.linear_fc1
    with torch.no_grad():
        hidden = torch.randn(256, 1, linear.weight.shape[1], device="cuda")
        actual = linear(hidden)[0].double()
        expected = hidden.double() @ linear.weight.double().t()
    return float((actual - expected).abs().max() / expected.abs().max())


def resumed_float32(folder: Path) -> None:
    check_resumed(folder, "float32", distributed_optimizer=False)


def resumed_bfloat16(folder: Path) -> None:
    check_resumed(folder, "bfloat16", **OVERLAPPING)


def check_resumed(folder: Path, dtype: str, **settings: Any) -> None:
    """A checkpoint brings back what was saved, bit for bit, though training went on while it was written."""
    from megatron_empg.actor.checkpoint import Checkpoints

    batch, root = batch_in(folder), folder / f"checkpoints_{dtype}"
    actor = fresh_actor(folder, {}, dtype=dtype, **settings)
    for _ in range(2):
        actor.update(batch, policy_loss())
    saver = Checkpoints(actor, root, keep=1)
    saver.save(2)
    saved = weights_of(actor), optimizer_tensors(actor)
    expected = actor.update(batch, policy_loss())
    saver.wait()
    del actor, saver
    resumed = fresh_actor(folder, {}, seed=99, dtype=dtype, **settings)
    resumed.initialise_weights(5)
    assert Checkpoints(resumed, root, keep=1).load_newest() == 2
    assert_same(weights_of(resumed), saved[0])
    assert_same(optimizer_tensors(resumed), saved[1])
    again = resumed.update(batch, policy_loss())
    tolerance = 1e-5 if dtype == "float32" else 1e-2  # GPU kernels sum in no fixed order
    assert again.loss == pytest.approx(expected.loss, abs=tolerance)
    assert again.grad_norm == pytest.approx(expected.grad_norm, rel=100 * tolerance)


def settled_for_other_streams(folder: Path) -> None:
    """After `settle` any stream may read the parameters: nothing is under way on the actor's own."""
    actor = fresh_actor(folder, {}, dtype="bfloat16", **OVERLAPPING)
    other = torch.cuda.Stream()
    for _ in range(3):
        actor.update(batch_in(folder), policy_loss())
        actor.settle()
        assert torch.cuda.current_stream().query(), "settle returned before its work was done"
        with torch.cuda.stream(other):
            seen = {name: tensor.clone() for name, tensor in actor.weights()}
        other.synchronize()
        assert_same(seen, weights_of(actor))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gpu")
    model = save_random_model(made / "model", "qwen2")
    torch.save(with_old_logprobs(model, sequences(LENGTHS)), made / "batch.pt")
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> list[dict[str, Any]]:
    cases = [
        float32,
        products_of_float32,
        local_bfloat16,
        resumed_float32,
        resumed_bfloat16,
        settled_for_other_streams,
    ]
    if platform.transformer_engine_available():
        cases.append(fused_bfloat16)
    return run_ranks(run_cases, 1, cases, str(folder))


def test_float32_equals_hugging_face(folder: Path, one: list[dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
    expected = []
    for sequence in batch_in(folder):
        where = sequence.predictors()
        with torch.no_grad():
            logp = model(sequence.tokens[None]).logits[0].log_softmax(-1)[where]
        chosen = logp[torch.arange(len(where)), sequence.tokens[where + 1]]
        expected.append(torch.stack([chosen, -(logp.exp() * logp).sum(-1)]))
    scores = answer(one, float32)["scores"]
    torch.testing.assert_close(scores.double(), torch.cat(expected, dim=1), atol=1e-4, rtol=0)


def test_float32_products_are_not_those_of_tf32(one: list[dict[str, Any]]) -> None:
    assert answer(one, products_of_float32) < 1e-5  # TF32: 3e-4


@pytest.mark.parametrize("case", [local_bfloat16, fused_bfloat16])
def test_bfloat16_is_near(case: Any, one: list[dict[str, Any]]) -> None:
    if case is fused_bfloat16 and not platform.transformer_engine_available():
        pytest.skip("Transformer Engine is not installed")
    actual, exact = answer(one, case), answer(one, float32)
    assert float((actual["scores"] - exact["scores"]).abs().mean()) < 0.05
    assert actual["loss"] == pytest.approx(exact["loss"], abs=0.05)


@pytest.mark.parametrize("case", [resumed_float32, resumed_bfloat16])
def test_training_goes_on_from_a_checkpoint(case: Any, one: list[dict[str, Any]]) -> None:
    answer(one, case)


def test_settled_weights_may_be_read_on_any_stream(one: list[dict[str, Any]]) -> None:
    answer(one, settled_for_other_streams)
