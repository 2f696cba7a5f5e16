"""Context parallelism: which tokens of a packed microbatch a rank holds, and attention's exchange between ranks.

The layout is megatron-core's: each sequence is cut into 2·size chunks and rank r holds chunks r and
2·size - 1 - r, so that causal attention costs every rank the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def zigzag(lengths: list[int], rank: int, size: int) -> Int[Tensor, "local_tokens"]:
    """Positions, in the packed microbatch, of the tokens that a rank holds; lengths divide by 2·size."""
    parts, start = [], 0
    for length in lengths:
        chunk = length // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
        start += length
    return torch.cat(parts)


@dataclass
class ContextShard:
    """What a rank's attention needs to know of one microbatch; positions count from the microbatch's start."""

    gathered: Int[Tensor, "tokens"]
    """Row of each position in the ranks' shares laid end to end."""
    order: Int[Tensor, "tokens"]
    """Position of each of those rows: the inverse of ``gathered``."""
    key_rows: Int[Tensor, "keys"]
    """Rows that each local chunk attends to, chunk after chunk: its sequence from the start to the chunk's end."""
    query_lengths: list[int]
    key_lengths: list[int]
    """Tokens of each local chunk, and of what it attends to."""
    cu_queries: Int[Tensor, "chunks+1"]
    cu_keys: Int[Tensor, "chunks+1"]

    @classmethod
    def of(cls, lengths: list[int], rank: int, size: int) -> "ContextShard":
        """The shard of a rank, from the padded lengths of a microbatch's sequences."""
        order = torch.cat([zigzag(lengths, other, size) for other in range(size)])
        gathered = order.argsort()
        queries, keys, rows, start = [], [], [], 0
        for length in lengths:
            chunk = length // (2 * size)
            for number in (rank, 2 * size - 1 - rank):
                end = (number + 1) * chunk
                queries.append(chunk)
                keys.append(end)
                rows.append(gathered[start : start + end])
            start += length
        return cls(gathered, order, torch.cat(rows), queries, keys, _cumulative(queries), _cumulative(keys))

    def to(self, device: torch.device) -> "ContextShard":
        return ContextShard(
            self.gathered.to(device),
            self.order.to(device),
            self.key_rows.to(device),
            self.query_lengths,
            self.key_lengths,
            self.cu_queries.to(device),
            self.cu_keys.to(device),
        )


def _cumulative(lengths: list[int]) -> Int[Tensor, "n+1"]:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def gather_tokens(x: Float[Tensor, "local *rest"], group: Any) -> Float[Tensor, "tokens *rest"]:
    """Every rank's tokens end to end; backward sums the ranks' gradients of each token."""
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

    gathered: Tensor = gather_from_sequence_parallel_region(x.contiguous(), group=group)
    return gathered


def tokens_to_heads(x: Float[Tensor, "local heads dim"], group: Any) -> Float[Tensor, "tokens heads/size dim"]:
    """All-to-all: from some tokens of all heads to all tokens (in the ranks' order) of some heads."""
    from megatron.core.tensor_parallel.mappings import all_to_all

    size = group.size()
    local, heads, dim = x.shape
    by_head = x.view(local, size, heads // size, dim).transpose(0, 1)
    exchanged: Tensor = all_to_all(group, by_head.reshape(size * local, heads // size, dim))
    return exchanged


def heads_to_tokens(x: Float[Tensor, "tokens heads/size dim"], group: Any) -> Float[Tensor, "local heads dim"]:
    """The inverse of `tokens_to_heads`."""
    from megatron.core.tensor_parallel.mappings import all_to_all

    size = group.size()
    tokens, heads, dim = x.shape
    by_head = all_to_all(group, x.contiguous()).view(size, tokens // size, heads, dim)
    return by_head.transpose(0, 1).reshape(tokens // size, size * heads, dim)
