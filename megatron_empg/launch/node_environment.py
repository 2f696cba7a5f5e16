"""The network, CUDA and cache variables of a task, on the node it runs on; what the user has set wins."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.launch.nodes import interface_name

INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself; empty where it does not say.

    Example: NodeReport(interface="ib0", hcas=("mlx5_0:1",), caches="/tmp/empg_caches_1000")
    """

    interface: str = ""
    """That holds the node's address."""
    hcas: tuple[str, ...] = ()
    """Ports of InfiniBand that are up."""
    caches: str = ""
    """A folder of this node for what is compiled."""


def task_variables(node: NodeReport, run_folder: str) -> dict[str, str]:
    """Name and value of every variable that a task of a job is to have; "" leaves the choice to the library.

    Trainer ranks get more, by `environment_variables.trainer_environment`.
    """
    wanted = {
        # "=" asks for this very name. Without an interface NCCL chooses.
        "NCCL_SOCKET_IFNAME": f"={node.interface}" if node.interface else "",
        "GLOO_SOCKET_IFNAME": node.interface,
        # With no port NCCL looks for itself (RoCE needs the user's NCCL_IB_HCA).
        "NCCL_IB_HCA": f"={','.join(node.hcas)}" if node.hcas else "",
        "NCCL_DEBUG": "WARN",
        "OMP_NUM_THREADS": "1",
        # Of each rank; a pool as wide as the node, eight times, is too much.
        "TORCHINDUCTOR_COMPILE_THREADS": "2",
        # The flight recorder: the last collectives of each rank, written to the run folder when one hangs.
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": f"{run_folder}/flight_recorder/nccl_rank_" if run_folder else "",
    }
    # In a home that nodes share, all of them would write the same files.
    for name, folder in (
        ("TRITON_CACHE_DIR", "triton"),
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("VLLM_CACHE_ROOT", "vllm"),
        ("CUDA_CACHE_PATH", "cuda"),
    ):
        wanted[name] = f"{node.caches}/{folder}" if node.caches else ""
    return wanted


def added(wanted: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Those of the wanted variables that have a value and that the user has not set."""
    return {name: value for name, value in wanted.items() if value and not given.get(name)}


def described(wanted: Mapping[str, str], given: Mapping[str, str]) -> list[str]:
    """A line for each wanted variable, for the top of a log."""
    found = []
    for name, value in wanted.items():
        if given.get(name):
            found.append(f"env: {name}={given[name]} (given)")
        elif value:
            found.append(f"env: {name}={value}")
        else:
            found.append(f"env: {name} not set")
    return found


def read_node(environment: Mapping[str, str]) -> NodeReport:
    """Ask this node. `environment`: a task's, with EMPG_ADDRESSES "node=address …" and SLURMD_NODENAME."""
    addresses = pairs(environment.get("EMPG_ADDRESSES", ""))
    address = addresses.get(environment.get("SLURMD_NODENAME", ""), "")
    return NodeReport(
        interface=_interface_of(address) if address else "",
        hcas=tuple(active_ports(INFINIBAND)),
        caches=caches_folder(environment.get("TMPDIR") or "/tmp"),
    )


def pairs(words: str) -> dict[str, str]:
    """Example: "n1=10.0.0.1 n2=10.0.0.2" gives {"n1": "10.0.0.1", "n2": "10.0.0.2"}."""
    found = {}
    for word in words.split():
        name, _, value = word.partition("=")
        found[name] = value
    return found


def _interface_of(address: str) -> str:
    """Of this node the interface that holds the address; "" where `ip` does not say."""
    command = ["ip", "-oneline", "address", "show", "to", f"{address}/32"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return interface_name(done.stdout) or ""


def active_ports(root: Path) -> list[str]:
    """DEVICE:PORT of InfiniBand ports that are up, by /sys/class/infiniband."""
    found = []
    for port in sorted(root.glob("*/ports/*")):
        if "ACTIVE" in _read(port / "state") and "InfiniBand" in _read(port / "link_layer"):
            found.append(f"{port.parent.parent.name}:{port.name}")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def caches_folder(temporary: str) -> str:
    """A folder that outlives the job, so that the next one compiles less; "" where none can be made.

    In a /tmp that others write too it must be ours and no link; else the folder is a new one.
    """
    folder = Path(temporary, f"empg_caches_{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    except OSError:
        ours = False
    try:
        if not ours or not os.access(folder, os.W_OK):
            folder = Path(tempfile.mkdtemp(prefix="empg_caches.", dir=temporary))
        folder.chmod(0o700)
    except OSError:
        return ""
    return str(folder)
