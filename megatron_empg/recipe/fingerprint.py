"""Fingerprints of a run's model and data: alike for the same content wherever it lies, cheap for large files."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
)
_INDEX = "model.safetensors.index.json"
_SAID_BY_THE_WRITER = ("_name_or_path", "transformers_version")
"""Keys of config.json that say who wrote it and change nothing that is computed."""
_WHOLE_BYTES = 4 * 2**20
_BLOCKS, _BLOCK_BYTES = 16, 2**16


def fingerprint_model(folder: Path, initialise: Literal["checkpoint", "random"]) -> dict[str, str] | None:
    """{"config", "tokenizer", "weights": hash} of a model folder; None where there is none.

    Of a weights' file of more than 4 MiB its size, its beginning and 16 blocks are read: training changes nearly
    every number. Weights that are initialised at random have no fingerprint. Raises OSError for unreadable files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    parts = {"config": _hash_config(folder / "config.json")}
    parts["tokenizer"] = _hash_files([folder / name for name in TOKENIZER_FILES if (folder / name).is_file()])
    if initialise == "checkpoint":
        parts["weights"] = _hash_files(_weight_files(folder), sampled=True)
    return parts


def fingerprint_file(path: Path) -> str | None:
    """SHA-256 of a data file's content; None where there is no such file. Raises OSError."""
    if not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_config(path: Path) -> str:
    """By its meaning: not by blanks, nor by what the library that wrote it adds of itself."""
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unreadable"  # named by the check of the recipe
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _SAID_BY_THE_WRITER}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """Those that are read, of a Hugging Face folder or a Megatron checkpoint."""
    if (folder / "megatron").is_dir():
        return sorted(path for path in (folder / "megatron").iterdir() if path.is_file())
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        names = {Path(str(name)).name for name in index["weight_map"].values()}
        return [folder / name for name in sorted(names) if (folder / name).is_file()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return sorted(folder.glob("*.safetensors"))


def _hash_files(paths: list[Path], *, sampled: bool = False) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            if not sampled or size <= _WHOLE_BYTES:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
