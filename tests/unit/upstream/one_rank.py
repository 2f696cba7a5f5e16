"""A tiny model on one rank of Megatron-core, as the actor builds it, from Megatron's own classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.actor import platform
from megatron_empg.upstream import megatron_layers


@contextmanager
def left_out(entry: Callable[..., Any]) -> Iterator[None]:
    """Without this entry of `megatron_empg.upstream` where its callers look it up in its module."""
    import sys

    module, name = sys.modules[entry.__module__], entry.__name__
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, entry)


def symptom_of(action: Callable[[], object]) -> str:
    """The error that the action ends with, or ""."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def start() -> None:
    """Megatron's groups and random states for one rank."""
    platform.prepare()
    from megatron.core import parallel_state, tensor_parallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    torch.manual_seed(0)
    tensor_parallel.model_parallel_cuda_manual_seed(0)


def config(**changes: Any) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    given: dict[str, Any] = {
        "num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 32, "num_attention_heads": 2,
        "normalization": "RMSNorm", "add_bias_linear": False, "hidden_dropout": 0.0, "attention_dropout": 0.0,
        "bias_activation_fusion": False, "bias_dropout_fusion": False, "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False, "masked_softmax_fusion": False, "persist_layer_norm": False,
    }  # fmt: skip
    return TransformerConfig(**{**given, **changes})


def model(**changes: Any) -> Any:
    """A GPTModel of one layer under DistributedDataParallel; changes to its TransformerConfig."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    distributed = changes.pop("distributed", False)
    settings = config(**changes)
    wrapped = DistributedDataParallelConfig(use_distributed_optimizer=distributed, grad_reduce_in_fp32=True)
    return DistributedDataParallel(config=settings, ddp_config=wrapped, module=gpt_model(settings))


def gpt_model(settings: Any, **changes: Any) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    megatron_layers.take_own_norms(spec, qk_norm=False)
    given: dict[str, Any] = {
        "config": settings, "transformer_layer_spec": spec, "vocab_size": 32, "max_sequence_length": 16,
        "share_embeddings_and_output_weights": False, "position_embedding_type": "rope",
    }  # fmt: skip
    return GPTModel(**{**given, **changes})


def optimizer_of(wrapped: Any, *, distributed: bool = False) -> Any:
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    settings = OptimizerConfig(
        optimizer="adam", lr=0.1, use_distributed_optimizer=distributed, clip_grad=1.0, params_dtype=torch.float32
    )
    return get_megatron_optimizer(settings, [wrapped])


def train(wrapped: Any, optimizer: Any) -> None:
    """One update."""
    tokens = torch.arange(8)[None]
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)
    wrapped.zero_grad_buffer()
    optimizer.zero_grad()
    wrapped(tokens, None, mask).float().square().mean().backward()
    wrapped.finish_grad_sync()
    optimizer.step()


def whole_training() -> None:
    """From groups to an update and a checkpoint's state: what a rank of the actor does."""
    start()
    wrapped = model()
    optimizer = optimizer_of(wrapped)
    train(wrapped, optimizer)
    optimizer.sharded_state_dict(wrapped.module.sharded_state_dict())
    torch.cuda.synchronize()


FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""As the actor saves."""


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
