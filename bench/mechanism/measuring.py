"""Blocks measured by several processes at once."""

from __future__ import annotations

import multiprocessing as mp
import time
from pathlib import Path

import torch

from bench.mechanism.blocks import block_path, measure_block
from bench.mechanism.gradients import TurnGradients
from megatron_empg.common.jsonl import append_line

SECONDS = "seconds.jsonl"
"""In a task's folder: seconds of a core that each block took."""


def measure_all(folder: Path, policy: Path, edges: list[float], blocks: int, processes: int) -> None:
    """Measure those of the blocks that are not there; ``edges`` part the bins of entropy."""
    missing = [number for number in range(blocks) if not block_path(folder, number).exists()]
    if not missing:
        return
    with mp.get_context("spawn").Pool(min(processes, len(missing)), _begin, (folder, policy, edges)) as pool:
        for number in pool.imap_unordered(_measure, missing):
            print(f"measured block {number + 1} of {blocks}", flush=True)


def _begin(folder: Path, policy: Path, edges: list[float]) -> None:
    """In each process, once."""
    global _folder, _gradients, _edges
    torch.set_num_threads(1)
    _folder, _gradients = folder, TurnGradients(policy)
    _edges = torch.tensor(edges, dtype=torch.float64)


def _measure(number: int) -> int:
    began = time.process_time()
    measure_block(_folder, number, _gradients, _edges)
    append_line(_folder / SECONDS, {"block": number, "seconds": time.process_time() - began})
    return number
