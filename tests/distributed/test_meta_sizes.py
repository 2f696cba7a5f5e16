"""The published sizes without their memory: each rank's model on the meta device against mapping and planner.

One process stands for each rank in turn: torch's fake process group answers at once, so that Megatron's own
parallel state and GPTModel are those of the rank. Of tensor-parallel ranks the first and the last are built.
"""

import json
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_empg.actor.config import ActorConfig
from megatron_empg.planner.memory import rank_memory
from megatron_empg.planner.shards import model_parameters
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.weights.mapping.mappings import Replicated
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping
from megatron_empg.weights.mapping.parameters import parameter_table
from tests.distributed.ranks import run_ranks

CONFIGS = Path(__file__).parents[1] / "unit/weights/configs"
RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class Case:
    """A published model in a layout by the recipe's keys, or in that of a shipped recipe."""

    model: str
    actor: dict[str, Any] = field(default_factory=dict)
    shipped: str = "deepsearch_32b"

    def recipe(self) -> Recipe:
        overrides = [f"actor.{key}={json.dumps(value)}" for key, value in self.actor.items()]
        return load_recipe(RECIPES / f"{self.shipped}.yaml", [*overrides, "rollout.max_episode_tokens=8192"])

    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(json.loads((CONFIGS / f"{self.model}.json").read_text()))

    def sampled_ranks(self) -> list[tuple[int, int]]:
        """(pipeline stage, tensor-parallel rank) of every stage and the first and last tensor-parallel rank."""
        actor = self.recipe().actor
        return [(s, t) for s in range(actor.pipeline_parallel) for t in sorted({0, actor.tensor_parallel - 1})]


def _layout(tensor: int, pipeline: int = 1, chunks: int = 1) -> dict[str, Any]:
    sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "virtual_pipeline": chunks}
    return {**sizes, "context_parallel": 1}


CASES = [
    Case("qwen2.5-7b", shipped="deepsearch_7b"),
    Case("qwen2.5-7b", _layout(2, 2)),
    Case("qwen2.5-7b", _layout(4, 2, 2)),
    Case("qwen2.5-32b"),
    Case("qwen2.5-32b", _layout(4, 2)),
    Case("qwen2.5-32b", _layout(8, 2, 2)),
    Case("qwen3-32b"),
    Case("qwen3-32b", _layout(8, 2, 2)),
    Case("llama-3-8b"),
    Case("llama-3-8b", _layout(4, 2)),
]
NAMES = [f"{case.model} {'x'.join(map(str, case.actor.values())) or 'shipped'}" for case in CASES]


def build_all(cases: list[Case]) -> list[list[dict[str, tuple[int, ...]]]]:
    """For each case and sampled rank: name and shape of every parameter of GPTModel on the meta device."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_empg.actor import layout as layouts
    from megatron_empg.actor import platform

    platform.prepare()
    from megatron.core import parallel_state

    # Beside its own groups Megatron makes some of gloo, which would wait for the other ranks.
    parallel_state.initialize_model_parallel = partial(
        parallel_state.initialize_model_parallel, create_gloo_process_groups=False
    )
    meta = torch.device("meta")
    platform.device = torch.cuda.current_device = lambda: meta  # type: ignore[assignment,return-value]
    built = []
    for case in cases:
        actor = case.recipe().actor
        shapes = []
        for stage, tensor_rank in case.sampled_ranks():
            rank = stage * actor.stage_ranks + tensor_rank
            dist.init_process_group("fake", rank=rank, world_size=actor.world_size, store=FakeStore())
            layouts.initialize(actor, seed=0)
            shapes.append(parameter_shapes(case.config(), actor))
            layouts.shutdown()
        built.append(shapes)
    return built


def parameter_shapes(config: ModelConfig, actor: ActorConfig) -> dict[str, tuple[int, ...]]:
    """Of the parameters of this rank's model chunks."""
    from megatron_empg.actor.model import _chunk, transformer_config
    from megatron_empg.actor.weights import local_parameters

    mcore = transformer_config(config, actor, torch.bfloat16)
    with torch.device("meta"):
        chunks = [_chunk(config, actor, mcore, number) for number in range(actor.virtual_pipeline)]
    parameters = local_parameters(chunks)
    assert {p.dtype for p in parameters.values()} == {torch.bfloat16}
    assert {p.device.type for p in parameters.values()} == {"meta"}
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


@pytest.fixture(scope="module")
def built() -> list[list[dict[str, tuple[int, ...]]]]:
    return run_ranks(build_all, 1, CASES)[0]


def mapped_shape(parameter: ParameterMapping, recipe: Recipe, tensor_rank: int) -> tuple[int, ...]:
    full = torch.empty(parameter.full_shape, device="meta")
    return tuple(parameter.shard(full, recipe.actor.tensor_parallel, tensor_rank).shape)


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_each_rank_holds_its_part_of_the_mapping(number: int, built: Any) -> None:
    case, recipe, config = CASES[number], CASES[number].recipe(), CASES[number].config()
    actor = recipe.actor
    for (stage, tensor_rank), shapes in zip(case.sampled_ranks(), built[number], strict=True):
        expected = {
            parameter.megatron: mapped_shape(parameter, recipe, tensor_rank)
            for parameter in parameter_table(config)
            if parameter.pipeline_stage(actor.pipeline_parallel, actor.virtual_pipeline) == stage
        }
        assert shapes == expected
        # What `empg plan` says of this rank.
        numel = sum(map(math.prod, shapes.values()))
        memory = rank_memory(recipe, config, stage)
        assert memory.weights == 2 * numel
        assert memory.gradients == 4 * numel


@pytest.mark.parametrize("model", sorted({case.model for case in CASES}))
def test_all_ranks_together_are_hugging_faces_model(model: str, built: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = json.loads((CONFIGS / f"{model}.json").read_text())
    with torch.device("meta"):
        reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    shapes = {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}
    for number, case in enumerate(CASES):
        if case.model != model:
            continue
        config, names = case.config(), set().union(*built[number])
        assert model_parameters(config) == sum(map(math.prod, shapes.values()))
        mine: dict[str, tuple[int, ...]] = {}
        for parameter in parameter_table(config):
            mine.update(zip(parameter.hf, parameter.shapes, strict=True))
        assert mine == shapes
        assert names == {parameter.megatron for parameter in parameter_table(config)}
        assert held_by_all_ranks(case, built[number]) == sum(map(math.prod, shapes.values()))


def held_by_all_ranks(case: Case, of_ranks: list[dict[str, tuple[int, ...]]]) -> int:
    """Elements of every (stage, tensor-parallel rank), copies counted once and vocabulary padding not at all."""
    config, size = case.config(), case.recipe().actor.tensor_parallel
    padding = config.padded_vocab_size(size) - config.vocab_size
    first = {
        name: shape
        for (_, tensor_rank), shapes in zip(case.sampled_ranks(), of_ranks, strict=True)
        for name, shape in shapes.items()
        if tensor_rank == 0
    }
    total = 0
    for parameter in parameter_table(config):
        copies = 1 if isinstance(parameter, Replicated) else size
        total += copies * math.prod(first[parameter.megatron])
        total -= padding * config.hidden_size if parameter.padded else 0
    return total
