"""Where the policy's own tokens are predicted, and what of it a context-parallel rank holds."""

import pytest
import torch

from megatron_empg.actor.packing import IGNORE, Microbatch, Packer
from megatron_empg.algorithms.sample import Sample, TokenStreams


def sample(tokens: list[int], turns: list[tuple[int, int]], advantages: list[float] | None = None) -> Sample:
    offsets = torch.tensor(turns).reshape(-1, 2).long()
    streams = TokenStreams() if advantages is None else TokenStreams(advantages=torch.tensor(advantages))
    return Sample(torch.tensor(tokens), offsets, streams)


def streams_of(samples: list[Sample]) -> TokenStreams:
    return TokenStreams.concatenated([s.streams for s in samples])


def test_a_packed_batch_by_hand() -> None:
    first = sample([10, 11, 12, 13, 14, 15], [(2, 4), (5, 6)], [1.0, 2.0, 3.0])
    second = sample([20, 21, 22], [(1, 3)], [4.0, 5.0])
    batch = Packer([first, second], streams_of([first, second])).pack([1, 0])
    assert batch.tokens.tolist() == [[20, 21, 22, 10, 11, 12, 13, 14, 15]]
    # Each position is asked for its next token, where that is the policy's own: never across sequences.
    assert batch.targets.tolist() == [21, 22, IGNORE, IGNORE, 12, 13, IGNORE, 15, IGNORE]
    assert batch.cu_seqlens.tolist() == [0, 3, 9]
    assert batch.lengths == [3, 6]
    assert advantages(batch).tolist() == [4.0, 5.0, 1.0, 2.0, 3.0]
    assert batch.own.tolist() == [3, 4, 0, 1, 2]
    assert batch.segments.sample_of_token.tolist() == [0, 0, 1, 1, 1]
    assert batch.segments.turn_of_token.tolist() == [0, 0, 1, 1, 2]
    assert (batch.segments.samples, batch.segments.turns) == (2, 3)


@pytest.mark.parametrize(("multiple", "padding"), [(1, 0), (2, 1), (4, 3), (5, 0)])
def test_padding_is_a_sequence_that_predicts_nothing(multiple: int, padding: int) -> None:
    batch = Packer([sample([1, 2, 3, 4, 5], [(1, 5)])], multiple=multiple).pack([0])
    assert batch.tokens.shape[1] == 5 + padding
    assert batch.targets[5:].tolist() == [IGNORE] * padding
    assert batch.cu_seqlens.tolist() == ([0, 5, 5 + padding] if padding else [0, 5])


def test_a_microbatch_without_sequences_can_be_run() -> None:
    samples = [sample([1, 2], [(1, 2)], [1.0])]
    batch = Packer(samples, streams_of(samples), multiple=2).pack([])
    assert batch.tokens.shape == (1, 2)
    assert (batch.targets == IGNORE).all()
    assert advantages(batch).shape == (0,)
    assert batch.segments.turn_means(torch.empty(0), torch.empty(0) > 0).shape == (0,)
    assert (batch.segments.samples, batch.segments.turns) == (0, 0)


def test_a_sample_without_own_tokens_has_a_number_of_its_own() -> None:
    samples = [sample([1, 2], [(1, 2)]), sample([3, 4], []), sample([5, 6, 7], [(1, 2), (2, 3)])]
    segments = Packer(samples).pack([0, 1, 2]).segments
    assert segments.sample_of_token.tolist() == [0, 2, 2]
    assert segments.turn_of_token.tolist() == [0, 1, 2]
    assert (segments.samples, segments.turns) == (3, 3)
    alone = Packer(samples).pack([1]).segments
    assert (alone.samples, alone.turns, alone.sample_of_token.dtype) == (1, 0, torch.long)


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([(2, 2)], "non-empty"),
        ([(3, 2)], "increasing"),
        ([(1, 3), (2, 4)], "disjoint"),
        ([(3, 4), (1, 2)], "increasing"),
        ([(0, 2)], "first token"),
        ([(2, 6)], "outside tokens 1 to 5"),
    ],
)
def test_impossible_spans_are_refused(turns: list[tuple[int, int]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sample([1, 2, 3, 4, 5], turns)


def test_streams_must_fit_the_own_tokens() -> None:
    with pytest.raises(ValueError, match="advantages has 3 values for 2 own tokens"):
        sample([1, 2, 3], [(1, 3)], [1.0, 2.0, 3.0])


def test_all_samples_have_the_same_streams() -> None:
    with pytest.raises(ValueError, match=r"one sample has the streams \['advantages'\], another \[\]"):
        streams_of([sample([1, 2], [(1, 2)], [1.0]), sample([1, 2], [(1, 2)])])


def test_turns_may_touch() -> None:
    touching = sample([1, 2, 3, 4], [(1, 2), (2, 4)])
    assert touching.predictors().tolist() == [0, 1, 2]
    assert touching.turn_lengths == [1, 2]


def test_context_ranks_hold_two_chunks_of_each_sequence() -> None:
    """Chunks 0 and 3 on the first rank, 1 and 2 on the second; lengths padded to a multiple of 4."""
    first, second = sample(list(range(10, 18)), [(1, 8)]), sample([30, 31, 32], [(2, 3)])
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
        made.append(sample(torch.randint(0, 90, (length,), generator=generator).tolist(), spans, values))
    streams = streams_of(made)
    whole = Packer(made, streams).pack([2, 0, 1])
    shares = [
        Packer(made, streams, context=context, rank=rank, multiple=multiple).pack([2, 0, 1])
        for rank in range(context)
    ]
    assert len({share.tokens.shape for share in shares}) == 1
    assert shares[0].tokens.shape[1] % multiple == 0
    order = torch.cat([share.own for share in shares]).argsort()
    assert torch.equal(torch.cat([share.own for share in shares])[order], whole.own.sort().values)
    own_order = whole.own.argsort()
    for of_batch in (own_targets, advantages, sample_numbers, turn_numbers):
        of_shares = torch.cat([of_batch(share) for share in shares])
        assert torch.equal(of_shares[order], of_batch(whole)[own_order]), of_batch.__name__
    for share in shares:
        assert (share.segments.samples, share.segments.turns) == (3, 6)


def own_targets(batch: Microbatch) -> torch.Tensor:
    return batch.targets[batch.targets != IGNORE]


def advantages(batch: Microbatch) -> torch.Tensor:
    assert batch.streams.advantages is not None
    return batch.streams.advantages


def sample_numbers(batch: Microbatch) -> torch.Tensor:
    return batch.segments.sample_of_token


def turn_numbers(batch: Microbatch) -> torch.Tensor:
    return batch.segments.turn_of_token


def test_the_ranks_tokens_are_found_again() -> None:
    """``gathered`` and ``order`` are each other's inverse; ``key_rows`` are each chunk's own past."""
    made = [sample(list(range(100, 112)), [(1, 2)]), sample(list(range(200, 208)), [(1, 2)])]
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
