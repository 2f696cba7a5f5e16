"""The collectives of the tensor-parallel group, under the names that every supported PyTorch has."""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_empg.common.ranks import ranks_of
from megatron_empg.upstream.torch_distributed import single_tensor_collectives

_all_gather, _reduce_scatter = single_tensor_collectives()


def gather_rows(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All ranks' rows, concatenated in rank order."""
    if ranks_of(group) == 1 or mine.numel() == 0:
        return mine
    everyone = mine.new_empty((ranks_of(group) * mine.shape[0], *mine.shape[1:]))
    _all_gather(everyone, mine.contiguous(), group=group)
    return everyone


def reduce_scatter_rows(partial: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This rank's rows of the sum over ranks."""
    if ranks_of(group) == 1 or partial.numel() == 0:
        return partial
    mine = partial.new_empty((partial.shape[0] // ranks_of(group), *partial.shape[1:]))
    _reduce_scatter(mine, partial, group=group)
    return mine


def ranks_that_differ(tensor: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """Ranks of the group whose tensor differs from rank 0's; NaN equals NaN."""
    everywhere = gather_rows(tensor.detach().unsqueeze(0), group)
    return [
        rank
        for rank in range(1, everywhere.shape[0])
        if not torch.allclose(everywhere[0], everywhere[rank], rtol=0, atol=0, equal_nan=True)
    ]
