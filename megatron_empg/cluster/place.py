"""Where a process stands among its peers, as torchrun or srun tell it, and the store they meet at."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from megatron_empg.common.errors import EmpgError

if TYPE_CHECKING:
    import torch.distributed as dist

DEFAULT_PORT = 29500


class PlaceError(EmpgError, RuntimeError):
    """The environment does not say where this process stands."""


@dataclass(frozen=True)
class RankPlace:
    """One process: its rank among all, on its node, and the address of the store."""

    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    nodes: int
    node: str
    address: str
    port: int
    hosts_store: bool
    """False where torchrun's agent holds the store already."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RankPlace:
        """torchrun's variables, else srun's, else a world of one. Raises PlaceError naming what is missing."""
        env: Mapping[str, str] = os.environ
        if environment is not None:
            env = environment
        node = env.get("SLURMD_NODENAME") or socket.gethostname()
        if "RANK" in env:
            rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
            local = _number(env, "LOCAL_RANK", 0)
            # Without LOCAL_RANK each rank is taken for a node of its own.
            lone = "LOCAL_RANK" not in env
            node_rank = _number(env, "GROUP_RANK", rank if lone else 0)
            nodes = _number(env, "GROUP_WORLD_SIZE", size if lone else 1)
        elif "SLURM_PROCID" in env and _number(env, "SLURM_NTASKS", 1) > 1:
            rank, size = _number(env, "SLURM_PROCID"), _number(env, "SLURM_NTASKS")
            local, node_rank = _number(env, "SLURM_LOCALID"), _number(env, "SLURM_NODEID")
            nodes = _number(env, "SLURM_STEP_NUM_NODES", _number(env, "SLURM_NNODES", 1))
        else:
            return cls(0, 1, 0, 0, 1, node, "127.0.0.1", 0, True)
        if "MASTER_ADDR" not in env:
            raise PlaceError(
                "MASTER_ADDR is not set: export the address of the first node, one the others reach "
                "(torchrun sets it; under srun the script must)"
            )
        return cls(
            rank=rank,
            world_size=size,
            local_rank=local,
            node_rank=node_rank,
            nodes=nodes,
            node=node,
            address=env["MASTER_ADDR"],
            port=_number(env, "MASTER_PORT", DEFAULT_PORT),
            hosts_store=rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        )

    def connect(self, timeout: float, *, host: bool | None = None) -> dist.TCPStore:
        """The store all ranks meet at; rank 0 opens it unless torchrun has. Does not wait for the others.

        ``host`` False is one more connection. Raises PlaceError when it is out of reach for ``timeout`` seconds.
        """
        import torch.distributed as dist

        try:
            return dist.TCPStore(
                self.address,
                self.port,
                is_master=self.hosts_store if host is None else host,
                wait_for_workers=False,
                timeout=timedelta(seconds=timeout),
            )
        except (dist.DistError, RuntimeError) as error:
            raise PlaceError(
                f"rank {self.rank} on {self.node} cannot reach rank 0 at {self.address}:{self.port} within "
                f"{timeout:.0f} s ({str(error).splitlines()[0]}); is MASTER_ADDR an address of the first node "
                "that this one reaches, and MASTER_PORT free and open?"
            ) from None


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError:
        raise PlaceError(f"{name} is {value!r}; it must be a whole number (set by torchrun or srun)") from None
