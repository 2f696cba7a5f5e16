"""Megatron-core's GPTModel: its output layer, its rotary table, and gradients that are added by ourselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from megatron_empg.upstream.record import patch, private_api

_TESTED = ("0.16.1", "0.19.2")


@patch(
    "megatron-core",
    symptom="logits of the whole vocabulary are formed and kept for backward: gigabytes for each microbatch",
    trigger="log-prob and entropy of a microbatch",
    why="GPTModel hands hidden states to its output layer and to nothing else, and has no seam for another head",
    versions=_TESTED,
    can_go_when="GPTModel takes an output layer, or a loss over hidden states, from its caller",
)
def replace_output_layer_forward(model: Any, forward: Callable[..., Any]) -> None:
    """Let the model's output layer compute by ``forward``; its parameters and their names stay."""
    model.output_layer.forward = forward


@patch(
    "megatron-core",
    symptom="log-probs of long sequences are off for models with Llama 3's rotary scaling",
    trigger="a configuration whose rope_scaling is not the one that Megatron fixes",
    why="Megatron's own scaling fixes the two wavelength factors and the original context",
    versions=_TESTED,
    can_go_when="RotaryEmbedding takes the wavelength factors and the original context",
)
def set_rotary_frequencies(model: Any, scale: Callable[[Tensor], Tensor]) -> None:
    """Put the model's inverse frequencies, [half of a head's dimensions], through ``scale``."""
    model.rotary_pos_emb.inv_freq = scale(model.rotary_pos_emb.inv_freq)


@patch(
    "megatron-core",
    symptom="up to 32 rotary tables on the device, each of a microbatch's longest sequence",
    trigger="packed microbatches, whose longest sequences are seldom alike",
    why="RotaryEmbedding.forward keeps a table for each of the last 32 numbers of positions",
    versions=_TESTED,
    can_go_when="RotaryEmbedding cuts shorter tables out of a longer one",
)
def one_rotary_table(model: Any, length: int) -> None:
    """Let the model's rotary table for any number of positions be the start of one of ``length``."""
    embedding = model.rotary_pos_emb
    original = embedding.forward

    def forward(positions: int, *args: Any, packed_seq: bool = False, **kwargs: Any) -> Tensor:
        table: Tensor
        if packed_seq and positions <= length:
            table = original(length, *args, packed_seq=packed_seq, **kwargs)[:positions]
        else:
            table = original(positions, *args, packed_seq=packed_seq, **kwargs)
        return table

    embedding.forward = forward


@private_api(
    "megatron-core",
    symptom="the head's weight gradient is added twice, or lost",
    trigger="a head that adds to main_grad by itself under Megatron's DistributedDataParallel",
    why="`main_grad`, `grad_added_to_main_grad` and `zero_out_wgrad` are how its layers and its hook agree",
    versions=_TESTED,
    can_go_when="the contract of gradient_accumulation_fusion is documented",
)
def stand_in_gradient(weight: Any) -> Float[Tensor, "rows columns"] | None:
    """Say that main_grad holds the gradient already; what autograd gets so that the hook fires, or None."""
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    # Tied embeddings on one stage: the hook adds this to main_grad together with the embedding's gradient,
    # so it must be 0; autograd's sum of the two reads one broadcast number and allocates nothing.
    if getattr(weight, "zero_out_wgrad", False):
        zero: Tensor = weight.new_zeros(()).expand(weight.shape)
        return zero
    return torch.empty_like(weight)


def accumulates(weight: Tensor) -> bool:
    """Whether Megatron's DistributedDataParallel holds a main_grad for this weight; see `stand_in_gradient`."""
    return getattr(weight, "main_grad", None) is not None and hasattr(weight, "grad_added_to_main_grad")
