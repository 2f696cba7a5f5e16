"""One way to read weights, whichever kind of folder they lie in."""

from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from megatron_empg.weights.checkpoints.hugging_face import CheckpointReader
from megatron_empg.weights.mapping.megatron_layout import is_megatron
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import Row, rows


class Reader(Protocol):
    """A checkpoint, checked against the model's configuration when it is entered."""

    table: list[Row]
    config: ModelConfig
    notes: list[str]
    """What was found and is not read."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def files(self) -> list[Path]:
        """The files with the tensors."""
        ...

    def dtype(self, row: Row) -> torch.dtype:
        """Of the row's tensors, as stored."""
        ...

    def read(self, row: Row) -> list[Tensor]:
        """The row's Hugging Face tensors, on the CPU."""
        ...

    def piece(self, row: Row, parallel_size: int, rank: int) -> Tensor:
        """A tensor-parallel rank's piece of the row; little more than that is read."""
        ...


def open_weights(folder: Path, config: ModelConfig) -> Reader:
    """A reader of a Hugging Face or Megatron folder; entering it raises CheckpointError naming what is wrong."""
    if not is_megatron(folder):
        return CheckpointReader(folder, rows(config), config)
    from megatron_empg.weights.checkpoints.megatron_checkpoint import MegatronReader

    return MegatronReader(folder, rows(config), config)
