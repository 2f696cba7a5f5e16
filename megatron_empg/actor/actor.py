"""The Megatron actor: `score` says how likely and how sure, `update` learns."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from megatron_empg.actor import layout as layouts
from megatron_empg.actor.config import ActorConfig
from megatron_empg.actor.microbatches import plan_microbatches
from megatron_empg.actor.model import build_model
from megatron_empg.actor.optimizer import build_optimizer
from megatron_empg.actor.packing import IGNORE, Microbatch, Packer
from megatron_empg.actor.parallel import (
    context_group,
    context_rank,
    data_and_context_group,
    data_rank,
    pipeline_group,
)
from megatron_empg.actor.throughput import Throughput
from megatron_empg.actor.weights import ActorWeights, initialise, load
from megatron_empg.algorithms.base import LossFunction
from megatron_empg.algorithms.sample import Sample, SampleScore, TokenStreams
from megatron_empg.common.dtypes import dtype_of
from megatron_empg.upstream.megatron_optimizer import parts as optimizer_parts
from megatron_empg.weights.mapping.flops import forward_flops
from megatron_empg.weights.mapping.model_config import ModelConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateReport:
    """One optimizer step. Means are over the policy's own tokens of all ranks."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    applied: bool
    """False when loss or gradient was not finite and the step was skipped."""
    means: dict[str, float]


class Actor:
    """A policy over tensor-, pipeline-, context- and data-parallel ranks, which enter every method together.

    Samples are given whole to every rank, in the same order; each rank works on its share.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: ActorConfig,
        *,
        dtype: str,
        total_steps: int = 1,
        seed: int = 0,
        collective_timeout: int = 1800,
    ) -> None:
        """``dtype`` is what the model computes in, "float32" or "bfloat16"; ``total_steps`` the updates that the
        learning rate's schedule ends with; ``collective_timeout`` the seconds that a rank waits for the others,
        e.g. while rank 0 waits for a rollout."""
        layouts.initialize(settings, seed=seed, timeout_seconds=collective_timeout)
        self.config, self.settings, self.dtype = config, settings, dtype_of(dtype)
        self.model, self.mcore = build_model(config, settings, self.dtype)
        self.optimizer, self.scheduler = build_optimizer(self.model, self.mcore, settings, total_steps=total_steps)
        experts_leave_a_replica = settings.expert_parallel > settings.tensor_parallel
        self.sends_weights = data_and_context_group().rank() == 0 or experts_leave_a_replica
        """Whether this rank belongs to the model's first replica, which exports and publishes, or to any of those
        over which experts are split."""
        self.throughput: dict[str, Throughput] = {}
        """Of the last call of ``score`` and of ``update``."""
        logger.info("actor: %s", describe_parts(self))

    def load_weights(self, folder: Path) -> None:
        """Fill the model from a Hugging Face folder or a Megatron checkpoint (its weights alone).

        The optimizer's float32 copies start from them.
        """
        load(self.model, self.config, self.settings, folder)
        self.optimizer.reload_model_params()

    def initialise_weights(self, seed: int) -> None:
        """Fill the model at random, the same in every layout."""
        initialise(self.model, self.config, self.settings, seed)
        self.optimizer.reload_model_params()

    def weights(self) -> ActorWeights:
        """The policy's full tensors under Hugging Face names.

        Making it communicates nothing. Iterating is collective over a replica and wants whole parameters: every
        rank calls `settle` before.
        """
        return ActorWeights(self.model, self.config, self.settings, self.dtype, takes_part=self.sends_weights)

    def settle(self) -> None:
        """Make every parameter whole: under overlap an update leaves gathering them to the next forward pass.

        They are there when it returns, for any stream. Collective over the data- and context-parallel ranks: it
        stands under no condition in which they differ.
        """
        for chunk in self.model:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)
        if torch.cuda.is_available():
            # The gathering is ordered before this stream's next work only, and weights leave on other streams.
            torch.cuda.current_stream().synchronize()

    def score(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> list[SampleScore]:
        """Log-prob and exact entropy at every own token, under the current weights, without gradient."""
        offsets = [0, *itertools.accumulate(s.num_own_tokens for s in samples)]
        results = torch.zeros(2, offsets[-1], device=layouts.platform.device())

        def collect(batch: Microbatch, output: Tensor, non_loss_data: bool = True) -> None:
            results[0, batch.own], results[1, batch.own] = _at_own_tokens(output, batch)

        self._set_training(False)
        with torch.no_grad(), self._measured("score", samples, passes=1):
            self._run(self._microbatches(self._packer(samples)), collect, temperature, forward_only=True)
            self._share_results(results)
        logprobs, entropies = results.cpu()
        return [
            SampleScore(logprobs[start:end], entropies[start:end]) for start, end in itertools.pairwise(offsets)
        ]

    def update(
        self, samples: Sequence[Sample], loss_function: LossFunction, *, temperature: float = 1.0
    ) -> UpdateReport:
        """One optimizer step on the mean loss over all own tokens of all ranks.

        Raises ValueError unless all samples have the same streams.
        """
        with self._measured("update", samples, passes=3):
            means, tokens = self._accumulate(samples, loss_function, temperature)
            lr = self.optimizer.param_groups[0]["lr"]
            applied, grad_norm = self._step(means["loss"])
        return UpdateReport(means.pop("loss"), grad_norm, lr, tokens, applied, means)

    def gradient_norm(
        self, samples: Sequence[Sample], loss_function: LossFunction, *, temperature: float = 1.0
    ) -> float:
        """Norm of the gradient that `update` would take a step by, before clipping. No weight moves."""
        from megatron_empg.actor.optimizer import gradient_norm

        self._accumulate(samples, loss_function, temperature)
        return gradient_norm(self.optimizer)

    def _accumulate(
        self, samples: Sequence[Sample], loss_function: LossFunction, temperature: float
    ) -> tuple[dict[str, float], int]:
        """Gradients of the mean loss, for the optimizer to read. Returns means over own tokens by name, and their
        number."""
        packer = self._packer(samples, TokenStreams.concatenated([s.streams for s in samples]))
        reported = ("loss", "entropy", *loss_function.statistics)
        sums = torch.zeros(len(reported) + 1, dtype=torch.float64, device=layouts.platform.device())

        def loss(batch: Microbatch, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            logprobs, entropies = _at_own_tokens(output, batch)
            segments = replace(batch.segments, reduce=self._sum_over_context())
            per_token, statistics = loss_function(logprobs, entropies, batch.streams, segments)
            total = per_token.sum()
            if not len(logprobs):  # keeps the graph whole on a rank, or in a microbatch, without own tokens
                total = total + 0.0 * output.sum()
            numbers = {"loss": per_token, "entropy": entropies, **statistics}
            sums[:-1] += torch.stack([numbers[name].detach().double().sum() for name in reported])
            sums[-1] += len(logprobs)
            tokens = torch.tensor(len(logprobs), dtype=torch.int, device=total.device)
            return total, tokens, {}

        self._set_training(True)
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._run(self._microbatches(packer), loss, temperature, forward_only=False)
        self._share_results(sums)
        *totals, tokens = sums.tolist()
        means = {name: total / max(tokens, 1) for name, total in zip(reported, totals, strict=True)}
        return means, int(tokens)

    def skip_updates(self, count: int) -> None:
        """Let the schedule pass ``count`` updates that a step made none of, so that it ends with the run."""
        self.scheduler.step(increment=count)

    def _step(self, loss: float) -> tuple[bool, float]:
        """Apply the gradients unless loss or their norm is not finite; the schedule moves on either way."""
        from megatron_empg.actor.optimizer import gradient_norm

        norm = gradient_norm(self.optimizer)
        finite = bool(torch.isfinite(torch.tensor([loss, norm])).all())
        if finite:
            applied, reported, _ = self.optimizer.step()
            if reported is not None:
                norm = float(reported)
            finite = bool(applied)
        self.scheduler.step(increment=1)
        return finite, norm

    def _packer(self, samples: Sequence[Sample], streams: TokenStreams | None = None) -> Packer:
        longest = max((len(s.tokens) for s in samples), default=0)
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence has {longest} tokens, the model's max_position_embeddings is "
                f"{self.config.max_position_embeddings}"
            )
        multiple = 1
        if self.settings.sequence_parallel:
            multiple = self.settings.tensor_parallel
        context = self.settings.context_parallel
        return Packer(samples, streams, context=context, rank=context_rank(), multiple=multiple)

    def _microbatches(self, packer: Packer) -> list[Microbatch]:
        """This rank's share; context-parallel ranks hold parts of the same microbatches."""
        settings = self.settings
        lengths = [packer.padded(len(sample.tokens)) for sample in packer.samples]
        multiple = 1
        if settings.virtual_pipeline > 1:
            # Megatron's interleaved schedule takes the microbatches in rounds of one a stage.
            multiple = settings.pipeline_parallel
        plan = plan_microbatches(
            lengths,
            budget=settings.microbatch_tokens,
            ranks=settings.data_parallel,
            cost=partial(forward_flops, self.config),
            multiple=multiple,
            # Experts are spread over data-parallel ranks, which exchange tokens in every microbatch.
            equal=settings.expert_parallel > 1,
        )
        return [packer.pack(indices).to(layouts.platform.device()) for indices in plan[data_rank()]]

    def _run(
        self, batches: list[Microbatch], last: Callable[..., Any], temperature: float, *, forward_only: bool
    ) -> None:
        """Megatron's pipeline schedule over the microbatches; `last` is called on the last stage's output."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        def forward_step(data: Iterator[Microbatch], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(data)
            return model(**_model_inputs(batch), temperature=temperature), partial(last, batch)

        data = [iter(batches) for _ in self.model]
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=data if len(data) > 1 else data[0],
            model=self.model,
            num_microbatches=len(batches),
            seq_length=1,  # unused: shapes vary
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _sum_over_context(self) -> Callable[[Tensor], None] | None:
        """Adds a tensor up over the context-parallel ranks, in place; None where a rank holds samples whole."""
        if self.settings.context_parallel == 1:
            return None

        def add_up(tensor: Tensor) -> None:
            dist.all_reduce(tensor, group=context_group())

        return add_up

    def _share_results(self, results: Tensor) -> None:
        """Each position was filled on one replica's last stage, alike by its tensor-parallel ranks; a sum makes
        it known to all."""
        if self.settings.pipeline_parallel > 1:
            dist.all_reduce(results, group=pipeline_group())
        if self.settings.data_parallel * self.settings.context_parallel > 1:
            dist.all_reduce(results, group=data_and_context_group())

    @contextmanager
    def _measured(self, what: str, samples: Sequence[Sample], *, passes: int) -> Iterator[None]:
        """Note the block's throughput; ``passes`` is its work in forward passes."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        tokens = sum(len(s.tokens) for s in samples)
        flops = passes * sum(forward_flops(self.config, len(s.tokens), s.num_own_tokens) for s in samples)
        self.throughput[what] = Throughput(tokens, seconds, flops / self.settings.world_size)

    def _set_training(self, training: bool) -> None:
        for chunk in self.model:
            chunk.train(training)


def _at_own_tokens(
    output: Float[Tensor, "1 tokens 2"], batch: Microbatch
) -> tuple[Float[Tensor, "own_tokens"], Float[Tensor, "own_tokens"]]:
    """(log-prob, entropy) as the fused head gives them, where the next token is the policy's own."""
    own = output[0][batch.targets != IGNORE]
    return own[:, 0], own[:, 1]


def _model_inputs(batch: Microbatch) -> dict[str, Any]:
    from megatron_empg.actor.attention import PackedSequences

    longest = max(batch.lengths)
    return {
        "input_ids": batch.tokens,
        "position_ids": None,  # rotary positions follow from the samples' boundaries
        "attention_mask": None,
        "labels": batch.targets[None],
        "packed_seq_params": PackedSequences(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            lengths=batch.lengths,
            shard=batch.shard,
        ),
    }


def describe_parts(actor: Actor) -> str:
    """Which layers, attention and optimizer are in use: a missing fused one is silent otherwise."""
    layer = actor.model[0].module.decoder.layers[0]
    inner = optimizer_parts(actor.optimizer)[0].optimizer
    parts = {
        "qkv": layer.self_attention.linear_qkv,
        "norm": layer.pre_mlp_layernorm,
        "attention": layer.self_attention.core_attention,
        "optimizer": inner,
    }
    described = []
    for name, part in parts.items():
        kind = type(part)
        described.append(f"{name} {kind.__module__}.{kind.__name__}")
    return ", ".join(described)
