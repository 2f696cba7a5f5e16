"""Packed causal attention against a float64 loop over queries, the keys' past included."""

import itertools

import pytest
import torch
from torch import Tensor

from megatron_empg.actor import platform

platform.prepare()


def expected(query: Tensor, key: Tensor, value: Tensor, queries: list[int], keys: list[int]) -> Tensor:
    """One query at a time: it sees the keys of its span up to its own place from the end."""
    rows = []
    query_starts, key_starts = [0, *itertools.accumulate(queries)], [0, *itertools.accumulate(keys)]
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(repeat, dim=1) for x in (key, value))
    for span, (count, seen) in enumerate(zip(queries, keys, strict=True)):
        for offset in range(count):
            past = slice(key_starts[span], key_starts[span] + seen - count + offset + 1)
            scores = torch.einsum("hd,khd->hk", query[query_starts[span] + offset].double(), key[past])
            weights = (scores / query.shape[-1] ** 0.5).softmax(-1)
            rows.append(torch.einsum("hk,khd->hd", weights, value[past]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [([7, 1, 6, 12, 3], None), ([5], None), ([4, 4, 2, 2], [4, 16, 2, 8])],
    ids=["same spans", "one", "with a past"],
)
def test_equals_a_loop_over_queries(queries: list[int], keys: list[int] | None) -> None:
    from megatron_empg.actor.attention import SequenceSpans, causal_attention

    generator = torch.Generator().manual_seed(1)
    seen = keys or queries
    query, key, value = (
        torch.randn(total, heads, 8, generator=generator, requires_grad=True)
        for total, heads in ((sum(queries), 4), (sum(seen), 2), (sum(seen), 2))
    )

    def spans(lengths: list[int]) -> SequenceSpans:
        return SequenceSpans(None, torch.tensor([0, *itertools.accumulate(lengths)]).int(), max(lengths))

    q = spans(queries)
    output = causal_attention(query, key, value, q, q if keys is None else spans(keys))
    reference = expected(query, key, value, queries, seen)
    torch.testing.assert_close(output.double(), reference, atol=1e-6, rtol=0)
    weights = torch.randn(output.shape, generator=generator)
    gradients = torch.autograd.grad((output * weights).sum(), (query, key, value))
    references = torch.autograd.grad((reference * weights).sum(), (query, key, value))
    for gradient, reference_gradient in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference_gradient, atol=1e-5, rtol=0)
