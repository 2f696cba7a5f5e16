"""The distributed optimizer's state: put together on owners, and given back to the ranks that share it out."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.actor import optimizer_shards
from megatron_empg.actor.optimizer_shards import STATE, _buckets, _gather, _load_state, even_owners


class Group:
    """A rank's view of the ranks that share a state out."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.size = (lambda: rank), (lambda: ranks)


class Mail:
    """All-to-all between threads."""

    def __init__(self, ranks: int) -> None:
        self.boxes: dict[tuple[int, int], Any] = {}
        self.barrier = threading.Barrier(ranks, timeout=20)

    def exchange(self, sent: Any, counts: list[int], group: Group) -> Any:
        for other, pieces in enumerate(sent):
            self.boxes[group.rank(), other] = torch.cat([torch.empty(0), *pieces])
        self.barrier.wait()
        received = tuple(self.boxes[other, group.rank()] for other in range(group.size()))
        assert [len(piece) for piece in received] == counts, "sender and receiver count otherwise"
        self.barrier.wait()
        return received


def laid_out(sizes: list[list[int]], ranks: int) -> list[Any]:
    """A buffer of buckets as Megatron lays it out: the last parameter first, padded to even parts."""
    index, buckets, start = {}, [], 0
    for number, bucket in reversed(list(enumerate(sizes))):
        offset = start
        for size in reversed(bucket):
            index[torch.nn.Parameter(torch.randn(size))] = (start, start + size, len(sizes) - 1 - number)
            start += size
        start += -(start - offset) % ranks
        buckets.append(SimpleNamespace(offset=offset, grad_data=torch.empty(start - offset)))
    return [SimpleNamespace(param_index_map=index, buckets=buckets)]


class Optimizer:
    """What a rank of the distributed optimizer knows: its part of each parameter's state."""

    def __init__(self, buffers: list[Any], rank: int, ranks: int, whole: dict[Any, Any]) -> None:
        self.buffers, self.data_parallel_group = buffers, Group(rank, ranks)
        self.local, self.loaded = {}, dict[Any, Any]()
        (buffer,) = buffers
        for parameter, (start, end, number) in buffer.param_index_map.items():
            bucket = buffer.buckets[number]
            part = len(bucket.grad_data) // ranks
            first, last = bucket.offset + rank * part, bucket.offset + (rank + 1) * part
            mine = slice(max(start, first) - start, min(end, last) - start)
            if mine.start < mine.stop:
                self.local[parameter] = {name: whole[parameter][name][mine] for name in STATE}

    def _get_main_param_and_optimizer_states(self, parameter: Any) -> Any:
        return self.local[parameter]

    def _set_main_param_and_optimizer_states(self, parameter: Any, tensors: Any) -> None:
        self.loaded[parameter] = tensors


@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=4),
    ranks=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_owners_hold_whole_parameters_and_give_every_rank_its_part(sizes: list[list[int]], ranks: int) -> None:
    buffers, mail = laid_out(sizes, ranks), Mail(ranks)
    whole = {
        parameter: {name: torch.randn(parameter.numel()) for name in STATE}
        for parameter in buffers[0].param_index_map
    }

    def of_rank(rank: int) -> tuple[Optimizer, dict[int, Any]]:
        optimizer = Optimizer(buffers, rank, ranks, whole)
        gathered: dict[int, Any] = {}
        for places in _buckets(optimizer):
            for name in STATE:
                for number, tensor in _gather(optimizer, places, name).items():
                    gathered.setdefault(number, {})[name] = tensor
        _load_state(optimizer, gathered)
        return optimizer, gathered

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(ranks) as threads:
        patch.setattr(optimizer_shards, "_exchange", mail.exchange)
        results = list(threads.map(of_rank, range(ranks)))
    numbers = sorted(number for _, gathered in results for number in gathered)
    assert numbers == list(range(len(whole))), "every parameter on one rank"
    parameters = list(whole)
    for optimizer, gathered in results:
        for number, state in gathered.items():
            for name in STATE:
                assert torch.equal(state[name], whole[parameters[number]][name])
        assert optimizer.loaded.keys() == optimizer.local.keys()
        for parameter, state in optimizer.loaded.items():
            for name in STATE:
                assert torch.equal(state[name], optimizer.local[parameter][name])


@given(sizes=st.lists(st.integers(1, 1000), max_size=60), ranks=st.integers(1, 8))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_owners_are_even(sizes: list[int], ranks: int) -> None:
    owners = even_owners(sizes, ranks)
    owned = [
        sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(ranks)
    ]
    assert max(owned) - min(owned) <= max(sizes, default=0)
