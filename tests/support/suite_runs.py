"""Starts the suite as srun would: one process a rank, on this machine or in network namespaces."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.launch.ports import free_port

TOOL = Path(__file__).parents[2] / "tools" / "nccl_suite.py"
_PATIENCE = 20.0  # for the other ranks, once one has ended


@dataclass
class SuiteRun:
    """How a run ended. ``findings`` is rank 0's JSON."""

    codes: list[int]
    printed: str
    findings: dict[str, Any]
    seconds: float


def run_suite(
    folder: Path,
    ranks: int,
    *options: str,
    ranks_per_node: int = 1,
    prefixes: Sequence[Sequence[str]] = (),
    environment: Sequence[dict[str, str]] = (),
    limit: float = 150,
) -> SuiteRun:
    """Run over gloo. ``prefixes`` start a rank elsewhere (``ip netns exec NAME``), ``environment`` is added;
    what has not ended in time is killed.
    """
    report, start = folder / "findings.json", time.monotonic()
    port = str(free_port())
    command = [sys.executable, str(TOOL), "--backend", "gloo", "--json", str(report), *options]
    processes = [
        subprocess.Popen(
            [*(prefixes[rank] if prefixes else ()), *command],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "SLURM_PROCID": str(rank),
                "SLURM_NTASKS": str(ranks),
                "SLURM_LOCALID": str(rank % ranks_per_node),
                "SLURM_NODEID": str(rank // ranks_per_node),
                "SLURMD_NODENAME": f"node{rank // ranks_per_node}",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **(environment[rank] if environment else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    printed, until = [], start + limit
    try:
        for process in processes:
            try:
                printed.append(process.communicate(timeout=max(0.1, until - time.monotonic()))[0])
            except subprocess.TimeoutExpired:
                process.kill()  # its code is then -9
                printed.append(process.communicate()[0])
            until = min(until, time.monotonic() + _PATIENCE)
    finally:
        for process in processes:
            process.kill()
    findings = json.loads(report.read_text()) if report.exists() else {}
    return SuiteRun([p.returncode for p in processes], "\n".join(printed), findings, time.monotonic() - start)
