from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_empg.recipe.fingerprint import fingerprint_file, fingerprint_model


def model(folder: Path, *, changed: int | None = None, tensors: int = 8) -> Path:
    """16 MiB of weights; `changed` names a tensor that is another."""
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    generator = torch.Generator().manual_seed(0)
    named = {f"layer.{n}": torch.randn(2**19, generator=generator) for n in range(tensors)}
    if changed is not None:
        named[f"layer.{changed}"] += 1e-3
    save_file(named, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("changed", [0, 3, 7])
def test_one_tensor_of_a_large_file_that_was_trained_is_noticed(tmp_path: Path, changed: int) -> None:
    one = fingerprint_model(model(tmp_path / "one"), "checkpoint")
    same = fingerprint_model(model(tmp_path / "same"), "checkpoint")
    other = fingerprint_model(model(tmp_path / "other", changed=changed), "checkpoint")
    assert one is not None
    assert other is not None
    assert one == same
    assert {part for part in one if one[part] != other[part]} == {"weights"}


def test_random_weights_have_none(tmp_path: Path) -> None:
    found = fingerprint_model(model(tmp_path / "one"), "random")
    assert found is not None
    assert "weights" not in found


def test_what_is_not_there_has_no_fingerprint(tmp_path: Path) -> None:
    assert fingerprint_model(tmp_path / "none", "checkpoint") is None
    assert fingerprint_file(tmp_path / "none") is None


def test_a_broken_index_and_a_broken_config_are_left_to_the_check(tmp_path: Path) -> None:
    folder = model(tmp_path / "one")
    (folder / "model.safetensors.index.json").write_text("[")
    (folder / "config.json").write_bytes(b"\xff")
    assert fingerprint_model(folder, "checkpoint") is not None
