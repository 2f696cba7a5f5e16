"""What every reader of weights offers, whichever kind of folder they lie in."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameter_mapping import ParameterMapping
from megatron_empg.weights.mapping.parameters import parameter_table


class WeightReader(ABC):
    """Reads a checkpoint's weights parameter by parameter. Entering it checks the checkpoint against the model.

    Raises CheckpointError, when it is entered or read, naming the file or tensor and what is wrong.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder = Path(folder)
        self.config = config
        self.table = parameter_table(config)
        self.notes: list[str] = []
        """What was found and is not read."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None:  # noqa: B027 (files are open only while they are read)
        ...

    @abstractmethod
    def files(self) -> list[Path]:
        """The files with the tensors."""

    @abstractmethod
    def dtype(self, parameter: ParameterMapping) -> torch.dtype:
        """The dtype of the parameter as stored."""

    @abstractmethod
    def read(self, parameter: ParameterMapping) -> list[Tensor]:
        """The parameter's Hugging Face tensors, on the CPU."""

    @abstractmethod
    def read_shard(self, parameter: ParameterMapping, parallel_size: int, rank: int) -> Tensor:
        """A tensor-parallel rank's shard of the parameter, on the CPU; little more than that is read."""
