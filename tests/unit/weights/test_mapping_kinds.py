"""Kinds of mapping: classes that alone know how a parameter is merged and sharded; what all of them promise."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_empg.weights.mapping import mappings
from megatron_empg.weights.mapping.families import FAMILIES, unfused
from megatron_empg.weights.mapping.initialise import random_tensors
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping, TensorSlice
from megatron_empg.weights.mapping.parameters import parameter_table
from tests.support.models import SHAPES, save_random_model

PACKAGE = Path(__file__).resolve().parents[3] / "megatron_empg"


@pytest.fixture(scope="module", params=sorted(SHAPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder, request.param)
    return ModelConfig.from_folder(folder)


class CountingReader:
    """Tensors by name, and how many elements of them were read."""

    def __init__(self, parameter: ParameterMapping, tensors: list[Tensor]) -> None:
        self.tensors = dict(zip(parameter.hf, tensors, strict=True))
        self.elements = 0

    def __call__(self, name: str, part: TensorSlice | None) -> Tensor:
        tensor = self.tensors[name]
        if part is not None:
            tensor = tensor.narrow(part.dim, part.start, part.stop - part.start)
        self.elements += tensor.numel()
        return tensor


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_blocks_lie_where_shard_and_the_files_put_them(model: ModelConfig, ranks: int) -> None:
    """Together the ranks' blocks cover the padded tensor, and the named rows of a shard are that block."""
    for parameter in parameter_table(model):
        full = parameter.merge(random_tensors(parameter, model, 3))
        padded = torch.zeros(parameter.padded_shape(ranks))
        padded[: len(full)] = full
        found = torch.full_like(padded, torch.nan)
        for rank in range(ranks):
            shard = parameter.shard(full, ranks, rank)
            assert shard.numel() == parameter.shard_numel(ranks), parameter.megatron
            for block in parameter.blocks(ranks, rank):
                box = tuple(slice(a, a + n) for a, n in zip(block.start, block.shape, strict=True))
                found[box] = shard[slice(*block.rows)]
        assert torch.equal(found, padded), parameter.megatron


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_reads_its_shard_and_little_more(model: ModelConfig, ranks: int) -> None:
    for parameter in parameter_table(model):
        tensors = random_tensors(parameter, model, 3)
        full = parameter.merge(tensors)
        for rank in range(ranks):
            read = CountingReader(parameter, tensors)
            shard = parameter.read_shard(ranks, rank, read)
            assert torch.equal(shard, parameter.shard(full, ranks, rank)), parameter.megatron
            shares_heads = isinstance(parameter, mappings.Qkv) and model.num_kv_heads % ranks != 0
            assert shares_heads or read.elements <= shard.numel(), parameter.megatron


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_part_of_a_parameter_is_written_once(model: ModelConfig, ranks: int) -> None:
    for parameter in parameter_table(model):
        writers = [rank for rank in range(ranks) if parameter.is_written_by(rank, ranks)]
        assert len(writers) == (ranks if parameter.divided else 1), parameter.megatron


def test_layers_go_round_the_stages_and_the_rest_stands_at_the_ends() -> None:
    config = ModelConfig("llama", 8, 8, 4, 2, 2, 6, 10, 32, 1e4, 1e-6, False, False)
    stages: dict[int | str, int] = {}
    for parameter in parameter_table(config):
        where = parameter.megatron if parameter.layer is None else parameter.layer
        stages[where] = parameter.pipeline_stage(2, chunks=2)
    assert [stages[layer] for layer in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert stages["embedding.word_embeddings.weight"] == 0
    assert stages["decoder.final_layernorm.weight"] == stages["output_layer.weight"] == 1


def test_a_fused_norm_has_its_own_name_back() -> None:
    assert unfused("self_attention.linear_qkv.layer_norm_weight") == "input_layernorm.weight"
    assert unfused("mlp.linear_fc1.layer_norm_weight") == "pre_mlp_layernorm.weight"
    assert unfused("mlp.linear_fc1.weight") == "mlp.linear_fc1.weight"


def test_a_fused_name_means_one_parameter_in_all_families() -> None:
    meanings: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        for parameter in family.layer:
            if parameter.fused is not None:
                meanings.setdefault(parameter.fused, set()).add(parameter.megatron)
    assert meanings
    assert all(len(names) == 1 for names in meanings.values()), meanings


# The kinds are asked, never told apart.

OLD_KINDS = {"replicated", "vocabulary", "qkv", "gate_up"}
CLASSES = {
    name
    for name, value in vars(mappings).items()
    if isinstance(value, type) and value.__module__ == mappings.__name__
}


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_kind_of_mapping_is_compared_anywhere() -> None:
    """Neither by a string nor by its class: what differs between kinds is a method of the kind."""
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if texts & OLD_KINDS:
                    found.append(f"{path}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                if names & CLASSES:
                    found.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not found, found


def test_weights_know_no_key_of_a_recipe() -> None:
    keys = ("actor.", "engines.", "rollout.", "model.path")
    for path, tree in trees():
        if path.relative_to(PACKAGE).parts[0] != "weights":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(keys), f"{path}:{node.lineno} {node.value!r}"
