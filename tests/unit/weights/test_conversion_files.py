"""Conversion through files: any number of them, any order of stops, and what is wrong said by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_empg.weights.checkpoints.conversion import to_hugging_face, to_megatron, verify
from megatron_empg.weights.checkpoints.dtypes import cast
from megatron_empg.weights.checkpoints.errors import CheckpointError
from megatron_empg.weights.checkpoints.open_weights import open_weights
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import parameter_table
from tests.support.models import SHAPES, save_random_model

SMALL = 64 * 1024
"""Bytes of a file in these tests: a dozen files a model."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for shape in SHAPES:
        save_random_model(made / shape, shape, vocab_size=1003 if shape == "qwen2" else 1100)
    return made


def contents(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_folder(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_by_way_of_two_layouts(models: Path, tmp_path: Path, shape: str) -> None:
    """TP1 and TP4 pad 1100 words to 1152 and 1536 rows: none of them comes back."""
    to_megatron(models / shape, tmp_path / "one")
    to_megatron(tmp_path / "one", tmp_path / "four", tensor_parallel=4, pipeline_parallel=2, shard_bytes=SMALL)
    assert len(list((tmp_path / "four" / "megatron").glob("*.distcp"))) >= 8
    to_hugging_face(tmp_path / "four", tmp_path / "back", shard_bytes=SMALL)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 3
    assert_same_folder(tmp_path / "back", models / shape)
    assert verify(models / shape, tmp_path / "four") == len(contents(models / shape))


@pytest.mark.parametrize("shape", ["qwen2", "qwen3_moe", "llama3"])
@pytest.mark.parametrize("parallel_size", [1, 2, 4])
def test_what_a_rank_reads_is_the_shard_of_the_whole(
    models: Path, tmp_path: Path, shape: str, parallel_size: int
) -> None:
    """Of both kinds of folder, though each reads no more than the rank needs."""
    config = ModelConfig.from_folder(models / shape)
    to_megatron(models / shape, tmp_path / "megatron", tensor_parallel=2)
    with open_weights(models / shape, config) as ours, open_weights(tmp_path / "megatron", config) as theirs:
        for parameter in parameter_table(config):
            full = parameter.merge(ours.read(parameter))
            for rank in range(parallel_size):
                expected = parameter.shard(full, parallel_size, rank)
                assert torch.equal(ours.read_shard(parameter, parallel_size, rank), expected), parameter.megatron
                assert torch.equal(theirs.read_shard(parameter, parallel_size, rank), expected), parameter.megatron


def test_the_folder_loads_in_transformers(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    to_megatron(models / "qwen3_moe", tmp_path / "megatron", tensor_parallel=2)
    to_hugging_face(tmp_path / "megatron", tmp_path / "back", shard_bytes=SMALL)
    one, other = (AutoModelForCausalLM.from_pretrained(f) for f in (models / "qwen3_moe", tmp_path / "back"))
    for (name, before), (_, after) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(before, after), name


# Interruption


class Stopped(Exception):
    """Stands in for a machine that goes away."""


@pytest.mark.parametrize("convert", [to_megatron, to_hugging_face])
def test_an_interrupted_conversion_goes_on(models: Path, tmp_path: Path, convert: Callable[..., None]) -> None:
    def stop_half_way(done: int, total: int) -> None:
        if done > total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        convert(models / "qwen2", tmp_path / "out", shard_bytes=SMALL, progress=stop_half_way)
    assert not (tmp_path / "out").exists()
    aside = tmp_path / "out.writing"
    before = {
        path: path.stat().st_mtime_ns for path in aside.rglob("*") if path.suffix in {".distcp", ".safetensors"}
    }
    assert len(before) >= 3
    convert(models / "qwen2", tmp_path / "out", shard_bytes=SMALL)
    kept = [
        path
        for path, at in before.items()
        if (tmp_path / "out" / path.relative_to(aside)).stat().st_mtime_ns == at
    ]
    assert len(kept) >= len(before) - 1  # the file that was being written is written again
    verify(models / "qwen2", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    # with another choice nothing is kept
    with pytest.raises(Stopped):
        convert(models / "qwen2", tmp_path / "again", shard_bytes=SMALL, progress=stop_half_way)
    convert(models / "qwen2", tmp_path / "again", shard_bytes=SMALL, dtype=torch.bfloat16)
    config = ModelConfig.from_folder(models / "qwen2")
    with open_weights(tmp_path / "again", config) as reader:
        assert {reader.dtype(parameter) for parameter in reader.table} == {torch.bfloat16}


# Element types


def test_another_dtype(models: Path, tmp_path: Path) -> None:
    to_megatron(models / "qwen2", tmp_path / "megatron", dtype=torch.bfloat16, tensor_parallel=2)
    to_hugging_face(tmp_path / "megatron", tmp_path / "back")
    for name, tensor in contents(tmp_path / "back").items():
        assert torch.equal(tensor, contents(models / "qwen2")[name].bfloat16()), name
    verify(models / "qwen2", tmp_path / "megatron")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_export_says_its_own_dtype(models: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    to_megatron(models / "llama", tmp_path / "megatron", dtype=dtype)
    to_hugging_face(models / "llama", tmp_path / "direct", dtype=dtype)
    to_hugging_face(tmp_path / "megatron", tmp_path / "back", like=models / "llama")
    for folder in ("megatron", "direct", "back"):
        said = json.loads((tmp_path / folder / "config.json").read_text())
        assert {said["dtype"], said["torch_dtype"]} == {str(dtype).removeprefix("torch.")}, folder
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto").dtype == dtype


def test_a_few_tensors_of_another_dtype_do_not_name_the_model(models: Path, tmp_path: Path) -> None:
    """As some models are published: norms in float32, all else in bfloat16."""
    tensors = {name: t if "norm" in name else t.bfloat16() for name, t in contents(models / "llama").items()}
    change(models / "llama", tmp_path / "mixed", **{name.replace(".", "__"): t for name, t in tensors.items()})
    to_hugging_face(tmp_path / "mixed", tmp_path / "out")
    assert_same_folder(tmp_path / "out", tmp_path / "mixed")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_configuration_is_utf_8_whatever_the_locale(models: Path, tmp_path: Path) -> None:
    change(models / "llama", tmp_path / "source")
    edit_config(tmp_path / "source", _name_or_path="größe/東京")
    imports = "from megatron_empg.weights.checkpoints.conversion import to_hugging_face as c"
    code = f"import sys; from pathlib import Path; {imports}"
    subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", f"{code}; c(Path('source'), Path('out'))"],
        cwd=tmp_path, env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, check=True,
    )  # fmt: skip
    assert "größe/東京" in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (7e4, torch.float16, "t: 70000 is too large in float16"),
        (-1e-9, torch.float16, "t: -1e-09 becomes 0 in float16"),
        (3.4e38, torch.bfloat16, "t: 3.4e[+]38 is too large in bfloat16"),
    ],
)
def test_a_value_out_of_range_is_named(value: float, dtype: torch.dtype, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        cast("t", torch.tensor([1.0, value]), dtype)


def test_infinities_and_zeros_stay(tmp_path: Path) -> None:
    tensor = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 6e4], dtype=torch.bfloat16)
    assert torch.equal(cast("t", tensor, torch.float16), tensor.half())


def test_a_dtype_that_would_lose_range_leaves_nothing(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    change(models / "llama", folder, model__layers__2__mlp__down_proj__weight=torch.full((64, 96), 1e5))
    for convert in (to_megatron, to_hugging_face):
        with pytest.raises(
            CheckpointError, match=r"model\.layers\.2\.mlp\.down_proj\.weight: 100000 is too large"
        ):
            convert(folder, tmp_path / "out", dtype=torch.float16, shard_bytes=SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


# Faulty checkpoints


def change(source: Path, folder: Path, **changes: Tensor) -> None:
    """A copy with tensors replaced; dots are written as two underscores."""
    tensors = {**contents(source), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def megatron(models: Path, tmp_path: Path) -> Path:
    to_megatron(models / "qwen2", tmp_path / "megatron", tensor_parallel=2)
    return tmp_path / "megatron"


def refusal(source: Path, **options: Any) -> str:
    destination = source.parent / "out"
    with pytest.raises(CheckpointError) as caught:
        to_hugging_face(source, destination, **options)
    assert not destination.exists()
    assert not destination.with_name("out.writing").exists()
    return str(caught.value)


def test_an_existing_destination_is_left_alone(models: Path, megatron: Path) -> None:
    before = {path: path.read_bytes() for path in megatron.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="megatron exists; remove it or name another"):
        to_megatron(models / "qwen2", megatron)
    assert {path: path.read_bytes() for path in megatron.rglob("*") if path.is_file()} == before


def test_a_layout_that_does_not_fit(models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not divide the model's num_attention_heads"):
        to_megatron(models / "qwen2", tmp_path / "out", tensor_parallel=3)


def test_a_file_of_the_checkpoint_that_is_missing_or_cut(megatron: Path) -> None:
    file = megatron / "megatron" / "__1_0.distcp"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    assert f"__1_0.distcp is cut short: {len(whole) - 1000} bytes, expected {len(whole)}" in refusal(megatron)
    file.unlink()
    assert "__1_0.distcp is missing" in refusal(megatron)


def test_a_checkpoint_of_another_model(megatron: Path) -> None:
    edit_config(megatron, num_hidden_layers=5, layer_types=None)
    assert (
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight has shape [4, 64], expected [5, 64]"
        in refusal(megatron)
    )
    edit_config(megatron, num_hidden_layers=4, tie_word_embeddings=False)
    assert "missing: ['output_layer.weight']" in refusal(megatron)
    edit_config(megatron, architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=True)
    assert "surplus: ['decoder.layers.self_attention.linear_qkv.bias']" in refusal(megatron)


def test_a_checkpoint_without_a_configuration(megatron: Path) -> None:
    (megatron / "config.json").unlink()
    assert "has no config.json; name a folder with the model's by --like" in refusal(megatron)


def test_a_checkpoint_that_names_its_model(megatron: Path) -> None:
    (megatron / "manifest.json").write_text(json.dumps({"model": {"num_heads": 8, "head_dim": 16}}))
    assert "is of another model: ['num_heads'] differ" in refusal(megatron)


def test_no_metadata_runs_code(megatron: Path, tmp_path: Path) -> None:
    """The description of PyTorch's format is a pickle: only the classes it is made of are taken from it."""
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "touched"),)

    (megatron / "megatron" / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert "it refers to posix.mkdir" in refusal(megatron)
    assert not (tmp_path / "touched").exists()


def test_a_converted_tensor_that_differs_is_named(models: Path, tmp_path: Path) -> None:
    to_megatron(models / "llama", tmp_path / "megatron")
    other = contents(models / "llama")["model.norm.weight"].clone()
    other[5] += 1
    change(models / "llama", tmp_path / "other", model__norm__weight=other)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight differs from .* in 1 of 64 values"):
        verify(tmp_path / "other", tmp_path / "megatron")


# Memory

_MEASURE = """
import os, sys
from pathlib import Path
from megatron_empg.weights.checkpoints import conversion
from megatron_empg.weights.checkpoints import megatron_checkpoint
from megatron_empg.weights.checkpoints import megatron_writer

def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

def measure(function, *paths):
    if os.fork() == 0:  # a process's peak can only grow
        before = memory("VmRSS")
        function(*paths, shard_bytes=int(sys.argv[2]))
        print(memory("VmHWM") - before, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0

folder = Path(sys.argv[1])
for layers in sys.argv[3:]:
    measure(conversion.to_megatron, folder / layers, folder / f"megatron{layers}")
    measure(conversion.to_hugging_face, folder / f"megatron{layers}", folder / f"back{layers}")
"""


def test_memory_follows_the_files_not_the_model(tmp_path: Path) -> None:
    """Two models, one four times as large, in files of one size: the peak above what a process starts with."""
    shard_bytes = 16 * 2**20
    for layers in (8, 32):  # 50 and 200 MB
        save_large_model(tmp_path / str(layers), layers)
    command = [sys.executable, "-c", _MEASURE, str(tmp_path), str(shard_bytes), "8", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small_in, small_out, large_in, large_out = map(int, done.stdout.split())
    assert max(large_in, large_out) < 3.5 * shard_bytes, done.stdout
    assert large_in < small_in + shard_bytes / 2, done.stdout
    assert large_out < small_out + shard_bytes / 2, done.stdout


def save_large_model(folder: Path, layers: int) -> None:
    from megatron_empg.weights.checkpoints.hugging_face import write_folder

    like = folder.with_name(f"like{layers}")
    like.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 512,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    }  # fmt: skip
    (like / "config.json").write_text(json.dumps(config))
    tensors = (
        (name, torch.ones(shape))
        for parameter in parameter_table(ModelConfig.from_dict(config))
        for name, shape in zip(parameter.hf, parameter.shapes, strict=True)
    )
    write_folder(folder, tensors, like)
