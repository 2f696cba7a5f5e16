"""Hugging Face's tensors and Megatron's: there and back without loss; faulty folders are named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_empg.weights.checkpoints.hugging_face import CheckpointError, HuggingFaceReader, write_folder
from megatron_empg.weights.mapping.initialise import random_tensors
from megatron_empg.weights.mapping.mappings import GateUp, Qkv, Replicated
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping
from megatron_empg.weights.mapping.parameters import parameter_table
from tests.support.models import save_random_model

SHAPES = ("qwen2", "qwen2-untied", "llama")


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    save_random_model(made, request.param)
    return made


def read_all(folder: Path) -> tuple[ModelConfig, list[tuple[ParameterMapping, list[Tensor]]]]:
    config = ModelConfig.from_folder(folder)
    with HuggingFaceReader(folder, config) as reader:
        return config, [(parameter, reader.read(parameter)) for parameter in parameter_table(config)]


def test_every_tensor_of_the_folder_is_of_exactly_one_parameter(folder: Path) -> None:
    config = ModelConfig.from_folder(folder)
    names = [name for parameter in parameter_table(config) for name in parameter.hf]
    assert len(set(names)) == len(names)
    assert set(names) == set(load_file(folder / "model.safetensors"))
    megatron = [parameter.megatron for parameter in parameter_table(config)]
    assert len(set(megatron)) == len(megatron)


def test_split_inverts_merge(folder: Path) -> None:
    _, table = read_all(folder)
    for parameter, tensors in table:
        full = parameter.merge(tensors)
        assert tuple(full.shape) == parameter.full_shape, parameter.megatron
        back = parameter.split(full)
        assert len(back) == len(tensors) == len(parameter.hf), parameter.megatron
        for before, after in zip(tensors, back, strict=True):
            assert torch.equal(before, after), parameter.megatron


@pytest.mark.parametrize("parallel_size", [1, 2])
def test_unshard_inverts_shard(folder: Path, parallel_size: int) -> None:
    config, table = read_all(folder)
    for parameter, tensors in table:
        full = parameter.merge(tensors)
        shards = [parameter.shard(full, parallel_size, rank) for rank in range(parallel_size)]
        back = parameter.unshard(shards)
        if parameter.padded:
            assert len(back) == config.padded_vocab_size(parallel_size)
            assert (back[config.vocab_size :] == 0).all()
            back = back[: config.vocab_size]
        else:
            together = sum(shard.numel() for shard in shards)
            copies = parallel_size if isinstance(parameter, Replicated) else 1
            assert together == full.numel() * copies, parameter.megatron
        assert torch.equal(back, full), parameter.megatron


def test_a_rank_holds_whole_heads_with_their_keys_and_values() -> None:
    """Queries, keys and values of a group lie together, so that a rank's shard is heads of its own."""
    folder = ModelConfig("llama", 8, 1, 4, 2, 2, 6, 10, 32, 1e4, 1e-6, False, False)
    parameter = next(parameter for parameter in parameter_table(folder) if isinstance(parameter, Qkv))
    q, k, v = (torch.arange(n).float()[:, None].expand(n, 8) + 100 * i for i, n in enumerate((8, 4, 4)))
    shard = parameter.shard(parameter.merge([q, k, v]), 2, 1)
    assert shard[:, 0].tolist() == [4, 5, 6, 7, 102, 103, 202, 203]


def test_gate_and_up_are_sharded_alike() -> None:
    config = ModelConfig("llama", 8, 1, 4, 2, 2, 6, 10, 32, 1e4, 1e-6, False, False)
    parameter = next(parameter for parameter in parameter_table(config) if isinstance(parameter, GateUp))
    gate, up = (torch.arange(6).float()[:, None].expand(6, 8) + 100 * i for i in range(2))
    shard = parameter.shard(parameter.merge([gate, up]), 2, 1)
    assert shard[:, 0].tolist() == [3, 4, 5, 103, 104, 105]


def test_random_weights_follow_from_name_and_seed(folder: Path) -> None:
    config = ModelConfig.from_folder(folder)
    for parameter in parameter_table(config):
        for tensor, again, shape in zip(
            random_tensors(parameter, config, 3),
            random_tensors(parameter, config, 3),
            parameter.shapes,
            strict=True,
        ):
            assert tuple(tensor.shape) == shape
            assert torch.equal(tensor, again)
        if not isinstance(parameter, Replicated) and not parameter.megatron.endswith("bias"):
            assert not torch.equal(
                random_tensors(parameter, config, 3)[0], random_tensors(parameter, config, 4)[0]
            )


# Faulty folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_random_model(tmp_path / "model", "qwen2")
    return tmp_path / "model"


def change(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) remove tensors; dots are written as two underscores."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_all(folder)
    assert folder.name in str(caught.value)
    return str(caught.value)


def test_a_missing_tensor_is_named(model: Path) -> None:
    change(model, model__layers__2__self_attn__k_proj__bias=None)
    assert "missing: ['model.layers.2.self_attn.k_proj.bias'], surplus: none" in refusal(model)


def test_a_surplus_tensor_is_named(model: Path) -> None:
    change(model, model__layers__4__mlp__up_proj__weight=torch.zeros(2))
    assert "missing: none, surplus: ['model.layers.4.mlp.up_proj.weight']" in refusal(model)


def test_a_misshapen_tensor_is_named(model: Path) -> None:
    change(model, model__norm__weight=torch.zeros(63))
    assert "model.norm.weight has shape [63], expected [64]" in refusal(model)


def test_a_renamed_tensor_is_recognised(model: Path) -> None:
    tensor = load_file(model / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    change(model, model__layers__1__mlp__up_proj__weight=None, model__layers__1__mlp__up_porj__weight=tensor)
    assert "model.layers.1.mlp.up_porj.weight looks like model.layers.1.mlp.up_proj.weight misnamed" in refusal(
        model
    )


def test_a_tensor_of_an_unknown_type_is_named(model: Path) -> None:
    change(model, model__norm__weight=torch.ones(64, dtype=torch.float64))
    assert "model.norm.weight is of type F64; supported: F32, BF16, F16" in refusal(model)


def test_parts_of_a_parameter_have_one_type(model: Path) -> None:
    change(model, model__layers__0__self_attn__k_proj__bias=torch.ones(32, dtype=torch.bfloat16))
    assert "model.layers.0.self_attn.k_proj.bias" in refusal(model)
    assert "differ in dtype" in refusal(model)


def test_a_tied_head_may_be_written_out(model: Path) -> None:
    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    change(model, lm_head__weight=embedding.clone())
    read_all(model)
    change(model, lm_head__weight=embedding.double().float())
    read_all(model)


@pytest.mark.parametrize("row", [0, 300])
def test_a_tied_head_that_differs_is_refused(model: Path, row: int) -> None:
    head = load_file(model / "model.safetensors")["model.embed_tokens.weight"].clone()
    head[row, 3] += 0.5
    change(model, lm_head__weight=head)
    assert "config.json says tie_word_embeddings, but lm_head.weight is another tensor" in refusal(model)
    change(model, lm_head__weight=head[:7].clone())
    assert "lm_head.weight is another tensor than model.embed_tokens.weight" in refusal(model)


def test_a_head_that_is_missing_may_be_tied(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model", "qwen2-untied")
    change(tmp_path / "model", lm_head__weight=None)
    assert "where the head is the embedding, config.json says tie_word_embeddings: true" in refusal(
        tmp_path / "model"
    )


def test_frequencies_of_old_files_are_left_out_and_said(model: Path) -> None:
    _, before = read_all(model)
    change(model, **{f"model__layers__{n}__self_attn__rotary_emb__inv_freq": torch.ones(8) for n in range(4)})
    config = ModelConfig.from_folder(model)
    with HuggingFaceReader(model, config) as reader:
        assert [note.partition(": ")[2] for note in reader.notes] == [
            "4 tensors rotary_emb.inv_freq are not read; rope_theta stands in config.json"
        ]
    _, after = read_all(model)
    assert len(before) == len(after)
    change(model, model__rotary__inv_freq=torch.ones(8))
    assert "surplus: ['model.rotary.inv_freq']" in refusal(model)


def test_experts_in_one_tensor_are_named_for_what_they_are(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model", "qwen3_moe")
    change(tmp_path / "model", model__layers__0__mlp__experts__gate_up_proj=torch.zeros(8, 64, 80))
    message = refusal(tmp_path / "model")
    assert "model.layers.0.mlp.experts.gate_up_proj holds a layer's experts in one tensor" in message
    assert "misnamed" not in message


def test_an_index_beside_a_file_it_does_not_name_is_refused(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    split_in_two(model)
    read_all(model)
    (model / "model.safetensors").write_bytes(whole)
    message = refusal(model)
    assert "both model.safetensors and model.safetensors.index.json" in message
    assert "transformers reads the first" in message


def test_transformers_reads_the_single_file_beside_an_index(model: Path) -> None:
    """What the refusal says of it."""
    from transformers import AutoModelForCausalLM

    whole = load_file(model / "model.safetensors")
    split_in_two(model)
    changed = {**whole, "model.norm.weight": torch.full((64,), 7.0)}
    save_file(changed, model / "model.safetensors", {"format": "pt"})
    norm = AutoModelForCausalLM.from_pretrained(model).model.norm.weight
    assert torch.equal(norm, changed["model.norm.weight"])


def test_an_index_may_name_the_single_file(model: Path) -> None:
    names = load_file(model / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    read_all(model)


def test_weights_of_another_format_are_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "it holds pytorch_model.bin, which are not read" in refusal(model)
    (model / "pytorch_model.bin").rename(model / "part.safetensors")
    assert "it holds part.safetensors without an index" in refusal(model)


def test_a_truncated_file_is_named(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    assert "model.safetensors is not a whole safetensors file" in refusal(model)


def test_no_weights_at_all(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(model)


def split_in_two(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: t for name, t in tensors.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_several_files_are_read_by_their_index(model: Path) -> None:
    _, before = read_all(model)
    split_in_two(model)
    _, after = read_all(model)
    for (_, one), (_, other) in zip(before, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_file_of_the_index_that_is_absent_is_named(model: Path) -> None:
    split_in_two(model)
    (model / "part-1.safetensors").unlink()
    message = refusal(model)
    assert "part-1.safetensors" in message
    assert "names files that are not there" in message


def test_a_file_without_a_tensor_that_the_index_gives_it(model: Path) -> None:
    split_in_two(model)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    was = content["weight_map"]["model.norm.weight"]
    content["weight_map"]["model.norm.weight"] = (
        "part-0.safetensors" if was.endswith("1.safetensors") else "part-1.safetensors"
    )
    index.write_text(json.dumps(content))
    assert f"index.json says that {content['weight_map']['model.norm.weight']} holds model.norm.weight" in refusal(
        model
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", ", line 1, column 2: not JSON"),
        ("[]", " holds a list"),
        ('{"weights": {}}', " is not an index of safetensors files"),
        ('{"weight_map": {"a": 1}}', " is not an index of safetensors files"),
    ],
)
def test_an_index_that_is_none(model: Path, content: str, says: str) -> None:
    (model / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" + says in refusal(model)


def test_a_large_folder_is_written_in_several_files(model: Path, tmp_path: Path) -> None:
    _, table = read_all(model)
    tensors = [(name, t) for parameter, ts in table for name, t in zip(parameter.hf, ts, strict=True)]
    write_folder(tmp_path / "written", iter(tensors), model, shard_bytes=100_000)
    files = sorted((tmp_path / "written").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert max(file.stat().st_size for file in files) < 110_000
    _, back = read_all(tmp_path / "written")
    for (_, one), (_, other) in zip(table, back, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_folder_is_replaced_as_a_whole(model: Path, tmp_path: Path) -> None:
    config, table = read_all(model)
    destination = tmp_path / "written"
    for factor in (1, 2):
        tensors = ((name, t * factor) for parameter, ts in table for name, t in zip(parameter.hf, ts, strict=True))
        write_folder(destination, tensors, model)
    _, back = read_all(destination)
    for (_, one), (_, other) in zip(table, back, strict=True):
        assert all(torch.equal(2 * a, b) for a, b in zip(one, other, strict=True))
    assert ModelConfig.from_folder(destination) == config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "written"]


def test_a_write_that_breaks_off_leaves_the_old_folder(model: Path, tmp_path: Path) -> None:
    def breaking_off():
        yield "model.norm.weight", torch.ones(64)
        raise RuntimeError("gone")

    before = (model / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match="gone"):
        write_folder(model, breaking_off(), model)
    assert (model / "model.safetensors").read_bytes() == before
