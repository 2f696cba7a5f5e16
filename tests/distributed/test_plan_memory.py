"""The planner's memory against real ranks: storages of what they hold, and what autograd saves in an update.

Nothing is read from the process's memory. Weights, gradients and optimizer state are the distinct storages of
parameters, gradient buffers and Adam's tensors; activations are the most bytes of distinct storages, parameters
aside, that saved-tensor hooks hold at any time of a whole update under Megatron's own schedule.
"""

import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_empg.planner.memory import full_microbatch, rank_memory, saved_activations
from megatron_empg.recipe import Recipe
from megatron_empg.weights.mapping.model_config import ModelConfig
from tests.distributed.actor_cases import answer, fresh_actor, policy_loss, run_cases, sequences
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model

MICROBATCHES = 4
MODELS = ("qwen2", "qwen2-untied", "qwen2-one-group", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class Case:
    """One model in one layout, by the recipe's keys."""

    actor: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen2-untied"
    dtype: str = "bfloat16"

    @property
    def __name__(self) -> str:
        return " ".join([self.model, self.dtype, *(f"{key}={value}" for key, value in self.actor.items())])

    def recipe(self) -> Recipe:
        """With microbatches of one or more long episodes and a shorter one."""
        return Recipe.model_validate(
            {
                "run": {"folder": "none", "steps": 1},
                "model": {"path": self.model, "dtype": self.dtype},
                "environment": {"name": "deep_search"},
                "rollout": {"groups": 8, "group_size": 2, "max_episode_tokens": 96, "max_turn_tokens": 16},
                "actor": {"max_tokens_per_microbatch": 160, **self.actor},
            }
        )

    def __call__(self, folder: Path) -> dict[str, float]:
        from megatron_empg.actor import lm_head

        recipe = self.recipe()
        actor = recipe.actor
        held = fresh_actor(
            folder,
            actor.sizes,
            model=self.model, budget=actor.max_tokens_per_microbatch, dtype=self.dtype,
            recompute=actor.recompute, recompute_layers=actor.recompute_layers,
            distributed_optimizer=actor.distributed_optimizer, context_exchange=actor.context_exchange,
        )  # fmt: skip
        # What hooks give back has lost the parameter's main_grad: the head's gradient goes by autograd here.
        lm_head._accumulates = lambda _: False
        lengths = full_microbatch(recipe).lengths
        batch = sequences([n for _ in range(MICROBATCHES * actor.data_parallel) for n in lengths])
        saved = SavedTensors(held.model)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            assert held.update(batch, policy_loss()).applied
        assert not +saved.live, "something still holds saved tensors"
        return {"activations": saved.peak, **static_bytes(held)}


class SavedTensors:
    """Bytes of distinct storages that autograd holds, and the most there have been."""

    def __init__(self, model: list[Any]) -> None:
        self.parameters = {address(p) for chunk in model for p in chunk.parameters()}
        self.live: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def pack(self, tensor: Tensor) -> Any:
        if address(tensor) in self.parameters:
            return tensor
        held, key, size = _Held(tensor.detach()), address(tensor), tensor.untyped_storage().nbytes()
        if not self.live[key]:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        self.live[key] += 1
        weakref.finalize(held, self._release, key, size)
        return held

    @staticmethod
    def unpack(held: Any) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held

    def _release(self, key: int, size: int) -> None:
        self.live[key] -= 1
        if not self.live[key]:
            self.bytes -= size


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def static_bytes(actor: Any) -> dict[str, float]:
    """Bytes of distinct storages, after an update: Adam makes its state in the first."""
    weights = [p for chunk in actor.model for p in chunk.parameters()]
    buffers = [b for chunk in actor.model for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    state: list[Tensor] = []
    for optimizer in getattr(actor.optimizer, "chained_optimizers", [actor.optimizer]):
        for group in optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                state += [parameter, *map(torch.as_tensor, optimizer.optimizer.state[parameter].values())]
    kinds = {"weights": weights, "gradients": [b.grad_data for b in buffers], "optimizer": state}
    seen: set[int] = set()
    sizes = {}
    for kind, tensors in kinds.items():
        storages = {address(t): t.untyped_storage().nbytes() for t in tensors}
        sizes[kind] = float(sum(size for key, size in storages.items() if key not in seen))
        seen |= storages.keys()
    return sizes


SP = {"tensor_parallel": 2, "sequence_parallel": True}
CP = {"context_parallel": 2}
ONE = [
    Case(),
    Case(dtype="float32"),
    Case(model="qwen3"),
    Case(model="qwen3_moe"),
    Case({"recompute": "selective"}),
    Case({"recompute": "block", "recompute_layers": 3}),
    Case({"recompute": "full"}),
    Case({"recompute": "full"}, dtype="float32"),
]
TWO = [
    Case({"tensor_parallel": 2}),
    Case(SP),
    Case({**SP, "recompute": "selective"}),
    Case(SP, "qwen2-one-group"),  # fewer key-value heads than ranks
    Case({"pipeline_parallel": 2}),
    Case({"pipeline_parallel": 2}, "qwen2"),  # tied embeddings: a second copy
    Case({"pipeline_parallel": 2, "recompute": "full"}),
    Case({"pipeline_parallel": 2, "virtual_pipeline": 2}),
    Case(CP),
    Case({**CP, "context_exchange": "a2a"}),
    Case({**CP, "recompute": "selective", "distributed_optimizer": True}),
    Case({**CP, "recompute": "full"}),
    Case({"data_parallel": 2, "distributed_optimizer": True}),
    Case({"data_parallel": 2, "distributed_optimizer": True}, dtype="float32"),
    Case({"data_parallel": 2, "distributed_optimizer": True, "expert_parallel": 2}, "qwen3_moe"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plan")
    for model in MODELS:
        save_random_model(made / model, model)
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 1, ONE, str(folder))


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 2, TWO, str(folder))


def assert_predicted(case: Case, results: list[dict[str, Any]], folder: Path) -> None:
    recipe, config = case.recipe(), ModelConfig.from_folder(folder / case.model)
    batch = full_microbatch(recipe)
    for rank in range(len(results)):
        measured = answer(results, case, rank)
        stage = rank if recipe.actor.pipeline_parallel > 1 else 0
        predicted = rank_memory(recipe, config, stage, spec="local", device="cpu")
        for kind in ("weights", "gradients", "optimizer"):
            assert getattr(predicted, kind) == pytest.approx(measured[kind], rel=0.02), (rank, kind)
        saved = saved_activations(recipe, config, stage, batch, MICROBATCHES, "local")
        assert saved == pytest.approx(measured["activations"], rel=0.15), rank


@pytest.mark.parametrize("case", ONE, ids=lambda case: case.__name__)
def test_one_rank(case: Case, one: list[dict[str, Any]], folder: Path) -> None:
    assert_predicted(case, one, folder)


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.__name__)
def test_two_ranks(case: Case, two: list[dict[str, Any]], folder: Path) -> None:
    assert_predicted(case, two, folder)
