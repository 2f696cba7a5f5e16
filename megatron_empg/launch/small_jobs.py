"""The jobs beside training: the suite of collectives on every GPU, and a checkpoint converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.image import Image
from megatron_empg.launch.job_error import JobError, misconfigured
from megatron_empg.launch.job_nodes import JobNodes
from megatron_empg.launch.job_output import say
from megatron_empg.launch.job_settings import JobSettings
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.placement import NodeShares
from megatron_empg.launch.slurm_parts import placement_variables, task_command
from megatron_empg.launch.srun_runner import SrunRunner

GPUS = 8
"""Tasks on each node, where Slurm does not say."""


def suite(words: Sequence[str], environment: Mapping[str, str], job: JobSettings, runner: SrunRunner) -> int:
    """tools/nccl_suite.py on every GPU of the job; its exit code. Raises JobError."""
    logs = Path(environment.get("EMPG_LOGS") or f"{job.home}/runs/nccl_suite_{job.job}")
    logs.mkdir(parents=True, exist_ok=True)
    nodes = JobNodes(runner.slurm, job.interface)
    count = int(environment.get("SLURM_JOB_NUM_NODES") or "1")
    placement = nodes.choose(NodeShares(count, 1, 0, 0))
    if placement is None:
        raise JobError(ExitCode.NODE, f"too few of {job.node_list} are up")
    addresses = nodes.addresses(placement)
    results = ("--json", f"{logs}/nccl_suite.json", "--heat-map", f"{logs}/nccl_suite.png")
    part = RunPart(
        "suite",
        task_command(job.python, "run", "--", job.python, "tools/nccl_suite.py", *results, *words),
        ExitCode.PREFLIGHT,
        placement.trainers,
        tasks_per_node=int(environment.get("SLURM_NTASKS_PER_NODE") or GPUS),
        environment={
            **placement_variables(placement, addresses),
            "MASTER_ADDR": addresses[placement.trainers[0]],
            "MASTER_PORT": str(job.ports_from),
            "PYTHONUNBUFFERED": "1",
        },
        ends=True,
    )
    runner.logs, runner.nodes = logs, placement.nodes
    status = runner.run(part)
    print(runner.log_of(part, placement.trainers[0]), end="", flush=True)
    say(f"logs, JSON and heat map in {logs}")
    return status if status >= 0 else 128 - status


def convert(words: Sequence[str], image: Image) -> int:
    """tools/convert_checkpoint.py on this node. Returns 0; raises JobError."""
    if len(words) < 3 or words[0] not in ("to-megatron", "to-hf"):
        raise misconfigured("give to-megatron SRC DST or to-hf SRC DST, and options")
    if not Path(words[1]).is_dir():
        raise misconfigured(f"SRC is '{words[1]}': no such folder")
    if image.run(["tools/convert_checkpoint.py", *words]) != 0:
        raise JobError(ExitCode.CONVERSION, "see the lines above")
    return 0
