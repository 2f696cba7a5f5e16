"""Element types of weights, by the names that recipes, configs and checkpoints give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one value."""


def dtype_of(name: str) -> torch.dtype:
    """torch's element type of that name. Raises ValueError for a name that `DTYPE_BYTES` has not."""
    if name not in DTYPE_BYTES:
        raise ValueError(f"{name!r} is not an element type of weights; there are {', '.join(DTYPE_BYTES)}")
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def name_of(dtype: torch.dtype) -> str:
    """torch's own name of an element type, without its module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
