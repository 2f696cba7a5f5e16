"""The distributed optimizer's state on its way to and from a checkpoint that any layout can read.

Such a checkpoint holds the state of each parameter whole. Megatron-core's way there gathers that of all parameters
in the main memory of every rank, twelve bytes for each parameter of the model-parallel shard, in saving and in
loading; eight ranks of a large model exhaust a node. Here each parameter is put together on one of the ranks that
share the state out, its owner, bucket by bucket over the device's collectives. A rank writes, reads and holds what
it owns, as much as its part of the optimizer's state. The files are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from megatron_empg.upstream import megatron_optimizer

STATE = "param", "exp_avg", "exp_avg_sq"
"""What Adam keeps of a parameter, by Megatron's names: the main weight and two moments, float32."""


def apply() -> None:
    """Replace what Megatron does for its format ``fully_reshardable``. Safe to call again."""
    megatron_optimizer.share_out_fully_reshardable(_sharded_state, _load_state)


@dataclass(frozen=True)
class _Place:
    """A parameter in a bucket, whose elements are cut into one even part a rank."""

    number: int
    """Among all parameters of the optimizer."""
    parameter: torch.nn.Parameter
    start: int
    """Its first element in the bucket."""
    part: int
    """Elements of each rank's part of the bucket."""
    owner: int

    def piece(self, rank: int) -> slice:
        """The slice of the parameter that lies in a rank's part; it may be empty."""
        start, size = rank * self.part - self.start, self.parameter.numel()
        return slice(min(max(start, 0), size), min(max(start + self.part, 0), size))

    def length(self, rank: int) -> int:
        piece = self.piece(rank)
        return piece.stop - piece.start


def _buckets(optimizer: Any) -> Iterator[list[_Place]]:
    """The parameters of each bucket in their order; alike on all ranks of the optimizer's group."""
    ranks = optimizer.data_parallel_group.size()
    buckets = megatron_optimizer.parameters_by_bucket(optimizer)
    sizes: dict[int, int] = {}
    for bucket in buckets:
        for each in bucket:
            sizes[each.number] = each.size
    owners = even_owners([sizes[number] for number in range(len(sizes))], ranks)
    for bucket in buckets:
        places = []
        for each in bucket:
            part = each.bucket_size // ranks
            places.append(_Place(each.number, each.parameter, each.start, part, owners[each.number]))
        yield places


def even_owners(sizes: list[int], ranks: int) -> list[int]:
    """The rank that owns each parameter: the largest first, each to the rank that has least."""
    owned, owners = [0] * ranks, [0] * len(sizes)
    largest_first = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)  # equal ones in their order
    for number in largest_first:
        owners[number] = min(range(ranks), key=owned.__getitem__)
        owned[owners[number]] += sizes[number]
    return owners


def _sharded_state(
    self: Any, model_sharded_state_dict: Any, is_loading: bool = False, metadata: Any = None
) -> dict[int, Any]:
    """Sharded tensors of the parameters that this rank owns, by the parameter's number."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    described, _ = extract_sharded_tensors_and_factories(model_sharded_state_dict)
    of_parameter = {base.data: base for base in nested_values(described)}
    rank, state = self.data_parallel_group.rank(), dict[int, Any]()
    for places in _buckets(self):
        for name in STATE:
            if is_loading:
                whole = _empty_wholes(_owned_by(rank, places))
            else:
                whole = _gather(self, places, name)
            for place in places:
                if place.number in whole:
                    like = of_parameter[place.parameter]
                    tensor = whole[place.number].view(like.data.shape)
                    state.setdefault(place.number, {})[name] = _like(like, name, tensor)
    return state or {-1: LocalNonpersistentObject(None)}  # an empty part would count as common to all ranks


def _owned_by(rank: int, places: list[_Place]) -> list[_Place]:
    """In their order."""
    return [place for place in places if place.owner == rank]


def _empty_wholes(places: list[_Place]) -> dict[int, Float[Tensor, "elements"]]:
    """Room for each parameter, on the CPU, by its number."""
    return {place.number: torch.empty(place.parameter.numel()) for place in places}


def _lengths(places: list[_Place], rank: int) -> list[int]:
    """Elements of each parameter in the rank's part."""
    return [place.length(rank) for place in places]


def _like(parameter: Any, name: str, tensor: Tensor) -> Any:
    """A sharded tensor that lies in the checkpoint as the parameter does, without replicas on these ranks."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    changes: dict[str, Any] = {
        "key": f"optimizer.state.{name}.{parameter.key}",
        "data": tensor,
        "replica_id": (*parameter.replica_id[:-1], 0),
    }
    if isinstance(parameter, ShardedTensor):
        changes["dtype"] = tensor.dtype
    return replace(parameter, **changes)


@torch.no_grad()
def _gather(optimizer: Any, places: list[_Place], name: str) -> dict[int, Float[Tensor, "elements"]]:
    """Gather on the CPU the whole parameters of a bucket that this rank owns, by the parameter's number."""
    group = optimizer.data_parallel_group
    rank, ranks = group.rank(), range(group.size())
    mine = _owned_by(rank, places)
    sent: list[list[Tensor]] = [[] for _ in ranks]
    for place in places:
        if place.length(rank):
            state = megatron_optimizer.local_state(optimizer, place.parameter)[name]
            sent[place.owner].append(state.flatten())
    counts = [sum(_lengths(mine, other)) for other in ranks]
    received = _exchange(sent, counts, group)
    whole = _empty_wholes(mine)
    for other, together in zip(ranks, received, strict=True):
        pieces = together.cpu().split(_lengths(mine, other))
        for place, piece in zip(mine, pieces, strict=True):
            whole[place.number][place.piece(other)] = piece
    return whole


@torch.no_grad()
def _load_state(self: Any, state_dict: dict[int, Any]) -> None:
    """Give every rank its part of the state from the owners' whole parameters."""
    group = self.data_parallel_group
    rank, ranks = group.rank(), range(group.size())
    for places in _buckets(self):
        local: dict[int, dict[str, Tensor]] = {place.number: {} for place in places}
        mine = _owned_by(rank, places)
        owned = [_owned_by(owner, places) for owner in ranks]
        counts = [sum(_lengths(of_owner, rank)) for of_owner in owned]
        for name in STATE:
            sent: list[list[Tensor]] = [[] for _ in ranks]
            for place in mine:
                whole = state_dict[place.number][name].flatten()
                for other in ranks:
                    sent[other].append(whole[place.piece(other)])
            received = _exchange(sent, counts, group)
            for of_owner, together in zip(owned, received, strict=True):
                pieces = together.split(_lengths(of_owner, rank))
                for place, piece in zip(of_owner, pieces, strict=True):
                    local[place.number][name] = piece
        for place in places:
            if place.length(rank):
                megatron_optimizer.set_local_state(self, place.parameter, local[place.number])


def _exchange(sent: list[list[Tensor]], counts: list[int], group: Any) -> tuple[Float[Tensor, "count"], ...]:
    """All-to-all of float32 pieces, a list for each rank: what came from each, of ``counts`` elements."""
    from megatron_empg.actor.platform import device

    on_device = partial(torch.empty, dtype=torch.float32, device=device())
    moved = [on_device(0)]
    sizes = []
    for pieces in sent:
        moved += [piece.to(device()) for piece in pieces]
        sizes.append(sum(piece.numel() for piece in pieces))
    outgoing = torch.cat(moved)
    incoming = on_device(sum(counts))
    dist.all_to_all_single(incoming, outgoing, counts, sizes, group=group)
    return incoming.split(counts)
