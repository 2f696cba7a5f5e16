"""Which columns of the vocabulary a tensor-parallel rank holds, and what inputs are accepted."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int
from torch import Tensor

from megatron_empg.common.dtypes import name_of
from megatron_empg.upstream.torch_kernels import assert_on_device
from megatron_empg.vocab_parallel.debug import debug_enabled, require_same_on_all_ranks

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class VocabShard:
    """One rank's contiguous columns ``[start, start + columns)``, of which the first `width` are real tokens.

    The others pad the vocabulary (Megatron pads to a multiple of TP·128) and are not in the distribution.
    """

    start: int
    columns: int
    width: int
    vocab_size: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, columns: int, vocab_size: int | None, group: dist.ProcessGroup | None) -> "VocabShard":
        """`group` None means the vocabulary is not sharded; `vocab_size` None means it is not padded."""
        ranks, rank = (1, 0) if group is None else (group.size(), group.rank())
        if vocab_size is None:
            vocab_size = columns * ranks
        if not 1 <= vocab_size <= columns * ranks:
            raise ValueError(
                f"vocab_size is {vocab_size}, but {ranks} shard(s) of {columns} columns allow 1 to "
                f"{columns * ranks}; give the unpadded size of the whole vocabulary"
            )
        start = rank * columns
        return cls(start, columns, min(max(vocab_size - start, 0), columns), vocab_size, group)

    def local(self, targets: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
        """Column of each target in this shard, -1 where another shard holds it."""
        column = targets - self.start
        return torch.where((column >= 0) & (column < self.width), column, -1)


def check_matrix(name: str, matrix: Tensor, layout: str) -> None:
    """Raise ValueError unless `matrix` has two dimensions and a floating-point type."""
    if matrix.dim() != 2:
        raise ValueError(f"{name} must be {layout}, got the shape {tuple(matrix.shape)}")
    if matrix.dtype not in FLOATS:
        allowed = ", ".join(name_of(dtype) for dtype in FLOATS)
        raise ValueError(f"{name} must be one of {allowed}, got {name_of(matrix.dtype)}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is a positive finite number."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def kept_targets(
    targets: Int[Tensor, " tokens"], tokens: int, device: torch.device, shard: VocabShard, ignore_index: int
) -> Bool[Tensor, " tokens"]:
    """Which targets are not ignored.

    Raises ValueError for a wrong shape, type or device; for a target outside the vocabulary on CPU and under
    the debug switch. On CUDA that is an asynchronous device assert otherwise, which costs no synchronisation.
    """
    if targets.shape != (tokens,):
        raise ValueError(f"targets must be [tokens] = [{tokens}], got the shape {tuple(targets.shape)}")
    if targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"targets must be int64 or int32, got {name_of(targets.dtype)}")
    if targets.device != device:
        raise ValueError(f"targets are on {targets.device}, the other inputs on {device}; move them there")
    keep = targets != ignore_index
    valid = (targets >= 0) & (targets < shard.vocab_size) | ~keep
    if targets.is_cuda and not debug_enabled():
        assert_on_device(valid.all())
    elif not bool(valid.all()):
        where = int((~valid).nonzero()[0])
        raise ValueError(
            f"targets[{where}] is {int(targets[where])}, outside the vocabulary of {shard.vocab_size} tokens; "
            f"a token without a target takes the ignore_index, {ignore_index}"
        )
    if debug_enabled():
        require_same_on_all_ranks("targets", targets, shard.group)
    return keep
