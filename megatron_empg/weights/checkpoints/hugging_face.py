"""Hugging Face folders: safetensors read by name with every fault named, and written whole or not at all."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from megatron_empg.common.dtypes import dtype_of, name_of
from megatron_empg.common.files import aside_of
from megatron_empg.common.json_files import JsonFileError, read_object, write_object
from megatron_empg.weights.checkpoints.errors import CheckpointError
from megatron_empg.weights.checkpoints.reader import WeightReader
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping, TensorSlice

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 2**30
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
T = TypeVar("T")
# Old exports keep the frequencies of rotary positions, which follow from config.json.
_RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_FUSED_EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)(\.weight)?$")
_COMPARED_ROWS = 4096


class HuggingFaceReader(WeightReader):
    """Reads the tensors of a Hugging Face folder. Entering it checks names, shapes and types of them all.

    Files are mapped only while a tensor is read: memory is what the caller holds.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        super().__init__(folder, config)
        self._where: dict[str, Path] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def __enter__(self) -> Self:
        self._where = _locate(self.folder)
        self._leave_out_recomputed()
        self._check_names()
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.files():
            shapes.update(self._inspect(path))
        for parameter in self.table:
            self._check_tensors_of(parameter, shapes)
        if self.config.tie_word_embeddings and HEAD in self._where:
            self._check_tied_head(shapes)
        return self

    def files(self) -> list[Path]:
        return sorted(set(self._where.values()))

    def dtype(self, parameter: ParameterMapping) -> torch.dtype:
        return self._dtypes[parameter.hf[0]]

    def read(self, parameter: ParameterMapping) -> list[Tensor]:
        return [self._part(name, None) for name in parameter.hf]

    def read_shard(self, parameter: ParameterMapping, parallel_size: int, rank: int) -> Tensor:
        return parameter.read_shard(parallel_size, rank, self._part)

    def _check_tensors_of(self, parameter: ParameterMapping, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, expected in zip(parameter.hf, parameter.shapes, strict=True):
            if shapes[name] != expected:
                raise CheckpointError(
                    f"{self.folder}: {name} has shape {list(shapes[name])}, expected {list(expected)}"
                )
        if len({self._dtypes[name] for name in parameter.hf}) > 1:
            names = ", ".join(parameter.hf)
            raise CheckpointError(f"{self.folder}: {names} make one parameter and differ in dtype")

    def _part(self, name: str, part: TensorSlice | None) -> Tensor:
        with _open(self._where[name]) as file:
            if part is None:
                return file.get_tensor(name)
            chosen = slice(part.start, part.stop)
            tensor = file.get_slice(name)
            if part.dim == 0:
                return tensor[chosen]
            return tensor[:, chosen]

    def _leave_out_recomputed(self) -> None:
        recomputed = [name for name in self._where if _RECOMPUTED.fullmatch(name)]
        for name in recomputed:
            del self._where[name]
        if recomputed:
            self.notes.append(
                f"{self.folder}: {len(recomputed)} tensors rotary_emb.inv_freq are not read; rope_theta stands in "
                "config.json"
            )

    def _check_names(self) -> None:
        expected = {name for parameter in self.table for name in parameter.hf}
        present = set(self._where)
        if self.config.tie_word_embeddings:
            present.discard(HEAD)  # some exporters write the tied copy as well
        missing, surplus = sorted(expected - present), sorted(present - expected)
        if missing or surplus:
            raise CheckpointError(
                f"{self.folder}: tensors do not fit config.json; missing: {missing[:5] or 'none'}, "
                f"surplus: {surplus[:5] or 'none'}{_hint(missing, surplus)}"
            )

    def _check_tied_head(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """The head is the embedding: a head of its own would be lost. Holds a few thousand rows of each."""
        if shapes[HEAD] == shapes[EMBEDDING]:
            vocabulary, found = shapes[HEAD][0], True
            for start in range(0, vocabulary, _COMPARED_ROWS):
                part = TensorSlice(0, start, min(vocabulary, start + _COMPARED_ROWS))
                head, embedding = (self._part(name, part) for name in (HEAD, EMBEDDING))
                found = found and torch.equal(head.float(), embedding.float())
            if found:
                return
        raise CheckpointError(
            f"{self.folder}: config.json says tie_word_embeddings, but {HEAD} is another tensor than {EMBEDDING}. "
            "Set tie_word_embeddings to false, or take the head out of the file"
        )

    def _inspect(self, path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of the file's tensors; notes their types."""
        types = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        with _open_header(path) as file:
            inside = set(file.keys())
            for name in (name for name, where in self._where.items() if where == path):
                if name not in inside:
                    raise CheckpointError(f"{self.folder / INDEX} says that {path.name} holds {name}; it does not")
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in types:
                    raise CheckpointError(
                        f"{path}: {name} is of type {tensor.get_dtype()}; supported: {', '.join(types)}"
                    )
                self._dtypes[name] = dtype_of(types[tensor.get_dtype()])
                yield name, tuple(tensor.get_shape())


def _hint(missing: list[str], surplus: list[str]) -> str:
    """What the difference looks like."""
    fused = [name for name in surplus if _FUSED_EXPERTS.search(name)]
    if fused:
        return (
            f"; {fused[0]} holds a layer's experts in one tensor, which is not read: write the folder again with "
            "transformers' save_pretrained, which stores each expert's tensors"
        )
    if missing == [HEAD]:
        return "; where the head is the embedding, config.json says tie_word_embeddings: true"
    hints = []
    for name in missing[:5]:
        for near in get_close_matches(name, surplus, 1, 0.85):
            hints.append(f"; {near} looks like {name} misnamed")
    return "".join(hints)


def _locate(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index, single = folder / INDEX, folder / SINGLE
    if index.exists():
        where = _read_index(index)
        if single.exists() and single not in where.values():
            raise CheckpointError(
                f"{folder} has both {SINGLE} and {INDEX}, which does not name it: transformers reads the first, "
                "vLLM what the second names. Remove the one that is not meant"
            )
        return where
    if not single.exists():
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}{_other_weights(folder)}")
    with _open_header(single) as file:
        return dict.fromkeys(file.keys(), single)


def _read_index(index: Path) -> dict[str, Path]:
    try:
        weight_map = read_object(index).get("weight_map")
    except JsonFileError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} is not an index of safetensors files: weight_map is {weight_map!r:.100}")
    where = {name: index.parent / Path(file).name for name, file in weight_map.items()}
    absent = {str(path) for path in where.values() if not path.exists()}
    if absent:
        raise CheckpointError(f"{index} names files that are not there: {sorted(absent)}")
    return where


def _other_weights(folder: Path) -> str:
    """What there is instead."""
    others = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".gguf"})
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    if loose:
        return f"; it holds {', '.join(loose[:3])} without an index"
    if not others:
        return ""
    return (
        f"; it holds {', '.join(others[:3])}, which are not read. Load the model in transformers and write it by "
        "save_pretrained, which makes safetensors"
    )


def _open(path: Path, framework: str = "pt") -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework=framework)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} cannot be mapped ({error}); on a machine with less memory than the file split it first, for "
            "example by transformers' save_pretrained(..., max_shard_size='5GB')"
        ) from error


def _open_header(path: Path) -> Any:
    """To look at names, types and shapes alone: torch would count the whole file against this machine's memory."""
    return _open(path, framework="numpy")


def _owned_with_sizes(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[tuple[str, Tensor], int]]:
    for name, tensor in tensors:
        owned = owned_copy(tensor)
        yield (name, owned), owned.nbytes


def write_folder(
    destination: Path, tensors: Iterable[tuple[str, Tensor]], like: Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors with the configuration and tokenizer of ``like``, aside first, then renamed.

    Holds one file's tensors at a time. An existing destination is replaced.
    """
    destination = Path(destination)
    aside = aside_of(destination)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    sized = _owned_with_sizes(tensors)
    shards = []
    bytes_of: Counter[torch.dtype] = Counter()
    for number, shard in enumerate(group_by_size(sized, shard_bytes)):
        write_shard(aside / f"{number}.safetensors", dict(shard))
        names = [name for name, _ in shard]
        shards.append((names, sum(tensor.nbytes for _, tensor in shard)))
        for _, tensor in shard:
            bytes_of[tensor.dtype] += tensor.nbytes
    copy_configuration(like, aside, commonest(bytes_of))
    for number, name in enumerate(shard_names(len(shards))):
        os.replace(aside / f"{number}.safetensors", aside / name)
    write_index(aside, shards)
    if destination.exists():
        retired = destination.with_name(destination.name + ".old")
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(destination, retired)
        os.replace(aside, destination)
        shutil.rmtree(retired)
    else:
        os.replace(aside, destination)


def commonest(bytes_of: Counter[torch.dtype]) -> torch.dtype:
    """The dtype of most of a checkpoint: where a few tensors differ, it is what the model is loaded as."""
    return bytes_of.most_common(1)[0][0]


def copy_configuration(like: Path, folder: Path, dtype: torch.dtype) -> None:
    """The configuration and tokenizer of a Hugging Face folder, without its weights; config.json says `dtype`."""
    for file in Path(like).iterdir():
        if file.suffix in {".json", ".txt", ".jinja", ".model"} and file.name != INDEX:
            shutil.copy2(file, folder / file.name)
    config = folder / "config.json"
    name = name_of(dtype)
    # The first is read by transformers from 4.56 on, the second by older ones.
    write_object(config, {**read_object(config), "dtype": name, "torch_dtype": name})


def group_by_size(items: Iterable[tuple[T, int]], limit: int) -> Iterator[list[T]]:
    """Runs of (item, bytes) of at most ``limit`` bytes together, or of a single larger one."""
    group: list[T] = []
    total = 0
    for item, size in items:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


def shard_names(count: int) -> list[str]:
    """Hugging Face's names for so many files."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def owned_copy(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous and sharing no memory, as safetensors needs it."""
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file of owned copies."""
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone


def write_index(folder: Path, shards: list[tuple[list[str], int]]) -> None:
    """Which file holds what, given each file's (names, bytes); a single file needs none."""
    if len(shards) == 1:
        return
    files = shard_names(len(shards))
    where = {name: file for file, (names, _) in zip(files, shards, strict=True) for name in names}
    total = {"total_size": sum(size for _, size in shards)}
    write_object(folder / INDEX, {"metadata": total, "weight_map": where})
