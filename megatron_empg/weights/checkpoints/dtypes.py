"""Element types of checkpoints, and changing them without losing a value's range."""

import torch
from torch import Tensor

from megatron_empg.weights.checkpoints.errors import CheckpointError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None (as stored) for None. Raises CheckpointError naming what is allowed."""
    if name is not None and name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not supported; supported: {', '.join(DTYPES)}")
    return DTYPES[name] if name else None


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in another element type; itself for None or its own.

    Raises CheckpointError when a finite value becomes infinite or a value other than 0 becomes 0.
    """
    if dtype is None or tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    for fault, lost in (
        ("is too large", result.isinf() & ~tensor.isinf()),
        ("becomes 0", (result == 0) & (tensor != 0)),
    ):
        if lost.any():
            raise CheckpointError(
                f"{name}: {tensor[lost][0].item():.6g} {fault} in {str(dtype).removeprefix('torch.')} "
                f"({int(lost.sum())} such values); take bfloat16 or float32"
            )
    return result
