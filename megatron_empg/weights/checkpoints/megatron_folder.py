"""How a Megatron checkpoint lies on disk."""

from pathlib import Path

WEIGHTS = "megatron"
"""The folder, inside a checkpoint's, that Megatron's dist_checkpointing writes and reads."""
METADATA = ".metadata"


def is_megatron(folder: Path) -> bool:
    """Whether the folder is a Megatron checkpoint, of a training step or of weights alone."""
    return (Path(folder) / WEIGHTS / METADATA).exists()
