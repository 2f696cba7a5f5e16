"""One way to open weights, whichever kind of folder they lie in."""

from pathlib import Path

from megatron_empg.weights.checkpoints.hugging_face import HuggingFaceReader
from megatron_empg.weights.checkpoints.megatron_folder import is_megatron
from megatron_empg.weights.checkpoints.reader import WeightReader
from megatron_empg.weights.mapping.model_config import ModelConfig


def open_weights(folder: Path, config: ModelConfig) -> WeightReader:
    """A reader of a Hugging Face or Megatron folder; entering it raises CheckpointError naming what is wrong."""
    if not is_megatron(folder):
        return HuggingFaceReader(folder, config)
    # Megatron's format alone needs torch.distributed.checkpoint.
    from megatron_empg.weights.checkpoints.megatron_checkpoint import MegatronReader

    return MegatronReader(folder, config)
