"""Time and memory of sharded log-prob and entropy beside its peers, as ratios of one run.

    python bench/vocab_parallel.py --peer verl=/path/to/verl --peer slime=/path/to/slime
    python bench/vocab_parallel.py --what fused --tokens 1024
    python bench/vocab_parallel.py --device cuda --tokens 16384 65536 --tensor-parallel 8

On CPU, tensor-parallel ranks over gloo, one thread each, compute log-prob and entropy together from float32
logits, forward and backward; the implementations take turns, and of every figure the least over all turns (of
the slowest rank) is reported, with the median. Memory is the rise of the process's resident set at its peak.
On CUDA one device stands for one rank: the fused form in bf16 against its bare matrix products, and against all
logits at once where they fit.

A peer is a checked-out repository whose function is imported from there; see `PEERS` for the known ones.
"""

import argparse
import gc
import importlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from megatron_empg.vocab_parallel import linear_logprob_and_entropy, logprob_and_entropy

VOCAB = 151_936
Function = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]
MIB = 1 << 20
DENSE_LIMIT = 1 << 30
"""Logits that `dense` may hold; it takes about 24 bytes for each."""


def load(path: Path) -> Any:
    """A module of a peer from its file alone, without importing the peer's package."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} does not exist; --peer takes NAME=PATH of a checked-out repository")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verl_pair(root: Path) -> Function:
    """Entropy and log-prob as verl's Megatron engine calls them: the second on a copy, as both write in place."""
    module = load(root / "verl/utils/megatron/tensor_parallel.py")

    def both(logits: Tensor, targets: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        copy = logits.clone()
        entropy = module.vocab_parallel_entropy(logits)
        return module.vocab_parallel_log_probs_from_logits(copy, targets), entropy

    return both


def slime_function(root: Path) -> Function:
    module = load(root / "slime/utils/ppo_utils.py")
    return lambda logits, targets, group: module.calculate_log_probs_and_entropy(
        logits, targets, group, with_entropy=True
    )


def verl_triton(root: Path) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    sys.path.insert(0, str(root))
    module = importlib.import_module("verl.utils.kernel.linear_cross_entropy")
    return lambda hidden, weight, targets: module.linear_cross_entropy(hidden, weight, targets, 1.0, "none", None)


PEERS: dict[str, Callable[[Path], Function]] = {"verl": verl_pair, "slime": slime_function}


# What is measured


class Peak:
    """Rise of this process's resident set to its peak inside the block, in MiB (Linux)."""

    def __enter__(self) -> "Peak":
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # starts the high-water mark anew
        self.before = resident_mib()
        return self

    def __exit__(self, *_: object) -> None:
        self.mib = resident_mib("VmHWM") - self.before


def resident_mib(name: str = "VmRSS") -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def clock() -> float:
    """Seconds; of the process alone, not of the wall, where the machine is shared (BENCH_CLOCK=cpu)."""
    return time.process_time() if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter()


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, peak MiB), all ranks starting together."""
    dist.barrier()
    with Peak() as peak:
        start = clock()
        result = work()
        seconds = clock() - start
    return result, seconds, peak.mib


def one_turn_from_logits(function: Function, logits: Tensor, targets: Tensor) -> dict[str, float]:
    logits = logits.requires_grad_()
    logits.grad = None
    before = resident_mib()
    outputs, forward, forward_mib = timed(lambda: function(logits, targets, dist.group.WORLD))
    kept_mib = resident_mib() - before
    loss = outputs[0].sum() - 0.01 * outputs[1].sum()
    _, backward, backward_mib = timed(loss.backward)
    logits.grad = None
    return {
        "forward": forward,
        "forward_backward": forward + backward,
        "forward_mib": forward_mib,
        "forward_backward_mib": max(forward_mib, kept_mib + backward_mib),
    }


def one_turn_fused(function: Function | None, hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, float]:
    """Ours where `function` is None; else logits in full and the peer's function on them."""
    hidden.grad = None

    def forward() -> tuple[Tensor, Tensor]:
        if function is None:
            return linear_logprob_and_entropy(
                hidden, weight, targets, dist.group.WORLD, gradient_accumulation_fusion=True
            )
        return function(hidden @ weight.t(), targets, dist.group.WORLD)

    def both() -> float:
        start = clock()
        outputs = forward()
        seconds = clock() - start
        (outputs[0].sum() - 0.01 * outputs[1].sum()).backward()
        return seconds

    seconds, total, mib = timed(both)
    return {"forward": seconds, "forward_backward": total, "peak_mib": mib}


def one_turn_products(hidden: Tensor, weight: Tensor, logits: Tensor) -> dict[str, float]:
    """The bare products: logits, once more for the backward, and the gradients of hidden and weight."""
    with torch.no_grad():
        _, forward, _ = timed(lambda: torch.mm(hidden, weight.t(), out=logits))
        rest = [
            timed(lambda: torch.mm(hidden, weight.t(), out=logits))[1],
            timed(lambda: torch.mm(logits, weight))[1],
            timed(lambda: weight.main_grad.addmm_(logits.t(), hidden))[1],  # type: ignore[attr-defined]
        ]
    return {"forward": forward, "forward_backward": forward + sum(rest), "peak_mib": float("nan")}


# CPU ranks


def rank_main(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), options.tensor_parallel)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=options.tensor_parallel, timeout=timedelta(minutes=10)
    )
    if "verl" in options.peer:  # calls megatron-core's cross entropy
        from megatron_empg.actor import platform

        platform.prepare()
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(options.tensor_parallel)
    peers = {name: PEERS[name](root) for name, root in options.peer.items()}
    measure = measure_logits if options.what == "logits" else measure_fused
    for tokens in options.tokens:
        report = measure(tokens, peers, options)
        Path(folder, f"{tokens}-{rank}.json").write_text(json.dumps(report), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


Report = dict[str, list[dict[str, float]]]


def measure_logits(tokens: int, peers: dict[str, Function], options: argparse.Namespace) -> Report:
    torch.manual_seed(dist.get_rank())
    logits = torch.randn(tokens, VOCAB // options.tensor_parallel) * 2
    torch.manual_seed(99)
    targets = torch.randint(0, VOCAB, (tokens,))
    contenders: dict[str, Function] = {"ours": logprob_and_entropy, **peers}
    report: Report = {name: [] for name in contenders}
    for turn in range(options.repeat + 1):
        for name, function in contenders.items():
            figures = one_turn_from_logits(function, logits, targets)
            if turn:  # the first one warms up
                report[name].append(figures)
    return report


def measure_fused(tokens: int, peers: dict[str, Function], options: argparse.Namespace) -> Report:
    torch.manual_seed(99)
    hidden = torch.randn(tokens, options.hidden).requires_grad_()
    targets = torch.randint(0, VOCAB, (tokens,))
    weight: Any = torch.nn.Parameter(torch.randn(VOCAB // options.tensor_parallel, options.hidden) * 0.05)
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight), False
    report: Report = {name: [] for name in ["ours", *peers, "products"]}
    for turn in range(options.repeat + 1):
        for name, figures in report.items():
            if name == "products":
                logits = torch.zeros(tokens, weight.shape[0])
                figure = one_turn_products(hidden, weight, logits)
                del logits
            else:
                # A peer's gradient goes where it already has memory, as ours does.
                weight.grad = None if name == "ours" else weight.main_grad
                figure = one_turn_fused(peers.get(name), hidden, weight, targets)
                weight.grad = None
            if turn:
                figures.append(figure)
    return report


def merge(reports: list[Report]) -> Report:
    """The slowest rank's figure of each turn."""
    return {
        name: [
            {key: max(report[name][turn][key] for report in reports) for key in reports[0][name][turn]}
            for turn in range(len(reports[0][name]))
        ]
        for name in reports[0]
    }


def show(tokens: int, report: Report, options: argparse.Namespace) -> None:
    columns = VOCAB // options.tensor_parallel
    logits_mib = tokens * columns * 4 / MIB
    print(
        f"\n{tokens} tokens × {VOCAB} vocabulary, TP={options.tensor_parallel}: logits {logits_mib:.0f} MiB a rank"
    )
    best = {name: {key: min(turn[key] for turn in turns) for key in turns[0]} for name, turns in report.items()}
    for name, figures in best.items():
        print(f"  {name:10}" + "  ".join(f"{key} {value:9.3f}" for key, value in figures.items()))
    for name in report:
        if name == "ours":
            continue
        ratios = []
        for key in ("forward", "forward_backward"):
            pairs = [b[key] / a[key] for a, b in zip(report["ours"], report[name], strict=True)]
            least = best[name][key] / best["ours"][key]
            ratios.append(f"{key} {least:.2f}x (median of turns {statistics.median(pairs):.2f}x)")
        print(f"  {name} / ours: " + ", ".join(ratios))
    for key, value in best["ours"].items():
        if key.endswith("_mib"):
            print(f"  ours: {key} is {value / logits_mib:.1%} of the logits")


# CUDA


def dense(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes without this package: all logits at once."""
    logprobs = (hidden @ weight.t()).float().log_softmax(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def measure_cuda(options: argparse.Namespace) -> None:
    """The fused form in bf16 beside its four products, all logits at once, and verl's kernel where it is given."""
    contenders: dict[str, Any] = {
        "ours": lambda h, w, t: linear_logprob_and_entropy(
            h, w, t, gradient_accumulation_fusion=hasattr(w, "main_grad")
        )
    }
    if "verl" in options.peer:
        contenders["verl"] = verl_triton(options.peer["verl"])
    contenders["dense"] = dense
    rows: list[dict[str, Any]] = []
    for columns in sorted({VOCAB // options.tensor_parallel, VOCAB}):
        for tokens in options.tokens:
            hidden = torch.randn(tokens, options.hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            weight: Any = torch.nn.Parameter(torch.randn(columns, options.hidden, device="cuda").bfloat16() * 0.02)
            targets = torch.randint(0, columns, (tokens,), device="cuda")
            forward_products, all_products = cuda_products(hidden, weight, options.repeat)
            print(f"\n{tokens} tokens × {columns} columns, hidden {options.hidden}, bf16 (milliseconds)")
            print(f"  products   forward {forward_products:.2f}  forward+backward {all_products:.2f}")
            size = {"tokens": tokens, "columns": columns, "hidden": options.hidden}
            rows.append({**size, "name": "products", "forward_ms": forward_products, "both_ms": all_products})
            for name, function in contenders.items():
                if name == "dense" and tokens * columns > DENSE_LIMIT:
                    continue
                forward, both, mib = cuda_contender(function, hidden, weight, targets, options.repeat)
                rows.append({**size, "name": name, "forward_ms": forward, "both_ms": both, "peak_mib": mib})
                print(
                    f"  {name:10} forward {forward:.2f} ({forward_products / forward:.2f} of the product's rate)  "
                    f"forward+backward {both:.2f} ({all_products / both:.2f})  peak {mib:.0f} MiB"
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def cuda_seconds(work: Callable[[], Any], repeat: int) -> float:
    """Least milliseconds of one call."""
    times = []
    for _ in range(repeat + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return min(times[2:])


def cuda_products(hidden: Tensor, weight: Tensor, repeat: int) -> tuple[float, float]:
    """(forward's product, all four), in pieces whose logits fit beside everything else."""
    pieces = hidden.detach().split(max(1, (1 << 30) // weight.shape[0]))
    w = weight.detach()

    def forward() -> None:
        for piece in pieces:
            piece @ w.t()

    def backward() -> None:
        for piece in pieces:
            gradient = piece @ w.t()
            gradient @ w
            gradient.t() @ piece

    first = cuda_seconds(forward, repeat)
    return first, first + cuda_seconds(backward, repeat)


def cuda_contender(
    function: Any, hidden: Tensor, weight: Tensor, targets: Tensor, repeat: int
) -> tuple[float, float, float]:
    def both() -> None:
        hidden.grad = weight.grad = None
        outputs = function(hidden, weight, targets)
        (outputs[0].sum() - 0.01 * outputs[1].sum()).backward()

    def forward() -> None:
        with torch.no_grad():
            function(hidden, weight, targets)

    milliseconds = cuda_seconds(forward, repeat), cuda_seconds(both, repeat)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both()
    return *milliseconds, (torch.cuda.max_memory_allocated() - before) / MIB


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["logits", "fused"], default="logits")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--tensor-parallel", type=int, default=2)
    parser.add_argument("--hidden", type=int, help="default 896 on CPU, 5120 on CUDA")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="with --device cuda: write the numbers here too")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help=f"one of {sorted(PEERS)}")
    options = parser.parse_args()
    options.hidden = options.hidden or (896 if options.device == "cpu" else 5120)
    options.peer = {name: Path(path) for name, _, path in (peer.partition("=") for peer in options.peer)}
    unknown = set(options.peer) - set(PEERS)
    if unknown:
        parser.error(f"unknown peer {sorted(unknown)}; known are {sorted(PEERS)}")
    return options


def main() -> None:
    options = arguments()
    if options.device == "cuda":
        measure_cuda(options)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "BENCH_CLOCK": options.clock}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, args=(options, folder), nprocs=options.tensor_parallel)
        for tokens in options.tokens:
            ranks = range(options.tensor_parallel)
            reports = [
                json.loads(Path(folder, f"{tokens}-{rank}.json").read_text(encoding="utf-8")) for rank in ranks
            ]
            show(tokens, merge(reports), options)


if __name__ == "__main__":
    main()
