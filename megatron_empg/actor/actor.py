"""The Megatron actor: `score` says how likely and how sure, `update` learns."""

import itertools
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from megatron_empg.actor import layout as layouts
from megatron_empg.actor.layout import Layout
from megatron_empg.actor.model import DTYPES, build_model
from megatron_empg.actor.optimizer import OptimizerSettings, build_optimizer
from megatron_empg.actor.packing import IGNORE, Microbatch, Sequence, pack, plan_microbatches
from megatron_empg.actor.parallel import data_group, data_rank, pipeline_group
from megatron_empg.actor.weights import ActorWeights, fill, load_hugging_face
from megatron_empg.weights.initialise import random_tensors
from megatron_empg.weights.model_config import ModelConfig


class LossFunction(Protocol):
    """What `update` minimises, token by token; the actor takes the global mean over own tokens."""

    statistics: tuple[str, ...]
    """Names of the numbers that come with the loss; their token means are reported."""

    def __call__(
        self, logprob: Tensor, entropy: Tensor, values: dict[str, Tensor], /
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, statistics by name) of each own token, [own tokens] each."""
        ...


@dataclass(frozen=True)
class Score:
    """What the actor says of one sequence's own tokens, float32 on the CPU."""

    logprobs: Float[Tensor, "own_tokens"]
    entropies: Float[Tensor, "own_tokens"]


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
    """A policy under tensor, pipeline and data parallelism. Every method is entered by all ranks together.

    Sequences are given whole to every rank, in the same order; each data-parallel rank works on its share.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        optimizer: OptimizerSettings,
        *,
        dtype: str = "float32",
        recompute: str = "none",
        distributed_optimizer: bool = False,
        max_tokens_per_microbatch: int = 16384,
        seed: int = 0,
        collective_timeout: int = 1800,
    ) -> None:
        """``collective_timeout``: seconds a rank waits for the others, e.g. while rank 0 waits for a rollout."""
        layouts.initialize(layout, seed=seed, timeout_seconds=collective_timeout)
        self.config, self.layout, self.dtype = config, layout, dtype
        self.budget = max_tokens_per_microbatch
        self.model, self.mcore = build_model(
            config, layout, dtype=dtype, distributed_optimizer=distributed_optimizer, recompute=recompute
        )
        self.optimizer, self.scheduler = build_optimizer(
            self.model, self.mcore, optimizer, dtype=dtype, distributed=distributed_optimizer
        )
        self.data_rank = data_rank()

    def load_weights(self, folder: Path) -> None:
        """Fill the model from a Hugging Face folder and restart the optimizer's float32 copies from it."""
        load_hugging_face(self.model, self.config, self.layout, folder)
        self.optimizer.reload_model_params()

    def initialise_weights(self, seed: int) -> None:
        """Fill the model at random, the same in every layout."""
        fill(self.model, self.config, self.layout, lambda row: random_tensors(row, self.config, seed))
        self.optimizer.reload_model_params()

    def weights(self) -> ActorWeights:
        """The policy's full tensors under Hugging Face names; iterating is collective over a replica."""
        return ActorWeights(self.model, self.config, self.layout, DTYPES[self.dtype])

    def score(self, sequences: SequenceOf[Sequence], *, temperature: float = 1.0) -> list[Score]:
        """Log-prob and exact entropy at every own token, under the current weights, without gradient."""
        total = sum(s.num_own_tokens for s in sequences)
        results = torch.zeros(2, total, device=layouts.platform.device())
        offsets = torch.tensor([0, *(s.num_own_tokens for s in sequences)]).cumsum(0).tolist()

        def collect(batch: Microbatch, output: Tensor, non_loss_data: bool = True) -> None:
            logprob, entropy = _at_own_tokens(output, batch)
            done = 0
            for index in batch.indices:
                start, end = offsets[index], offsets[index + 1]
                results[0, start:end] = logprob[done : done + end - start]
                results[1, start:end] = entropy[done : done + end - start]
                done += end - start

        self._set_training(False)
        with torch.no_grad():
            self._run(self._microbatches(sequences, names=()), collect, temperature, forward_only=True)
        self._share_results(results)
        logprobs, entropies = results.cpu()
        return [Score(logprobs[start:end], entropies[start:end]) for start, end in itertools.pairwise(offsets)]

    def update(
        self, sequences: SequenceOf[Sequence], loss_function: LossFunction, *, temperature: float = 1.0
    ) -> UpdateReport:
        """One optimizer step on the mean loss over all own tokens of all ranks."""
        names = tuple(sequences[0].values) if sequences else ()
        reported = ("loss", "entropy", *loss_function.statistics)
        sums = torch.zeros(len(reported) + 1, dtype=torch.float64, device=layouts.platform.device())

        def loss(batch: Microbatch, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            logprob, entropy = _at_own_tokens(output, batch)
            per_token, statistics = loss_function(logprob, entropy, batch.values)
            total = per_token.sum()
            if not len(logprob):  # keeps the graph whole on a rank, or in a microbatch, without own tokens
                total = total + 0.0 * output.sum()
            numbers = {"loss": per_token, "entropy": entropy, **statistics}
            sums[:-1] += torch.stack([numbers[name].detach().double().sum() for name in reported])
            sums[-1] += len(logprob)
            tokens = torch.tensor(len(logprob), dtype=torch.int, device=total.device)
            return total, tokens, {}

        self._set_training(True)
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._run(self._microbatches(sequences, names), loss, temperature, forward_only=False)
        lr = self.optimizer.param_groups[0]["lr"]
        self._share_results(sums)
        *totals, tokens = sums.tolist()
        means = {name: total / max(tokens, 1) for name, total in zip(reported, totals, strict=True)}
        applied, grad_norm = self._step(means["loss"])
        return UpdateReport(means.pop("loss"), grad_norm, lr, int(tokens), applied, means)

    def _step(self, loss: float) -> tuple[bool, float]:
        """Apply the gradients unless loss or their norm is not finite; the schedule moves on either way."""
        from megatron_empg.actor.optimizer import gradient_norm

        norm = gradient_norm(self.optimizer)
        finite = bool(torch.isfinite(torch.tensor([loss, norm])).all())
        if finite:
            applied, reported, _ = self.optimizer.step()
            norm = float(reported) if reported is not None else norm
            finite = bool(applied)
        self.scheduler.step(increment=1)
        return finite, norm

    def _microbatches(self, sequences: SequenceOf[Sequence], names: SequenceOf[str]) -> list[Microbatch]:
        plan = plan_microbatches(
            [len(s.tokens) for s in sequences], budget=self.budget, ranks=self.layout.data, rank=self.data_rank
        )
        multiple = self.layout.tensor if self.layout.sequence_parallel else 1
        place = layouts.platform.device()
        return [pack(sequences, indices, names, multiple=multiple).to(place) for indices in plan]

    def _run(
        self, batches: list[Microbatch], last: Callable[..., Any], temperature: float, *, forward_only: bool
    ) -> None:
        """Megatron's pipeline schedule over the microbatches; `last` is called on the last stage's output."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        def forward_step(data: Iterator[Microbatch], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(data)
            return model(**_model_inputs(batch), temperature=temperature), partial(last, batch)

        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=self.model,
            num_microbatches=len(batches),
            seq_length=1,  # unused: shapes vary
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _share_results(self, results: Tensor) -> None:
        """Every position was filled on one data-parallel rank's last stage; a sum makes it known to all."""
        if self.layout.pipeline > 1:
            dist.all_reduce(results, group=pipeline_group())
        if self.layout.data > 1:
            dist.all_reduce(results, group=data_group())

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
    from megatron.core.packed_seq_params import PackedSeqParams

    return {
        "input_ids": batch.tokens,
        "position_ids": batch.positions,
        "attention_mask": None,
        "labels": batch.targets[None],
        "packed_seq_params": PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
        ),
    }
