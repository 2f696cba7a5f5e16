"""torch.distributed: groups without global state, several collectives as one, and what a group has done so far.

torch is imported in the functions: the watchdog, which imports this file, runs without it.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from megatron_empg.upstream.record import private_api

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_TESTED = ("2.13.0",)


@private_api(
    "torch",
    symptom="FutureWarning on every call under the old names; AttributeError under the new ones before 2.13",
    trigger="gathering into, or scattering the sum of, one tensor",
    why="torch 2.13 renamed both collectives, and GPU images have older releases",
    versions=_TESTED,
    can_go_when="torch below 2.13 is no longer supported; then call the new names",
)
def single_tensor_collectives() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(all-gather into one tensor, reduce-scatter of one tensor), under the names that this release has."""
    import torch.distributed as dist

    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return gather, scatter


@private_api(
    "torch",
    symptom="(no other way to test the collectives that Megatron's gradient buckets are reduced by)",
    trigger="the suite of collectives",
    why="several collectives as one are started by a context manager without a public name",
    versions=_TESTED,
    can_go_when="the context manager is public",
)
def coalesced(group: Any, call: Callable[..., Any], arguments: Iterable[tuple[torch.Tensor, ...]]) -> list[Any]:
    """Start ``call`` on each of the arguments as one collective of the group; what is to be waited for."""
    from torch.distributed.distributed_c10d import _coalescing_manager

    with _coalescing_manager(group=group, async_ops=True) as manager:
        for given in arguments:
            call(*given)
    return [manager]


@private_api(
    "torch",
    symptom="a trainer has one default process group, which engines cannot join",
    trigger="weights are sent to engines over gloo",
    why=(
        "init_process_group makes global state and needs every rank at once; the group's own class takes its "
        "transport, the interface to listen on, by private options"
    ),
    versions=_TESTED,
    can_go_when="new groups can be made from a store without a default group, as torchcomms promises",
)
def gloo_group(
    store: dist.Store, rank: int, world_size: int, *, host: str, timeout: timedelta
) -> dist.ProcessGroupGloo:
    """A gloo group over the store, on ``host``'s interface. Blocks until all ranks are there.

    Raises RuntimeError after ``timeout``.
    """
    import torch.distributed as dist

    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    options._devices = [_gloo_device(host)]
    return dist.ProcessGroupGloo(store, rank, world_size, options)


def _gloo_device(host: str) -> dist.ProcessGroupGloo.Device:
    """Gloo's transport: loopback when the rendezvous is, else the interface that reaches other machines."""
    import torch.distributed as dist

    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if loopback:
        return dist.ProcessGroupGloo.create_device(hostname=host)
    return dist.ProcessGroupGloo.create_default_device()


@private_api(
    "torch",
    symptom="ValueError: the group is not registered, from torch.distributed.broadcast",
    trigger="weights are sent to engines over gloo",
    why="the public collectives look a group up in the global state that `gloo_group` has none of",
    versions=_TESTED,
    can_go_when="the public collectives take a group without global state",
)
def broadcast_from_first(group: dist.ProcessGroupGloo, tensor: torch.Tensor, timeout: timedelta) -> Any:
    """Start to send the tensor (rank 0) or to receive it in place (all others); what is to be waited for."""
    import torch.distributed as dist

    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.timeout = timeout
    return group.broadcast([tensor], options)  # type: ignore[attr-defined]


@private_api(
    "torch",
    symptom="a rank that hangs in a collective cannot be told from those that wait for it",
    trigger="a heartbeat",
    why="nothing public says how many collectives a group has begun, nor lists the groups",
    versions=_TESTED,
    can_go_when="the flight recorder's status is public for every backend",
)
def collectives_begun() -> int:
    """Collectives this process has begun, over all its process groups; 0 where torch.distributed is not in use."""
    # Never import from a heartbeat's thread: the main one may be importing.
    dist = sys.modules.get("torch.distributed")
    if dist is None or not hasattr(dist, "is_initialized") or not dist.is_initialized():
        return 0
    total = 0
    for group in list(dist.distributed_c10d._world.pg_map):
        with suppress(RuntimeError):  # a group that counts none
            total += group._get_sequence_number_for_group()
    return total


@private_api(
    "torch",
    symptom="(no other way to the last collectives of a process that hangs)",
    trigger="the watchdog asks all ranks what they are at",
    why="the flight recorder is read by functions of torch._C whose names change with releases and backends",
    versions=_TESTED,
    can_go_when="the flight recorder is read by a public function",
)
def recorded_collectives() -> bytes | None:
    """The flight recorder's last collectives as JSON; None where there is none. Imports nothing."""
    c10d = sys.modules.get("torch._C._distributed_c10d")
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        if hasattr(c10d, name):
            trace: bytes = getattr(c10d, name)()
            return trace
    return None
