"""Short names for the parallel groups and ranks this project asks Megatron-core for."""

import torch.distributed as dist


def tensor_group() -> dist.ProcessGroup:
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


def tensor_rank() -> int:
    from megatron.core import parallel_state

    return int(parallel_state.get_tensor_model_parallel_rank())


def pipeline_group() -> dist.ProcessGroup:
    from megatron.core import parallel_state

    return parallel_state.get_pipeline_model_parallel_group()


def context_group() -> dist.ProcessGroup:
    from megatron.core import parallel_state

    return parallel_state.get_context_parallel_group()


def context_rank() -> int:
    from megatron.core import parallel_state

    return int(parallel_state.get_context_parallel_rank())


def data_and_context_group() -> dist.ProcessGroup:
    """Ranks that hold copies of the same parameters and work on different tokens."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def data_rank() -> int:
    from megatron.core import parallel_state

    return int(parallel_state.get_data_parallel_rank())


def expert_group() -> dist.ProcessGroup:
    """Ranks of one pipeline stage that share out the experts."""
    from megatron.core import parallel_state

    return parallel_state.get_expert_model_parallel_group()


def first_of_stage() -> int:
    """Global rank of the first rank of this rank's pipeline stage; Megatron numbers a stage's ranks in one run."""
    ranks_of_a_stage = dist.get_world_size() // pipeline_group().size()
    return dist.get_rank() // ranks_of_a_stage * ranks_of_a_stage


def stage_rank(stage: int) -> int:
    """Global rank of a pipeline stage in this rank's pipeline."""
    return dist.get_process_group_ranks(pipeline_group())[stage]
