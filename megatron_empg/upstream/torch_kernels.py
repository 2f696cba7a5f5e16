"""torch's operations that are not promised yet: an assertion on the device, attention over packed sequences."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from megatron_empg.upstream.record import private_api

_TESTED = ("2.13.0",)


@private_api(
    "torch",
    symptom="each microbatch waits for the GPU to say that its targets lie in the vocabulary",
    trigger="targets on CUDA",
    why="no public assertion runs on the device without a synchronisation",
    versions=_TESTED,
    can_go_when="torch has a public assertion on the device",
)
def assert_on_device(condition: Tensor) -> None:
    """Let the device stop the process, later, where the condition (one truth value) does not hold."""
    torch._assert_async(condition)


@private_api(
    "torch",
    symptom="ValueError about unlike numbers of heads in 2.13; TypeError for an unknown argument before",
    trigger="packed attention on CUDA where heads share keys (grouped-query attention)",
    why="varlen_attn is a prototype: releases before the argument share keys among queries unasked",
    versions=_TESTED,
    can_go_when="torch below 2.13 is no longer supported; then say enable_gqa outright",
)
def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float | None,
) -> Tensor:
    """Causal attention over [tokens, heads, head_dim], sequences laid end to end between the boundaries; CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1] and "enable_gqa" in inspect.signature(varlen_attn).parameters
    sharing: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    output = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        query_boundaries,
        key_boundaries,
        longest_query,
        longest_key,
        scale=scale,
        window_size=(-1, 0),
        **sharing,
    )
    assert isinstance(output, Tensor)
    return output
