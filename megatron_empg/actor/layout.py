"""How a model lies over ranks: the process groups made from the parallel sizes."""

from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_empg.actor import platform
from megatron_empg.actor.config import ActorConfig
from megatron_empg.actor.layout_rules import rank_faults


def initialize(settings: ActorConfig, *, seed: int, timeout_seconds: int = 1800) -> None:
    """Join the ranks (torchrun's environment) and make Megatron's process groups and random states.

    Raises ValueError when the number of ranks is not the layout's.
    """
    platform.prepare()
    from megatron.core import parallel_state, tensor_parallel

    if not dist.is_initialized():
        device = platform.device() if torch.cuda.is_available() else None
        timeout = timedelta(seconds=timeout_seconds)
        dist.init_process_group(platform.collective_backend(), timeout=timeout, device_id=device)
    faults = rank_faults(settings, dist.get_world_size())
    if faults:
        raise ValueError(faults[0])
    interleaved = settings.virtual_pipeline > 1
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=settings.tensor_parallel,
        pipeline_model_parallel_size=settings.pipeline_parallel,
        virtual_pipeline_model_parallel_size=settings.virtual_pipeline if interleaved else None,
        context_parallel_size=settings.context_parallel,
        expert_model_parallel_size=settings.expert_parallel,
        expert_tensor_parallel_size=1,  # an expert lies whole on its rank
        distributed_timeout_minutes=-(-timeout_seconds // 60),  # never below the limit
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Leave the process groups."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
