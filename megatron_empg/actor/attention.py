"""Causal attention over packed sequences without Transformer Engine, by torch's SDPA."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class PackedAttention(MegatronModule):
    """Core attention of the local layer spec: each packed sequence attends to itself, causally.

    Megatron's own local attention refuses packed (thd) input. Sequences of nearly one length share a padded
    SDPA call: on CPU, and for short episodes anywhere, many small calls cost more than a little padding.
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
        if config.context_parallel_size != 1:
            raise ValueError("context_parallel_size above 1 needs Transformer Engine's attention")
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale

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
            return self._attend(*batched).permute(2, 0, 1, 3).flatten(2)
        boundaries = packed_seq_params.cu_seqlens_q.tolist()
        lengths = [end - start for start, end in itertools.pairwise(boundaries)]
        output = torch.empty_like(query)
        for first, last in _groups_of_like_length(lengths):
            start, end = boundaries[first], boundaries[last]
            part = slice(start, end)
            output[part] = self._attend_padded(query[part], key[part], value[part], lengths[first:last])
        return output.flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, heads, length, head_dim]; causal."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=self.scale,
            enable_gqa=query.size(1) != key.size(1),
            dropout_p=self.dropout if self.training else 0.0,
        )

    def _attend_padded(self, query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
        """Pad at the end: causality hides the padding from every real token."""
        if len(lengths) == 1:
            return self._attend(*(x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)))[0].transpose(0, 1)
        padded = (
            torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2)
            for x in (query, key, value)
        )
        result = self._attend(*padded).transpose(1, 2)
        return torch.cat([result[row, :length] for row, length in enumerate(lengths)])


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
