"""The actor's `update` beside a bare megatron-core loop, packed beside padded batches, and where the time goes.

    python bench/actor.py                       # a small model, one CPU rank; --tensor-parallel, --data-parallel
    python bench/actor.py --device cuda         # 1.5B Qwen2.5 shape at 8,192 tokens, bfloat16, one GPU

All contenders take turns in one process group, on the same sequences; seconds are those of the slowest rank, and
of each contender the least and the median over all turns are reported. The learning rate is 0, so that every
turn of every contender must give the same loss, which is checked.

- update: `Actor.update`, from sequences to the optimizer step, packing included;
- bare: the same model, fused LM head, optimizer and microbatches (packed and on the device beforehand; the very
  objects, so that no second model takes memory) in a plain loop over megatron-core's schedule with the loss
  written out: no Actor;
- padded: the bare loop on what one has without packing: microbatches of a fixed number of sequences in the order
  in which they come, each padded, once to the longest of its microbatch and once to the maximum. Packed
  microbatches hold as many tokens as those of the maximum do. Sequences fill [0, maximum] with the distribution of
  greatest entropy whose mean is 0.35 of it (a cut exponential). Padding costs no arithmetic in the fused head, so
  that the advantage of packing over loops that compute logits everywhere is larger than is shown here;
- full: `Actor.update` on sequences of the maximum's length whose tokens are all the policy's own. From it the MFU:
  FLOPs of the model (causal attention and LM head counted, no recomputation) over the device's peak.

The table splits one more full update by module, forward and backward together.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from module_times import COMMUNICATION, clock, time_by_part
from torch import Tensor

from megatron_empg.actor import platform
from megatron_empg.actor.config import ActorConfig, OptimizerConfig
from megatron_empg.actor.packing import IGNORE, Microbatch, Packer
from megatron_empg.actor.throughput import Throughput
from megatron_empg.algorithms.sample import Sample, TokenStreams
from megatron_empg.weights.mapping.flops import flops_by_part, forward_flops
from megatron_empg.weights.mapping.model_config import ModelConfig

QWEN2 = {
    "family": "qwen2", "num_kv_heads": 2, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "qkv_bias": True,
}  # fmt: skip
SHAPES = {  # a small one, and Qwen2.5-1.5B's
    "cpu": {
        "hidden_size": 256, "num_layers": 4, "num_heads": 4, "head_dim": 64, "intermediate_size": 1024,
        "vocab_size": 8192,
    },
    "cuda": {
        "hidden_size": 1536, "num_layers": 28, "num_heads": 12, "head_dim": 128, "intermediate_size": 8960,
        "vocab_size": 151_936,
    },
}  # fmt: skip
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}  # between the contenders' losses
LONGEST, MAXIMUM = "padded to the longest", "padded to the maximum"
DEFAULTS = {
    "cpu": {"maximum": 256, "sequences": 24, "per_microbatch": 4},
    "cuda": {"maximum": 8192, "sequences": 32, "per_microbatch": 2},
}
CLIP = 0.2, 0.28


# Sequences


def mixed_lengths(count: int, maximum: int) -> list[int]:
    """`count` quantiles of an exponential cut at `maximum`, whose mean is 0.35 of it, in a random order."""
    rate = 1.9049
    quantiles = [(i + 0.5) / count for i in range(count)]
    lengths = [-math.log(1 - q * (1 - math.exp(-rate))) / rate * maximum for q in quantiles]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    return [max(8, round(lengths[i])) for i in order]


def make_sequences(lengths: list[int], vocabulary: int, *, all_own: bool = False) -> list[Sample]:
    """A prompt, an own turn, an observation, an own turn, a quarter each; or own tokens throughout."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for length in lengths:
        quarters = [[length // 4, length // 2], [3 * length // 4, length]]
        tokens = torch.randint(0, vocabulary, (length,), generator=generator)
        made.append(Sample(tokens, torch.tensor([[1, length]] if all_own else quarters)))
    return made


def with_streams(actor: Any, sequences: list[Sample]) -> list[Sample]:
    """The same with old log-probs, the actor's own, and random advantages; nothing is weighed."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for sequence, score in zip(sequences, actor.score(sequences), strict=True):
        streams = TokenStreams(
            old_logprobs=score.logprobs,
            advantages=torch.randn(sequence.num_own_tokens, generator=generator),
            loss_weights=torch.ones(sequence.num_own_tokens),
            mean_weights=torch.ones(sequence.num_own_tokens),
        )
        made.append(replace(sequence, streams=streams))
    return made


def padded(sequence: Sample, length: int) -> Sample:
    tokens = torch.nn.functional.pad(sequence.tokens, (0, length - len(sequence.tokens)))
    return replace(sequence, tokens=tokens)


# Contenders


class Bare:
    """Megatron-core's own training loop."""

    def __init__(self, actor: Any) -> None:
        self.model, self.optimizer, self.scheduler = actor.model, actor.optimizer, actor.scheduler

    def step(self, microbatches: list[Microbatch]) -> float:
        """One optimizer step; the mean loss."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        for chunk in self.model:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses = get_forward_backward_func()(
            forward_step_func=bare_forward,
            data_iterator=iter(microbatches),
            model=self.model,
            num_microbatches=len(microbatches),
            seq_length=1,
            micro_batch_size=1,
            forward_only=False,
        )
        self.optimizer.step()
        self.scheduler.step(increment=1)
        total = torch.stack([loss["sum"] for loss in losses]).sum(0)
        dist.all_reduce(total)
        return float(total[0] / total[1])


def bare_forward(data: Any, model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    from megatron_empg.actor.attention import PackedSequences

    batch: Microbatch = next(data)
    longest = max(batch.lengths)
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=batch.lengths,
    )
    output = model(batch.tokens, None, None, labels=batch.targets[None], packed_seq_params=packed)
    return output, partial(bare_loss, batch)


def bare_loss(batch: Microbatch, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    logprob = output[0, :, 0][batch.targets != IGNORE]
    advantages, old_logprobs = batch.streams.advantages, batch.streams.old_logprobs
    assert advantages is not None
    assert old_logprobs is not None
    ratio = (logprob - old_logprobs).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP[0], 1 + CLIP[1])).sum()
    tokens = torch.tensor(len(logprob), dtype=torch.int, device=loss.device)
    return loss, tokens, {"sum": torch.stack([loss.detach(), tokens.float()])}


def packed_microbatches(sequences: list[Sample], config: ModelConfig, settings: ActorConfig) -> list[Microbatch]:
    """This rank's microbatches as the actor plans them."""
    from megatron_empg.actor.microbatches import plan_microbatches
    from megatron_empg.actor.parallel import data_rank

    lengths = [len(s.tokens) for s in sequences]
    plan = plan_microbatches(
        lengths,
        budget=settings.microbatch_tokens,
        ranks=settings.data_parallel,
        cost=partial(forward_flops, config),
    )
    return laid_out(sequences, plan[data_rank()])


def padded_microbatches(
    sequences: list[Sample], count: int, maximum: int | None, settings: ActorConfig
) -> list[Microbatch]:
    """This rank's microbatches of `count` sequences, padded to `maximum` or else to the microbatch's longest."""
    from megatron_empg.actor.parallel import data_rank

    mine = sequences[data_rank() :: settings.data_parallel]
    batches = [mine[i : i + count] for i in range(0, len(mine), count)]
    rows = [[padded(s, maximum or max(len(s.tokens) for s in batch)) for s in batch] for batch in batches]
    flat = [sequence for batch in rows for sequence in batch]
    numbers = iter(range(len(flat)))
    return laid_out(flat, [[next(numbers) for _ in batch] for batch in rows])


def laid_out(sequences: list[Sample], plan: list[list[int]]) -> list[Microbatch]:
    packer = Packer(sequences, TokenStreams.concatenated([s.streams for s in sequences]))
    return [packer.pack(indices).to(platform.device()) for indices in plan]


# One run


def rank_main(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    platform.prepare()
    from megatron_empg.actor.actor import Actor, describe_parts
    from megatron_empg.algorithms.algorithm import PolicyLoss
    from megatron_empg.algorithms.policy_loss import TokenClip

    budget = options.per_microbatch * options.maximum
    settings = ActorConfig(
        tensor_parallel=options.tensor_parallel,
        data_parallel=options.data_parallel,
        max_tokens_per_microbatch=budget,
        # Which no recipe may have: every contender's turns begin with the same weights.
        optimizer=OptimizerConfig.model_construct(lr=0.0),
    )
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    store = dist.FileStore(os.path.join(folder, "store"), settings.world_size)
    dist.init_process_group(
        platform.collective_backend(),
        store=store,
        rank=rank,
        world_size=settings.world_size,
        timeout=timedelta(minutes=10),
    )
    config = ModelConfig(**QWEN2, **SHAPES[options.device], max_position_embeddings=options.maximum)
    dtype = DTYPES[options.device]
    actor = Actor(config, settings, dtype=dtype)
    actor.initialise_weights(0)
    bare = Bare(actor)
    lengths = mixed_lengths(options.sequences, options.maximum)
    mixed = with_streams(actor, make_sequences(lengths, config.vocab_size))
    count = max(1, round(sum(lengths) / options.maximum))
    full = with_streams(actor, make_sequences([options.maximum] * count, config.vocab_size, all_own=True))
    loss = PolicyLoss(TokenClip(*CLIP), [])
    batches = {
        "bare": packed_microbatches(mixed, config, settings),
        LONGEST: padded_microbatches(mixed, options.per_microbatch, None, settings),
        MAXIMUM: padded_microbatches(mixed, options.per_microbatch, options.maximum, settings),
    }
    contenders: dict[str, Callable[[], float]] = {
        "update": lambda: actor.update(mixed, loss).loss,
        **{name: partial(bare.step, of_one) for name, of_one in batches.items()},
        "full": lambda: actor.update(full, loss).loss,
    }
    times = measure(contenders, options.repeat, TOLERANCE[options.device])
    table = time_by_part(actor, contenders["full"])
    if rank == 0:
        shape = f"{config.num_layers} layers of {config.hidden_size}, {config.vocab_size} words, {dtype}"
        if options.json:
            figures = {
                "shape": shape,
                "parts": describe_parts(actor),
                "maximum": options.maximum,
                "budget": budget,
            }
            write_json(
                options.json,
                figures,
                times,
                sum(lengths),
                full_figures(times["full"], config, full, settings),
                table,
            )
        print(shape)
        print(f"{len(lengths)} sequences, mean {sum(lengths) / len(lengths) / options.maximum:.3f} of the maximum")
        print(f"microbatches of {budget} tokens: {len(batches['bare'])} packed, {len(batches[MAXIMUM])} padded")
        show(times, sum(lengths))
        show_full(times["full"], table, config, full, settings)
    dist.destroy_process_group()


def measure(contenders: dict[str, Callable[[], float]], repeat: int, tolerance: float) -> dict[str, list[float]]:
    """Seconds of every turn after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeat + 1):
        losses = {}
        for name, work in contenders.items():
            dist.barrier()
            start = clock()
            losses[name] = work()
            seconds = torch.tensor(clock() - start, device=platform.device())
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            if turn:
                times[name].append(float(seconds))
        losses.pop("full")
        if max(losses.values()) - min(losses.values()) > tolerance:
            raise SystemExit(f"the contenders did not do the same: losses {losses}")
    return times


def show(times: dict[str, list[float]], tokens: int) -> None:
    for name, turns in times.items():
        print(f"  {name:22} least {min(turns):8.3f} s, median {statistics.median(turns):8.3f} s"
              + (f", {tokens / min(turns):9.0f} tokens/s without padding" if name != "full" else ""))  # fmt: skip

    def ratio(above: str, below: str) -> str:
        median = statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))
        return f"{min(times[above]) / min(times[below]):.3f}x (median of turns {median:.3f}x)"

    print(f"  update / bare: {ratio('update', 'bare')}")
    for name in (LONGEST, MAXIMUM):
        print(f"  {name} / update: {ratio(name, 'update')}")


def flops_of(config: ModelConfig, sequences: list[Sample], settings: ActorConfig) -> dict[str, float]:
    """One rank's floating-point operations of an update, by part of the model."""
    parts = [flops_by_part(config, len(s.tokens), s.num_own_tokens) for s in sequences]
    return {name: 3 * sum(part[name] for part in parts) / settings.world_size for name in parts[0]}


def full_figures(
    turns: list[float], config: ModelConfig, sequences: list[Sample], settings: ActorConfig
) -> Throughput:
    flops = sum(flops_of(config, sequences, settings).values())
    return Throughput(sum(len(s.tokens) for s in sequences), min(turns), flops)


def write_json(
    path: Path,
    figures: dict[str, Any],
    times: dict[str, list[float]],
    tokens: int,
    full: Throughput,
    table: dict[str, float],
) -> None:
    """The run's numbers; seconds are the least of all turns."""
    least = {name: min(turns) for name, turns in times.items()}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    figures |= {
        "seconds": least,
        "tokens": tokens,
        "tokens_per_second": {name: tokens / seconds for name, seconds in least.items() if name != "full"},
        "full": {"tokens_per_second": full.tokens_per_second, "tflops": full.tflops_per_rank, "mfu": full.mfu()},
        "seconds_by_part": table,
        "peak_gib": peak,
    }
    path.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def show_full(
    turns: list[float],
    table: dict[str, float],
    config: ModelConfig,
    sequences: list[Sample],
    settings: ActorConfig,
) -> None:
    flops = flops_of(config, sequences, settings)
    whole = full_figures(turns, config, sequences, settings)
    mfu = whole.mfu()
    print(f"full: {whole.tokens_per_second:.0f} tokens/s, {whole.tflops_per_rank:.3f} TFLOP/s per rank, MFU "
          + (f"{mfu:.3f}" if mfu is not None else "unknown, as the device's peak is"))  # fmt: skip
    communication = table.pop(COMMUNICATION)
    total = sum(table.values())
    print(f"  {'':12}{'ms':>10}{'share':>8}{'TFLOP/s':>10}")
    for name, seconds in sorted(table.items(), key=lambda row: -row[1]):
        rate = f"{flops[name] / seconds / 1e12:10.3f}" if name in flops else ""
        print(f"  {name:12}{seconds * 1000:10.1f}{seconds / total:8.1%}{rate}")
    print(f"  within these, collectives: {communication * 1000:.1f} ms ({communication / total:.1%})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--data-parallel", type=int, default=1)
    parser.add_argument("--maximum", type=int, help="tokens of the longest sequence")
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--per-microbatch", type=int, help="sequences of a padded microbatch")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    options = parser.parse_args()
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    return options


def main() -> None:
    options = arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "BENCH_CLOCK": options.clock}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, args=(options, folder), nprocs=options.tensor_parallel * options.data_parallel)


if __name__ == "__main__":
    main()
