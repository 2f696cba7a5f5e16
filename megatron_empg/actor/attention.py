"""Causal attention over packed sequences without Transformer Engine: torch's varlen attention on GPU or SDPA."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_empg.actor.context_parallel import ContextShard, gather_tokens, heads_to_tokens, tokens_to_heads
from megatron_empg.actor.layout_rules import heads_divide
from megatron_empg.upstream.torch_kernels import packed_attention

SHORT_HEADS = (
    "all-to-all needs heads and key-value groups of a tensor-parallel rank to divide by the context ranks"
)


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's description of a packed microbatch, and what this project's own attention wants beside it."""

    lengths: list[int] | None = None
    """The sequences' lengths as numbers, which the device need not be asked for."""
    shard: ContextShard | None = None
    """This rank's share of the tokens, under context parallelism."""


class PackedAttention(MegatronModule):
    """Core attention of the local layer spec: each packed sequence attends to itself, causally.

    Megatron's own local attention refuses packed (thd) input and context parallelism. Under the latter,
    ``cp_comm_type`` "all_gather" brings every rank the keys and values of all tokens (any number of heads), "a2a"
    exchanges tokens for heads.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        if attention_dropout or config.attention_dropout:
            raise ValueError("attention_dropout must be 0: this attention has none")
        self.scale = softmax_scale
        self.exchange = cp_comm_type
        self.context_group: Any = None
        if config.context_parallel_size > 1:
            from megatron_empg.actor.parallel import context_group

            self.context_group = context_group()

    def forward(
        self,
        query: Float[Tensor, "tokens heads head_dim"],
        key: Float[Tensor, "tokens kv_heads head_dim"],
        value: Float[Tensor, "tokens kv_heads head_dim"],
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
        **_: Any,
    ) -> Float[Tensor, "tokens hidden"]:
        if packed_seq_params is None:  # [length, batch, heads, head_dim]
            batched = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            return _attend(*batched, scale=self.scale).permute(2, 0, 1, 3).flatten(2)
        cumulative, longest = packed_seq_params.cu_seqlens_q, packed_seq_params.max_seqlen_q
        if self.context_group is not None:
            if self.exchange == "a2a":
                exchange = self._all_to_all
            else:
                exchange = self._all_gather
            return exchange(query, key, value, packed_seq_params).flatten(1)
        lengths = getattr(packed_seq_params, "lengths", None)
        whole = SequenceSpans(lengths, cumulative, longest)
        return causal_attention(query, key, value, whole, whole, self.scale).flatten(1)

    def _all_gather(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences) -> Tensor:
        shard = _shard(packed)
        both = gather_tokens(torch.stack([key, value], dim=1), self.context_group)[shard.key_rows]
        queries = SequenceSpans(shard.query_lengths, shard.cu_queries, max(shard.query_lengths))
        keys = SequenceSpans(shard.key_lengths, shard.cu_keys, max(shard.key_lengths))
        return causal_attention(query, both[:, 0], both[:, 1], queries, keys, self.scale)

    def _all_to_all(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences) -> Tensor:
        group, shard = self.context_group, _shard(packed)
        if not heads_divide(query.shape[1], key.shape[1], group.size()):
            raise ValueError(f"{SHORT_HEADS}: {query.shape[1]} heads, {key.shape[1]} groups, {group.size()} ranks")
        query, key, value = (tokens_to_heads(x, group)[shard.gathered] for x in (query, key, value))
        whole = SequenceSpans(packed.lengths, packed.cu_seqlens_q, packed.max_seqlen_q)
        output = causal_attention(query, key, value, whole, whole, self.scale)
        return heads_to_tokens(output[shard.order], group)


def _shard(packed: PackedSequences) -> ContextShard:
    assert packed.shard is not None, "the microbatch was packed for one context rank"
    return packed.shard


@dataclass
class SequenceSpans:
    """Sequences laid end to end; ``lengths`` are read from ``cumulative`` where they are wanted and not given."""

    lengths: list[int] | None
    cumulative: Int[Tensor, "sequences+1"]
    longest: int

    def as_list(self) -> list[int]:
        if self.lengths is not None:
            return self.lengths
        return self.cumulative.diff().tolist()


def causal_attention(
    query: Float[Tensor, "queries heads head_dim"],
    key: Float[Tensor, "keys kv_heads head_dim"],
    value: Float[Tensor, "keys kv_heads head_dim"],
    queries: SequenceSpans,
    keys: SequenceSpans,
    scale: float | None = None,
) -> Float[Tensor, "queries heads head_dim"]:
    """Each span of queries attends to the like-numbered span of keys, their last tokens aligned."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        boundaries = queries.cumulative, keys.cumulative
        return packed_attention(query, key, value, *boundaries, queries.longest, keys.longest, scale)
    if queries is keys:
        return _same_spans(query, key, value, queries.as_list(), scale)
    parts = zip(
        *(query.split(queries.as_list()), key.split(keys.as_list()), value.split(keys.as_list())), strict=True
    )
    return torch.cat([_one_sequence(*part, scale) for part in parts])


def _same_spans(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float | None) -> Tensor:
    """Sequences of nearly one length share a padded call: many small calls cost more than a little padding."""
    output = torch.empty_like(query)
    boundaries = [0, *itertools.accumulate(lengths)]
    for first, last in _groups_of_like_length(lengths):
        part = slice(boundaries[first], boundaries[last])
        output[part] = _padded(query[part], key[part], value[part], lengths[first:last], scale)
    return output


def _padded(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float | None) -> Tensor:
    """Pad at the end: causality hides the padding from every real token."""
    if len(lengths) == 1:
        return _one_sequence(query, key, value, scale)
    padded = [_in_rows(packed, lengths) for packed in (query, key, value)]
    result = _attend(*padded, scale=scale).transpose(1, 2)
    return torch.cat([result[row, :length] for row, length in enumerate(lengths)])


def _in_rows(packed: Tensor, lengths: list[int]) -> Tensor:
    """From [tokens, heads, head_dim] to [sequence, heads, length, head_dim], zeros behind the shorter ones."""
    rows = torch.nn.utils.rnn.pad_sequence(list(packed.split(lengths)), batch_first=True)
    return rows.transpose(1, 2)


def _one_sequence(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    batch_of_one = [packed.transpose(0, 1).unsqueeze(0) for packed in (query, key, value)]
    return _attend(*batch_of_one, scale=scale)[0].transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
    """[batch, heads, length, head_dim]; causal, the last query aligned with the last key."""
    from torch.nn.attention.bias import causal_lower_right

    same = query.shape[2] == key.shape[2]
    mask = None
    if not same:
        mask = causal_lower_right(query.shape[2], key.shape[2])
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=same,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _groups_of_like_length(lengths: list[int], waste: float = 0.25) -> list[tuple[int, int]]:
    """Runs of consecutive sequences whose padding to the run's longest stays below `waste` of the whole."""
    groups: list[tuple[int, int]] = []
    first, total, longest = 0, 0, 0
    for index, length in enumerate(lengths):
        grown, count = max(longest, length), index - first + 1
        if count > 1 and grown * count > (total + length) / (1 - waste):
            groups.append((first, index))
            first, total, grown = index, 0, length
        total, longest = total + length, grown
    if lengths:
        groups.append((first, len(lengths)))
    return [(a, b) for a, b in groups if sum(lengths[a:b])]
