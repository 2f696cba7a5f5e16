"""The fused LM head inside megatron-core's GPTModel: log-prob and entropy instead of logits.

No Megatron source is changed: the model gets a forward pre-hook that takes ``labels`` and ``temperature`` from
the call, and its ColumnParallelLinear output layer a forward that uses them. Parameters, their names, the
pipeline schedule and DistributedDataParallel's hooks stay as they are.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.upstream import megatron_model
from megatron_empg.vocab_parallel import linear_logprob_and_entropy


def fuse_lm_head(model: Any, *, vocab_size: int | None = None, chunk_tokens: int | None = None) -> None:
    """Let ``model(..., labels=targets, temperature=τ)`` return log-prob and entropy, [batch, sequence, 2] float32.

    `model` is a GPTModel (any pipeline stage) before it is wrapped in Float16Module or DistributedDataParallel,
    both of which pass the two arguments on. ``targets`` is [batch, sequence], -100 where nothing is predicted;
    ``temperature`` defaults to 1. Without labels the model returns logits as before. `vocab_size` is the
    unpadded size. The weight's gradient goes straight to ``main_grad`` where the weight has one.

    Raises ValueError for what the fused head does not compute: multi-token prediction, μP's scaling, an output
    bias, deferred embedding gradients.
    """
    head = None
    if model.post_process:
        _refuse_unsupported(model)
        head = _FusedHead(model.output_layer, vocab_size, chunk_tokens)
        megatron_model.replace_output_layer_forward(model, head.forward)

    def take_labels(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        labels, temperature = kwargs.pop("labels", None), kwargs.pop("temperature", 1.0)
        if head is not None:
            head.labels, head.temperature = labels, temperature
        return args, kwargs

    model.register_forward_pre_hook(take_labels, with_kwargs=True)


def _refuse_unsupported(model: Any) -> None:
    if getattr(model.config, "mtp_num_layers", None):
        raise ValueError("the fused LM head does not compute multi-token prediction; set mtp_num_layers to None")
    if getattr(model.config, "use_mup", False):
        raise ValueError("the fused LM head does not scale logits as μP does; unset use_mup")
    if model.output_layer.bias is not None:
        raise ValueError("the fused LM head has no bias; build the output layer with bias=False")
    if model.config.defer_embedding_wgrad_compute:
        raise ValueError(
            "the fused LM head computes its weight gradient at once; unset defer_embedding_wgrad_compute"
        )


class _FusedHead:
    """Replaces the forward method of a ColumnParallelLinear output layer while the call has labels."""

    def __init__(self, layer: Any, vocab_size: int | None, chunk_tokens: int | None) -> None:
        self.layer, self.vocab_size, self.chunk_tokens = layer, vocab_size, chunk_tokens
        self.labels: Int[Tensor, "batch sequence"] | None = None
        self.temperature = 1.0

    def forward(
        self, hidden: Float[Tensor, "rows batch hidden"], weight: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """ColumnParallelLinear.forward, but [sequence, batch, 2] instead of logits, and no bias."""
        labels, self.labels = self.labels, None
        layer = self.layer
        if labels is None:
            logits: tuple[Tensor, None] = type(layer).forward(layer, hidden, weight, *args, **kwargs)
            return logits
        if weight is None:
            weight = layer.weight
        assert weight is not None
        both = linear_logprob_and_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            weight,
            labels.t().reshape(-1),  # hidden is sequence first
            layer.tp_group,
            chunk_tokens=self.chunk_tokens,
            sequence_parallel=layer.sequence_parallel,
            vocab_size=self.vocab_size,
            temperature=self.temperature,
            gradient_accumulation_fusion=_accumulates(weight),
        )
        return torch.stack(both, dim=-1).view(labels.shape[1], labels.shape[0], 2), None


def _accumulates(weight: Tensor) -> bool:
    """Whether Megatron's DistributedDataParallel holds a main_grad for this weight."""
    return megatron_model.accumulates(weight)
