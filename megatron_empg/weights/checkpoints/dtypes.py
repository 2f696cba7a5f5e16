"""Element types of checkpoints, and changing them without losing a value's range."""

import torch
from torch import Tensor

from megatron_empg.common.dtypes import DTYPE_BYTES, dtype_of, name_of
from megatron_empg.weights.checkpoints.errors import CheckpointError


def dtype_named(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None (as stored) for None. Raises CheckpointError naming what is allowed."""
    if name is None:
        return None
    if name not in DTYPE_BYTES:
        raise CheckpointError(f"dtype {name!r} is not supported; supported: {', '.join(DTYPE_BYTES)}")
    return dtype_of(name)


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
                f"{name}: {tensor[lost][0].item():.6g} {fault} in {name_of(dtype)} "
                f"({int(lost.sum())} such values); take bfloat16 or float32"
            )
    return result
