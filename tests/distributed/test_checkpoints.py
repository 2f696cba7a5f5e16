"""Checkpoints: training goes on bit-equal, in another layout too; a broken one is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from actor_cases import (
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
from models import save_random_model
from ranks import run_ranks

LENGTHS = [120, 9, 38, 83, 77, 24]


def batches(folder: Path) -> list[Any]:
    return torch.load(folder / "batches.pt", weights_only=False)


def resumed_torch_optimizer(folder: Path) -> None:
    check_resumed(folder, {"data": 2}, "torch")


def resumed_distributed_optimizer(folder: Path) -> None:
    check_resumed(folder, {"data": 2}, "distributed", distributed_optimizer=True)


def resumed_bfloat16(folder: Path) -> None:
    """The float32 main weights must come back, not the rounded ones."""
    settings = {"distributed_optimizer": True, "dtype": "bfloat16"}
    check_resumed(folder, {"data": 2}, "bfloat16", **settings)


def resumed_tensor_parallel(folder: Path) -> dict[str, Any]:
    """The same at TP=2; the checkpoint stays for one rank to load."""
    scores = check_resumed(folder, {"tensor": 2}, "tensor")
    return {"scores": scores}


def check_resumed(folder: Path, layout: dict[str, Any], name: str, **settings: Any) -> torch.Tensor:
    """Two updates, a checkpoint, two more: all bit-equal in an actor that was never there before."""
    from megatron_empg.actor import checkpoint

    settings |= {"schedule": "cosine", "warmup_steps": 1, "total_steps": 6}
    batch, root = batches(folder), folder / f"checkpoints_{name}"
    actor = fresh_actor(folder, layout, **settings)
    for _ in range(2):
        actor.update(batch, policy_loss())
    checkpoint.save(actor, root, 2, keep=2)
    assert psutil.Process().children(recursive=True) == [], "processes that would outlive a killed rank"
    scores = torch.cat([s.logprobs for s in actor.score(batch)])
    expected = go_on(actor, batch)
    del actor
    resumed = fresh_actor(folder, layout, seed=99, **settings)
    resumed.initialise_weights(5)
    checkpoint.load(resumed, root, 2)
    assert_same(go_on(resumed, batch), expected)
    return scores


def go_on(actor: Any, batch: list[Any]) -> list[torch.Tensor]:
    reports = [actor.update(batch, policy_loss()) for _ in range(2)]
    numbers = torch.tensor([[r.loss, r.grad_norm, r.lr] for r in reports], dtype=torch.float64)
    return [numbers, *weights_of(actor).values(), *optimizer_tensors(actor), torch.rand(3)]


def checkpoint_of_another_layout(folder: Path) -> torch.Tensor:
    """On one rank: what two tensor-parallel ranks saved; then another update must be possible."""
    from megatron_empg.actor import checkpoint

    actor = fresh_actor(folder, {})
    actor.initialise_weights(5)
    checkpoint.load(actor, folder / "checkpoints_tensor", 2)
    scores = torch.cat([s.logprobs for s in actor.score(batches(folder))])
    assert actor.update(batches(folder), policy_loss()).applied
    return scores


def checkpoint_faults(folder: Path) -> dict[str, str]:
    """The message for each kind of broken checkpoint, and of another model's."""
    from megatron_empg.actor import checkpoint

    actor = fresh_actor(folder, {})
    good = folder / "checkpoints_tensor"
    messages = {}
    for kind in ("truncated", "missing", "altered", "manifest", "model"):
        root = folder / f"broken_{kind}"
        shutil.copytree(good, root)
        breakers[kind](root / "step_000002")
        try:
            checkpoint.load(actor, root, 2)
        except checkpoint.CheckpointError as error:
            messages[kind] = str(error)
    return messages


def data_file(folder: Path) -> Path:
    return max((folder / "megatron").glob("*.distcp"), key=lambda path: path.stat().st_size)


def cut_short(folder: Path) -> None:
    data_file(folder).write_bytes(data_file(folder).read_bytes()[:-100])


def alter_one_byte(folder: Path) -> None:
    data = bytearray(data_file(folder).read_bytes())
    data[len(data) // 2] ^= 1
    data_file(folder).write_bytes(data)


def change_model(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["hidden_size"] = 128
    (folder / "manifest.json").write_text(json.dumps(manifest))


breakers = {
    "truncated": cut_short,
    "missing": lambda folder: data_file(folder).unlink(),
    "altered": alter_one_byte,
    "manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "model": change_model,
}

TWO_RANKS = [resumed_torch_optimizer, resumed_distributed_optimizer, resumed_bfloat16, resumed_tensor_parallel]
ONE_RANK = [checkpoint_of_another_layout, checkpoint_faults]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoints")
    model = save_random_model(made / "model", "qwen2")
    torch.save(with_old_logprobs(model, sequences(LENGTHS)), made / "batches.pt")
    return made


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 2, TWO_RANKS, str(folder))


@pytest.fixture(scope="module")
def one(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """After the two ranks, whose checkpoint it loads."""
    return run_ranks(run_cases, 1, ONE_RANK, str(folder))


@pytest.mark.parametrize(
    "case", [resumed_torch_optimizer, resumed_distributed_optimizer, resumed_bfloat16, resumed_tensor_parallel]
)
def test_resumed_training_is_bit_equal(case: Any, two: list[dict[str, Any]]) -> None:
    answer(two, case)


def test_a_checkpoint_loads_in_another_layout(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    expected = answer(two, resumed_tensor_parallel)["scores"]
    torch.testing.assert_close(answer(one, checkpoint_of_another_layout), expected, atol=1e-5, rtol=0)


def test_a_broken_checkpoint_is_named(one: list[dict[str, Any]]) -> None:
    messages = answer(one, checkpoint_faults)
    for kind in ("truncated", "missing", "altered"):
        assert ".distcp" in messages[kind], kind
        assert "step_000002" in messages[kind], kind
    assert "altered or cut short" in messages["truncated"]
    assert "is missing" in messages["missing"]
    assert "manifest.json" in messages["manifest"]
    assert "another model: ['hidden_size']" in messages["model"]
