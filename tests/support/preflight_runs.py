"""Starts preflight as srun would: one process a node, all on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

from megatron_empg.launch.ports import free_port

TOOL = Path(__file__).parents[2] / "tools" / "preflight.py"


def start_nodes(
    environments: list[dict[str, str]], folders: list[Path], *options: str
) -> list[subprocess.Popen[str]]:
    """One process a node, each in a folder of its own: relative paths differ between them."""
    common = {
        "SLURM_NTASKS": str(len(environments)),
        "SLURM_STEP_NUM_NODES": str(len(environments)),
        "SLURM_LOCALID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(TOOL), "--no-gpu", "--run-folder", "run", *options],
            env={**os.environ, **common, "SLURM_PROCID": str(number), "SLURM_NODEID": str(number), **environment},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, (environment, folder) in enumerate(zip(environments, folders, strict=True))
    ]


def finish(nodes: list[subprocess.Popen[str]], seconds: float) -> tuple[list[int], str]:
    """(exit codes, what node 0 printed)."""
    until = time.monotonic() + seconds
    try:
        outputs = [node.communicate(timeout=max(1.0, until - time.monotonic()))[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [node.returncode for node in nodes], outputs[0]
