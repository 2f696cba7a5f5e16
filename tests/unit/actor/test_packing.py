"""Where the policy's own tokens are predicted, and what of it a context-parallel rank holds."""

import pytest
import torch

from megatron_empg.actor.packing import IGNORE, Packer, Sequence


def sequence(tokens: list[int], steps: list[tuple[int, int]], **values: list[float]) -> Sequence:
    offsets = torch.tensor(steps).reshape(-1, 2).long()
    return Sequence(torch.tensor(tokens), offsets, {name: torch.tensor(v) for name, v in values.items()})


def test_a_packed_batch_by_hand() -> None:
    first = sequence([10, 11, 12, 13, 14, 15], [(2, 4), (5, 6)], advantages=[1.0, 2.0, 3.0])
    second = sequence([20, 21, 22], [(1, 3)], advantages=[4.0, 5.0])
    batch = Packer([first, second], ["advantages"]).pack([1, 0])
    assert batch.tokens.tolist() == [[20, 21, 22, 10, 11, 12, 13, 14, 15]]
    # Each position is asked for its next token, where that is the policy's own: never across sequences.
    assert batch.targets.tolist() == [21, 22, IGNORE, IGNORE, 12, 13, IGNORE, 15, IGNORE]
    assert batch.cu_seqlens.tolist() == [0, 3, 9]
    assert batch.lengths == [3, 6]
    assert batch.values["advantages"].tolist() == [4.0, 5.0, 1.0, 2.0, 3.0]
    assert batch.own.tolist() == [3, 4, 0, 1, 2]


@pytest.mark.parametrize(("multiple", "padding"), [(1, 0), (2, 1), (4, 3), (5, 0)])
def test_padding_is_a_sequence_that_predicts_nothing(multiple: int, padding: int) -> None:
    batch = Packer([sequence([1, 2, 3, 4, 5], [(1, 5)])], multiple=multiple).pack([0])
    assert batch.tokens.shape[1] == 5 + padding
    assert batch.targets[5:].tolist() == [IGNORE] * padding
    assert batch.cu_seqlens.tolist() == ([0, 5, 5 + padding] if padding else [0, 5])


def test_a_microbatch_without_sequences_can_be_run() -> None:
    batch = Packer([sequence([1, 2], [(1, 2)], advantages=[1.0])], ["advantages"], multiple=2).pack([])
    assert batch.tokens.shape == (1, 2)
    assert (batch.targets == IGNORE).all()
    assert batch.values["advantages"].shape == (0,)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([(2, 2)], "non-empty"),
        ([(3, 2)], "increasing"),
        ([(1, 3), (2, 4)], "disjoint"),
        ([(3, 4), (1, 2)], "increasing"),
        ([(0, 2)], "first token"),
        ([(2, 6)], "outside tokens 1 to 5"),
    ],
)
def test_impossible_spans_are_refused(steps: list[tuple[int, int]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sequence([1, 2, 3, 4, 5], steps)


def test_values_must_fit_the_own_tokens() -> None:
    with pytest.raises(ValueError, match="advantages has 3 values for 2 own tokens"):
        sequence([1, 2, 3], [(1, 3)], advantages=[1.0, 2.0, 3.0])


def test_steps_may_touch() -> None:
    touching = sequence([1, 2, 3, 4], [(1, 2), (2, 4)])
    assert touching.predictors().tolist() == [0, 1, 2]
    assert touching.step_lengths == [1, 2]


def test_context_ranks_hold_two_chunks_of_each_sequence() -> None:
    """Chunks 0 and 3 on the first rank, 1 and 2 on the second; lengths padded to a multiple of 4."""
    first, second = sequence(list(range(10, 18)), [(1, 8)]), sequence([30, 31, 32], [(2, 3)])
    held = [Packer([first, second], context=2, rank=rank).pack([0, 1]) for rank in (0, 1)]
    assert held[0].tokens.tolist() == [[10, 11, 16, 17, 30, 0]]
    assert held[1].tokens.tolist() == [[12, 13, 14, 15, 31, 32]]
    # A token at a chunk's end predicts the next one, which another rank holds.
    assert held[0].targets.tolist() == [11, 12, 17, IGNORE, IGNORE, IGNORE]
    assert held[1].targets.tolist() == [13, 14, 15, 16, 32, IGNORE]
    assert [batch.own.tolist() for batch in held] == [[0, 1, 6], [2, 3, 4, 5, 7]]
    assert held[0].cu_seqlens.tolist() == [0, 8, 12]


@pytest.mark.parametrize("multiple", [1, 3, 4])
@pytest.mark.parametrize("context", [2, 3, 4])
def test_context_ranks_share_the_own_tokens(context: int, multiple: int) -> None:
    """Every own token, with its values, lies on one rank; all ranks hold equally many tokens."""
    generator = torch.Generator().manual_seed(context)
    made = []
    for length in (5, 17, 40):
        spans = [(1, 2), (length // 2, length)]
        own = 1 + length - length // 2
        values = torch.rand(own, generator=generator).tolist()
        made.append(
            sequence(torch.randint(0, 90, (length,), generator=generator).tolist(), spans, advantages=values)
        )
    whole = Packer(made, ["advantages"]).pack([2, 0, 1])
    shares = [
        Packer(made, ["advantages"], context=context, rank=rank, multiple=multiple).pack([2, 0, 1])
        for rank in range(context)
    ]
    assert len({share.tokens.shape for share in shares}) == 1
    assert shares[0].tokens.shape[1] % multiple == 0
    order = torch.cat([share.own for share in shares]).argsort()
    assert torch.equal(torch.cat([share.own for share in shares])[order], whole.own.sort().values)
    own_order = whole.own.argsort()
    for name in ("targets", "advantages"):
        of_share = [s.targets[s.targets != IGNORE] if name == "targets" else s.values[name] for s in shares]
        of_whole = whole.targets[whole.targets != IGNORE] if name == "targets" else whole.values[name]
        assert torch.equal(torch.cat(of_share)[order], of_whole[own_order])


def test_the_ranks_tokens_are_found_again() -> None:
    """``gathered`` and ``order`` are each other's inverse; ``key_rows`` are each chunk's own past."""
    made = [sequence(list(range(100, 112)), [(1, 2)]), sequence(list(range(200, 208)), [(1, 2)])]
    shares = [Packer(made, context=2, rank=rank).pack([0, 1]) for rank in (0, 1)]
    end_to_end = torch.cat([share.tokens[0] for share in shares])
    packed = torch.cat([m.tokens for m in made])
    for rank, share in enumerate(shares):
        assert share.shard is not None
        assert torch.equal(end_to_end[share.shard.gathered], packed)
        assert torch.equal(packed[share.shard.order], end_to_end)
        seen = end_to_end[share.shard.key_rows].split(share.shard.key_lengths)
        for queries, keys in zip(share.tokens[0].split(share.shard.query_lengths), seen, strict=True):
            assert keys[-1] == queries[-1], rank
            assert torch.equal(keys, packed[packed // 100 == keys[0] // 100][: len(keys)])
