"""What ranks know alike, between processes."""

from typing import Any

import pytest
import torch

from megatron_empg.weights.checkpoints.errors import CheckpointError
from tests.distributed.ranks import run_ranks

CPU = torch.device("cpu")


def shared() -> dict[str, Any]:
    import torch.distributed as dist

    from megatron_empg.common import ranks

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    data = bytes(range(256)) if rank == 0 else b""
    usual, ranks.CHUNK_BYTES = ranks.CHUNK_BYTES, 100
    received = [
        ranks.broadcast_bytes(memoryview(data), CPU),
        ranks.broadcast_bytes(memoryview(b""), CPU),
    ]
    ranks.CHUNK_BYTES = usual
    world = dist.group.WORLD
    values = torch.tensor([rank, -rank], dtype=torch.float32)
    return {
        "received": received,
        "flags": [ranks.agreed(rank == 0, CPU), ranks.agreed(rank != 0, CPU)],
        "gathered": ranks.gathered({"rank": rank}),
        "first": ranks.on_first_rank(lambda: f"of {dist.get_rank()}", CheckpointError),
        "size": [ranks.ranks_of(world), ranks.ranks_of(None)],
        "sum": ranks.sum_over_ranks_(values.clone(), world).tolist(),
        "maximum": ranks.max_over_ranks_(values.clone(), world).tolist(),
        "alone": ranks.sum_over_ranks_(values.clone(), None).tolist(),
        "faults": [fault_of_one(0), fault_of_one(1), failed(OSError("no space")), failed(CheckpointError("torn"))],
    }


def fault_of_one(rank: int) -> str:
    """What every rank is told when this one was given something invalid."""
    import torch.distributed as dist

    from megatron_empg.common.ranks import raise_together

    with pytest.raises(ValueError, match=r".") as raised:
        raise_together("k is -1" if dist.get_rank() == rank else None, dist.group.WORLD, CPU)
    return str(raised.value)


def failed(error: Exception) -> str:
    from megatron_empg.common.ranks import on_first_rank

    def work() -> None:
        raise error

    with pytest.raises(CheckpointError) as raised:
        on_first_rank(work, CheckpointError)
    return str(raised.value)


def test_two_ranks_know_the_same() -> None:
    first, second = run_ranks(shared, 2)
    assert (first.pop("received"), second.pop("received")) == ([b"", b""], [bytes(range(256)), b""])
    assert (first.pop("alone"), second.pop("alone")) == ([0.0, 0.0], [1.0, -1.0])
    theirs = "another rank of the group was given invalid values; its own error names them"
    assert first.pop("faults") == ["k is -1", theirs, "no space", "torn"]
    assert second.pop("faults") == [theirs, "k is -1", "no space", "torn"]
    assert first == second
    assert first == {
        "flags": [True, False],
        "gathered": [{"rank": 0}, {"rank": 1}],
        "first": "of 0",
        "size": [2, 1],
        "sum": [1.0, -1.0],
        "maximum": [1.0, 0.0],
    }
