"""The logits of one model from two checkpoints, Hugging Face's or Megatron's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.actor import platform
from megatron_empg.weights.checkpoints.megatron_folder import is_megatron
from megatron_empg.weights.mapping.model_config import ModelConfig
from megatron_empg.weights.mapping.parameters import parameter_table

Model = Callable[[Tensor], Tensor]
BYTES_PER_PARAMETER = 12
"""float32 weights and gradients of the actor, and what is read at once."""


@dataclass(frozen=True)
class LogitDifference:
    """Largest absolute differences over all tokens and the whole vocabulary, and the mean of the log-probs'."""

    logits: float
    logprobs: float
    mean_logprobs: float
    tokens: int


def compare_logits(
    one: Path, other: Path, *, like: Path | None = None, count: int = 4, length: int = 64, seed: int = 0
) -> LogitDifference:
    """Compare in float32, on ``count`` sequences of ``length`` random tokens; one model in memory at a time.

    ``like`` has the configuration where a folder has none. Raises CheckpointError and ModelConfigError.
    """
    config = ModelConfig.from_folder(like or one)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocab_size, (count, min(length, config.max_position_embeddings)),
                           generator=generator)  # fmt: skip
    first, second = (logits(folder, tokens, like=like) for folder in (one, other))
    difference = (first.log_softmax(-1) - second.log_softmax(-1)).abs()
    return LogitDifference(
        logits=float((first - second).abs().max()),
        logprobs=float(difference.max()),
        mean_logprobs=float(difference.mean()),
        tokens=tokens.numel(),
    )


def fits(config: ModelConfig) -> bool:
    """Whether `compare_logits` finds the memory for the model."""
    import psutil

    parameters = sum(torch.Size(parameter.full_shape).numel() for parameter in parameter_table(config))
    return parameters * BYTES_PER_PARAMETER < int(psutil.virtual_memory().available)


def logits(
    folder: Path, tokens: Int[Tensor, "count length"], *, like: Path | None = None
) -> Float[Tensor, "count length vocab"]:
    """float32 logits by transformers for a Hugging Face folder, by a one-rank actor for a Megatron checkpoint."""
    if is_megatron(folder):
        opened = _megatron(folder, like)
    else:
        opened = _hugging_face(folder)
    with opened as model, torch.no_grad():
        return torch.cat([model(sequence[None].to(platform.device())).float().cpu() for sequence in tokens])


@contextmanager
def _hugging_face(folder: Path) -> Iterator[Model]:
    platform.prepare()
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.to(platform.device()).eval()
    yield lambda tokens: model(tokens).logits


@contextmanager
def _megatron(folder: Path, like: Path | None) -> Iterator[Model]:
    platform.prepare()
    from megatron_empg.actor.actor import Actor
    from megatron_empg.actor.config import ActorConfig
    from megatron_empg.actor.layout import shutdown

    config = ModelConfig.from_folder(like or folder)
    dist.init_process_group(platform.collective_backend(), store=dist.HashStore(), rank=0, world_size=1)
    try:
        actor = Actor(config, ActorConfig(), dtype="float32")
        actor.load_weights(folder)
        (model,) = actor.model
        model.eval()
        yield lambda tokens: model(tokens, None, None)[..., : config.vocab_size]
    finally:
        shutdown()
