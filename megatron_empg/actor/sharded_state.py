"""The actor's state as megatron-core's sharded tensors, whose global names hold in every layout."""

from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.actor.optimizer import keep_settings
from megatron_empg.actor.platform import device
from megatron_empg.common.dtypes import name_of
from megatron_empg.upstream.megatron_optimizer import complete_state, complete_step

# The keys are the model parameters' own, so that any layout can read them.
_OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def kind(actor: Any) -> dict[str, Any]:
    """What a checkpoint must share with the actor that loads it; the layout need not be."""
    return {
        "model": asdict(actor.config),
        "dtype": name_of(actor.mcore.params_dtype),
        "distributed_optimizer": actor.model[0].ddp_config.use_distributed_optimizer,
    }


def sharded_state(actor: Any, *, loading: bool, with_rng: bool = True) -> dict[str, Any]:
    """Weights, optimizer and random states; the tensors are the live ones. All ranks together."""
    from megatron.core.dist_checkpointing import ShardedObject

    complete_state(actor.optimizer)
    state: dict[str, Any] = {
        f"model{number}": chunk.module.sharded_state_dict() for number, chunk in enumerate(actor.model)
    }
    state["optimizer"] = actor.optimizer.sharded_state_dict(
        dict(state), is_loading=loading, metadata=_OPTIMIZER_FORMAT
    )
    if with_rng:
        state["rng"] = ShardedObject("rng", _get_rng(), (dist.get_world_size(),), (dist.get_rank(),))
    return state


def restore(actor: Any, state: dict[str, Any], *, schedule_steps: int) -> None:
    """Give the actor a loaded `sharded_state`; random states only where it has them.

    What the optimizer was built with stays: a run that goes on with another learning rate has that one.
    """
    for number, chunk in enumerate(actor.model):
        chunk.module.load_state_dict(state[f"model{number}"])
    complete_step(actor.optimizer, state["optimizer"])
    keep_settings(actor.optimizer, state["optimizer"])
    actor.optimizer.load_state_dict(state["optimizer"])
    actor.scheduler.num_steps = 0
    actor.scheduler.step(increment=schedule_steps)
    if "rng" in state:
        _set_rng(state["rng"])


def size(state: dict[str, Any]) -> int:
    """Bytes that all ranks will write of it, roughly: its tensors, each once."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import is_main_replica

    own = sum(
        value.data.nbytes
        for value in nested_values(state)
        if isinstance(getattr(value, "data", None), torch.Tensor)
        and is_main_replica(getattr(value, "replica_id", 1))
    )
    total = torch.tensor(own, device=device())
    dist.all_reduce(total)
    return int(total)


def _get_rng() -> dict[str, Any]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }


def _set_rng(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["device"])
    get_cuda_rng_tracker().set_states(state["tracker"])
