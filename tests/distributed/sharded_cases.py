"""Cases of sharded log-probs: each world size starts its ranks once, and they run the cases of every file."""

import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed.ranks import run_ranks

WORLD_SIZES = (1, 2, 4)
Case = Callable[[dist.ProcessGroup], None]


class Collectives(TorchDispatchMode):
    """Names of the collectives called inside, and the bytes each rank put in."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            sent = args[1] if "allgather" in str(func) else args[0]
            sent = sent[0] if isinstance(sent, list) else sent
            self.names.append(func._opname.strip("_"))
            self.bytes.append(sent.numel() * sent.element_size())
        return func(*args, **(kwargs or {}))


def run_cases(cases: list[Case]) -> dict[str, str]:
    """Run every case on this rank; the traceback of each that failed."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    failures = {}
    for case in cases:
        started = time.perf_counter()
        try:
            torch.manual_seed(7)
            case(dist.group.WORLD)
        except Exception:
            failures[name_of(case)] = f"rank {dist.get_rank()}: {traceback.format_exc()}"
        if os.environ.get("EMPG_TEST_TIMES") and dist.get_rank() == 0:
            print(f"{dist.get_world_size()} {case.__name__}: {time.perf_counter() - started:.2f} s", flush=True)
    return failures


def name_of(case: Case) -> str:
    return f"{case.__module__}.{case.__name__}"


@cache
def failures_at(world_size: int) -> dict[str, str]:
    """What failed of the cases of both files, with the traceback of every rank it failed on."""
    from tests.distributed import test_vocab_parallel, test_vocab_parallel_fused

    cases = test_vocab_parallel.CASES + test_vocab_parallel_fused.CASES
    failures: dict[str, str] = {}
    for of_rank in run_ranks(run_cases, world_size, cases):
        for case, trace in of_rank.items():
            failures[case] = failures.get(case, "") + "\n" + trace
    return failures


def assert_passed(case: Case, world_size: int) -> None:
    failures = failures_at(world_size)
    assert name_of(case) not in failures, failures[name_of(case)]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
    )


def shard_of(full: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's columns of a matrix whose columns divide by TP."""
    return full.chunk(group.size(), dim=1)[group.rank()].clone()


def random_targets(tokens: int, vocab_size: int, ignored: float = 0.2) -> torch.Tensor:
    targets = torch.randint(0, vocab_size, (tokens,))
    return targets.masked_fill(torch.rand(tokens) < ignored, -100)
