"""A training process as it is started, over ranks that share and overlap their parameters' gathering.

Only the driver and the engines are stood in for: load, join, publish, steps, evaluation, checkpoint, export and
resume are the ones of a run.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.distributed.recorded_batches import recorded_batch
from tests.support.models import save_random_model

LAYOUTS = {
    "data": {"data_parallel": 2},
    "context": {"context_parallel": 2},
    "data-and-tensor": {"data_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True},
}
ENGINE = "http://engine:1"


def recipe(folder: Path, layout: dict[str, Any], steps: int) -> Any:
    from megatron_empg.recipe import parse_recipe

    return parse_recipe({
        "run": {"folder": str(folder / "run"), "steps": steps, "seed": 3, "checkpoint_every": 1},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "environment": {"name": "deep_search"},
        "rollout": {"groups": 4, "group_size": 2, "max_turn_tokens": 30, "max_episode_tokens": 64},
        "actor": {"max_tokens_per_microbatch": 128, "distributed_optimizer": True, "overlap": True,
                  "optimizer": {"lr": 1e-3}, **layout},
        "algorithm": {"updates_per_batch": 2, "kl": {"coefficient": 0.01}},
        "evaluation": {"questions": 4, "every": 1},
        "limits": {"logprob_gap": 100.0},
        "logging": {"tensorboard": False, "episodes_per_step": 1},
    })  # fmt: skip


class Engines:
    """Takes weights as engines do, and plays recorded batches under the version it was given last."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.weights: dict[str, torch.Tensor] = {}

    def connect(self, source: Any, seconds: float) -> None:
        self.names = [name for name, _, _ in source.metadata()]

    def publish(self, source: Any, version: int, seconds: float) -> None:
        self.weights = {name: tensor.clone() for name, tensor in source}
        assert list(self.weights) == self.names
        self.versions.append(version)

    def hold(self, urls: list[str], version: int) -> None:
        """The rollout service is told of what `publish` has sent."""
        assert (list(urls), version) == ([ENGINE], self.versions[-1])

    def held(self, *_: Any) -> str:
        """What an engine says of its weights."""
        return str(self.versions[-1]) if self.versions else "default"

    def rollout(self, step: int) -> bytes:
        return recorded_batch(step, self.versions[-1]).to_bytes(1)

    def probe(self) -> int:
        return 0

    def evaluate(self, split: str, greedy: bool) -> Any:
        from megatron_empg.rollout.service.evaluation import Evaluation

        return Evaluation(split, greedy, 0.5, questions=4, errors=0, seconds=0.0)


def trained(folder: str, layout: dict[str, Any], steps: int) -> dict[str, Any]:
    """`worker.train`, from the newest checkpoint on; what rank 0's engines got."""
    from megatron_empg.actor import platform
    from megatron_empg.common import http
    from megatron_empg.rollout.service import client as driver_client
    from megatron_empg.trainer import worker
    from megatron_empg.weights.sync import held_version, transfer

    platform.prepare()
    engines = Engines()
    driver_client.RolloutServiceClient = lambda *_, **__: engines  # type: ignore[assignment, misc]
    http.wait_until_healthy = lambda *_, **__: None  # type: ignore[assignment]
    held_version.held_version = engines.held
    transfer.WeightPublisher = lambda *_, **__: engines  # type: ignore[assignment, misc]
    worker.train(recipe(Path(folder), layout, steps), "http://driver:1", [ENGINE])
    return {"versions": engines.versions, "weights": {n: t.numpy() for n, t in engines.weights.items()}}


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_goes_from_loading_to_export_and_on(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    from safetensors.torch import load_file

    from megatron_empg.recipe import dump_recipe
    from megatron_empg.run.folder import RunFolder
    from megatron_empg.run.metrics import read_metrics

    monkeypatch.setenv("EMPG_TOKEN", "t" * 32)
    save_random_model(tmp_path / "model", "qwen2")
    folder = RunFolder(tmp_path / "run")
    folder.open(dump_recipe(recipe(tmp_path, LAYOUTS[name], 3)))
    ranks = 4 if name == "data-and-tensor" else 2
    started = run_ranks(trained, ranks, str(tmp_path), LAYOUTS[name], 2)
    resumed = run_ranks(trained, ranks, str(tmp_path), LAYOUTS[name], 3)
    folder.close()

    assert [rank["versions"] for rank in started] == [[0, 1, 2]] * ranks
    assert [rank["versions"] for rank in resumed] == [[2, 3]] * ranks
    exported = load_file(folder.root / "policy/model.safetensors")
    start = load_file(tmp_path / "model/model.safetensors")
    for tensor, published in resumed[0]["weights"].items():
        assert torch.equal(exported[tensor], torch.from_numpy(published)), tensor
    assert any(not torch.equal(exported[tensor], start[tensor]) for tensor in exported)
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all({"eval/test_id/sampled", "eval/test_ood/greedy"} <= line.keys() for line in lines)
    assert all(line["train/idle"] == 0.0 for line in lines[1:])
    assert {"policy/ratio", "policy/kl_to_reference", "policy/update_entropy"} <= lines[1].keys()
    assert len(list(folder.episodes.glob("*.jsonl"))) == 3
