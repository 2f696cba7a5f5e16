"""How a model lies over ranks: the parallel sizes, and the process groups made from them."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_empg.actor import platform


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions; tensor x pipeline x context x data is the number of ranks."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False
    context: int = 1
    """Ranks among which the tokens of each sequence are split."""
    virtual_pipeline: int = 1
    """Model chunks a pipeline stage; above 1 the schedule is the interleaved one."""
    expert: int = 1
    """Ranks, of a stage's tensor x context x data ranks, among which the experts of a layer are split."""

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data


def initialize(layout: Layout, *, seed: int, timeout_seconds: int = 1800) -> None:
    """Join the ranks (torchrun's environment) and make Megatron's process groups and random states.

    Raises ValueError when the number of ranks is not the layout's.
    """
    platform.prepare()
    from megatron.core import parallel_state, tensor_parallel

    if not dist.is_initialized():
        dist.init_process_group(
            platform.collective_backend(),
            timeout=timedelta(seconds=timeout_seconds),
            device_id=platform.device() if torch.cuda.is_available() else None,
        )
    if dist.get_world_size() != layout.world_size:
        raise ValueError(
            f"the layout needs {layout.world_size} ranks (tensor {layout.tensor} x pipeline {layout.pipeline} "
            f"x context {layout.context} x data {layout.data}) but {dist.get_world_size()} were started"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
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
