"""Runs a function on N gloo ranks, each a process of its own, and brings back what each returned."""

import os
import pickle
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from megatron_empg.launch.ports import free_port
from tests.distributed.collective_order import Order

# Ranks are forked from a process that has imported what takes seconds: on two cores most of a small test.
_SERVER = mp.get_context("forkserver")
_PRELOADED = [
    "torch",
    "transformers",
    "megatron.core.dist_checkpointing",
    "megatron.core.distributed",
    "megatron.core.models.gpt",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
]
# A child of a process that has asked CUDA anything, as these do at import, cannot use it.
_SERVER.set_forkserver_preload([] if torch.cuda.is_available() else _PRELOADED)


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 400) -> list[Any]:
    """Call ``function(*args)`` on every rank; returns the results in rank order. A failing rank fails the test.

    So do ranks that do not enter the same collectives in the same order; see `collective_order`.
    """
    results = _SERVER.Queue()
    place = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="collectives-") as folder:
        workers = [
            _SERVER.Process(target=_rank, args=(function, rank, environment, results, folder, args))
            for rank in range(world_size)
        ]
        for worker in workers:
            worker.start()
        order = Order(Path(folder), world_size)
        try:
            collected = _collect(results, world_size, order, timeout)
        except BaseException:
            for worker in workers:  # they may wait for each other: nothing more is to come
                worker.kill()
            raise
        finally:
            for worker in workers:
                worker.join(5)
                worker.kill()
    return [collected[rank] for rank in range(world_size)]


def _collect(results: Any, world_size: int, order: Order, timeout: float) -> dict[int, Any]:
    """What each rank returned. Raises AssertionError for one that failed, and for collectives out of order."""
    collected: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(collected) < world_size:
        try:
            rank, value, error = results.get(timeout=0.3)
        except queue.Empty:
            if fault := order.fault(set(collected)):
                raise AssertionError(fault) from None
            if time.monotonic() > deadline:
                raise
            continue
        if error:  # gloo may have noticed first, without a line
            fault = order.fault(set(collected))
            raise AssertionError(f"rank {rank} failed:\n{error}" + (f"\n{fault}" if fault else ""))
        collected[rank] = pickle.loads(value)
    return collected


def _rank(
    function: Any, rank: int, environment: dict[str, str], results: Any, folder: str, args: tuple[Any, ...]
) -> None:
    os.environ.clear()  # the fork server's may be another test's
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    from tests.distributed import collective_order

    torch.set_num_threads(1)
    collective_order.record(Path(folder) / f"rank_{rank}")
    try:
        results.put((rank, pickle.dumps(function(*args)), None))  # by value: the rank may be gone when it is read
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
