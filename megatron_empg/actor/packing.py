"""Samples packed into microbatches: what to predict where, and the per-token streams that go with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from megatron_empg.actor.context_parallel import ContextShard, zigzag
from megatron_empg.algorithms.sample import Sample, TokenStreams
from megatron_empg.algorithms.segments import Segments

IGNORE = -100
NO_TURNS = torch.empty(0, 2, dtype=torch.long)


@dataclass
class Microbatch:
    """This rank's tokens of some samples laid end to end."""

    tokens: Int[Tensor, "1 local_tokens"]
    targets: Int[Tensor, "local_tokens"]
    """The next token where it is the policy's own, else IGNORE."""
    own: Int[Tensor, "own_tokens"]
    """Which of the caller's own tokens (all samples laid end to end) these targets are."""
    streams: TokenStreams
    """The streams of these own tokens, in this order; the segments are in the same order."""
    segments: Segments
    """Samples and turns are numbered within the microbatch, alike on all context-parallel ranks; what adds up over
    these is not there yet."""
    lengths: list[int]
    """Padded lengths of the samples, over all context-parallel ranks."""
    cu_seqlens: Int[Tensor, "sequences+1"]
    shard: ContextShard | None = None
    """How attention finds the other context-parallel ranks' tokens."""

    def to(self, device: torch.device) -> "Microbatch":
        sample_of_token = self.segments.sample_of_token.to(device)
        turn_of_token = self.segments.turn_of_token.to(device)
        segments = replace(self.segments, sample_of_token=sample_of_token, turn_of_token=turn_of_token)
        shard = None
        if self.shard:
            shard = self.shard.to(device)
        return Microbatch(
            self.tokens.to(device),
            self.targets.to(device),
            self.own.to(device),
            self.streams.map(lambda values: values.to(device)),
            segments,
            self.lengths,
            self.cu_seqlens.to(device),
            shard,
        )


class Packer:
    """Packs chosen ones of the given samples into a microbatch.

    ``streams`` are those of all samples' own tokens laid end to end. Under context parallelism (``rank`` of
    ``context``) each sample is padded to a multiple of 2·context and cut as `zigzag` says, targets taken first, so
    that a token predicts its successor on whichever rank that lies. A padding sequence then fills up until each
    rank's tokens are a ``multiple`` (sequence parallelism splits them).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        streams: TokenStreams | None = None,
        *,
        context: int = 1,
        rank: int = 0,
        multiple: int = 1,
    ) -> None:
        self.samples, self.context, self.rank = samples, context, rank
        self.streams = streams or TokenStreams()
        self.each = 2 * context if context > 1 else 1
        self.whole = math.lcm(self.each, context * multiple)
        self.own_tokens = torch.tensor([sample.num_own_tokens for sample in samples], dtype=torch.long)
        self.first_own = self.own_tokens.cumsum(0) - self.own_tokens

    def padded(self, length: int) -> int:
        """What a sample takes up in a microbatch, in tokens of all context-parallel ranks."""
        return -(-length // self.each) * self.each

    def pack(self, indices: list[int]) -> Microbatch:
        """Lay the chosen samples end to end, this rank's share of each."""
        lengths = [self.padded(len(self.samples[i].tokens)) for i in indices]
        # Up to the next multiple of `whole`; without samples it is one `whole` of padding, not nothing.
        padding = -sum(lengths) % self.whole
        if not lengths:
            padding = self.whole
        if padding:
            lengths.append(padding)
        tokens, turns = self._laid_out(indices, lengths)
        turn_lengths = turns[:, 1] - turns[:, 0]
        where = _numbers(turns[:, 0], turn_lengths)
        targets = torch.full_like(tokens, IGNORE)
        place = torch.full_like(tokens, -1)  # among the microbatch's own tokens, context-parallel ranks together
        targets[where - 1] = tokens[where]
        place[where - 1] = torch.arange(len(where))
        shard = None
        if self.context > 1:
            local = zigzag(lengths, self.rank, self.context)
            tokens, targets, place = tokens[local], targets[local], place[local]
            shard = ContextShard.of(lengths, self.rank, self.context)
        place = place[place >= 0]
        chosen = torch.tensor(indices, dtype=torch.long)
        own_tokens = self.own_tokens[chosen]
        own = _numbers(self.first_own[chosen], own_tokens)[place]
        sample_of_token, turn_of_token = _owners(own_tokens)[place], _owners(turn_lengths)[place]
        segments = Segments(sample_of_token, turn_of_token, samples=len(indices), turns=len(turns))
        ends = torch.tensor([0, *lengths]).cumsum(0).int()
        return Microbatch(
            tokens=tokens[None],
            targets=targets,
            own=own,
            streams=self.streams.map(lambda values: values[own]),
            segments=segments,
            lengths=lengths,
            cu_seqlens=ends,
            shard=shard,
        )

    def _laid_out(self, indices: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
        """The chosen samples' tokens in so many places each, 0 behind them; and the offsets of all their turns."""
        tokens = torch.zeros(sum(lengths), dtype=torch.long)
        turns, start = [NO_TURNS], 0
        for index, length in zip(indices, lengths, strict=False):
            sample = self.samples[index]
            tokens[start : start + len(sample.tokens)] = sample.tokens
            turns.append(sample.turns + start)
            start += length
        return tokens, torch.cat(turns)


def _owners(lengths: Int[Tensor, "spans"]) -> Int[Tensor, "items"]:
    """Which of the spans, laid end to end, each item lies in."""
    return torch.arange(len(lengths)).repeat_interleave(lengths)


def _numbers(first: Int[Tensor, "spans"], lengths: Int[Tensor, "spans"]) -> Int[Tensor, "items"]:
    """Each span's numbers from ``first`` on, laid end to end: [5, 9] and lengths [2, 3] give [5, 6, 9, 10, 11]."""
    ahead = first - (lengths.cumsum(0) - lengths)
    owners = _owners(lengths)
    return torch.arange(len(owners)) + ahead[owners]
