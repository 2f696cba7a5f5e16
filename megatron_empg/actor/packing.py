"""Sequences packed into microbatches: what to predict where, and the per-token values that go with it."""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.actor.context_parallel import ContextShard, zigzag

IGNORE = -100


@dataclass
class Sequence:
    """One episode's tokens, and which of them the policy itself wrote.

    ``steps`` are (start, end) offsets of each turn's own tokens; ``values`` hold one number for each of those
    tokens, in order (advantages, old log-probs ...).
    """

    tokens: Int[Tensor, "length"]
    steps: Int[Tensor, "steps 2"]
    values: dict[str, Float[Tensor, "own_tokens"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flat = self.steps.flatten()
        if (len(flat) and (flat.diff() < 0).any()) or (self.steps[:, 0] >= self.steps[:, 1]).any():
            raise ValueError(f"step offsets {self.steps.tolist()} are not increasing, disjoint and non-empty")
        if len(flat) and (flat[0] < 1 or flat[-1] > len(self.tokens)):
            raise ValueError(
                f"step offsets {self.steps.tolist()} lie outside tokens 1 to {len(self.tokens)}: the first token "
                "has nothing before it that could predict it"
            )
        for name, value in self.values.items():
            if len(value) != self.num_own_tokens:
                raise ValueError(f"{name} has {len(value)} values for {self.num_own_tokens} own tokens")

    @property
    def num_own_tokens(self) -> int:
        return int((self.steps[:, 1] - self.steps[:, 0]).sum())

    @property
    def step_lengths(self) -> list[int]:
        return (self.steps[:, 1] - self.steps[:, 0]).tolist()

    def predictors(self) -> Int[Tensor, "own_tokens"]:
        """Positions whose logits predict the policy's own tokens: each token's predecessor."""
        spans = [torch.arange(start - 1, end - 1) for start, end in self.steps.tolist()]
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.long)


@dataclass
class Microbatch:
    """This rank's tokens of some sequences laid end to end."""

    tokens: Int[Tensor, "1 local_tokens"]
    targets: Int[Tensor, "local_tokens"]
    """The next token where it is the policy's own, else IGNORE."""
    own: Int[Tensor, "own_tokens"]
    """Which of the caller's own tokens (all sequences laid end to end) these targets are."""
    values: dict[str, Float[Tensor, "own_tokens"]]
    lengths: list[int]
    """Padded lengths of the sequences, over all context-parallel ranks."""
    cu_seqlens: Int[Tensor, "sequences+1"]
    shard: ContextShard | None = None
    """How attention finds the other context-parallel ranks' tokens."""

    def to(self, device: torch.device) -> "Microbatch":
        return Microbatch(
            self.tokens.to(device),
            self.targets.to(device),
            self.own.to(device),
            {name: value.to(device) for name, value in self.values.items()},
            self.lengths,
            self.cu_seqlens.to(device),
            self.shard.to(device) if self.shard else None,
        )


class Packer:
    """Packs chosen ones of the given sequences into a microbatch.

    Under context parallelism (``rank`` of ``context``) each sequence is padded to a multiple of 2·context and cut
    as `zigzag` says, targets taken first, so that a token predicts its successor on whichever rank that lies. A
    padding sequence then fills up until each rank's tokens are a ``multiple`` (sequence parallelism splits them).
    """

    def __init__(
        self,
        sequences: SequenceOf[Sequence],
        names: SequenceOf[str] = (),
        *,
        context: int = 1,
        rank: int = 0,
        multiple: int = 1,
    ) -> None:
        self.sequences, self.context, self.rank = sequences, context, rank
        self.each = 2 * context if context > 1 else 1
        self.whole = math.lcm(self.each, context * multiple)
        self.first_own = torch.tensor([0, *(s.num_own_tokens for s in sequences)]).cumsum(0).tolist()
        self.values = {n: torch.cat([s.values[n] for s in sequences]) for n in names} if sequences else {}

    def padded(self, length: int) -> int:
        """What a sequence takes up in a microbatch, in tokens of all context-parallel ranks."""
        return -(-length // self.each) * self.each

    def pack(self, indices: list[int]) -> Microbatch:
        """Lay the chosen sequences end to end, this rank's share of each."""
        lengths = [self.padded(len(self.sequences[i].tokens)) for i in indices]
        padding = max(-sum(lengths) % self.whole, 0 if lengths else self.whole)
        lengths += [padding] if padding else []
        tokens = torch.zeros(sum(lengths), dtype=torch.long)
        targets, own = torch.full_like(tokens, IGNORE), torch.full_like(tokens, -1)
        start = 0
        for index, length in zip(indices, lengths, strict=False):
            sequence = self.sequences[index]
            tokens[start : start + len(sequence.tokens)] = sequence.tokens
            where = sequence.predictors()
            targets[start + where] = sequence.tokens[where + 1].to(targets.dtype)  # a batch holds int32
            own[start + where] = self.first_own[index] + torch.arange(len(where))
            start += length
        shard = None
        if self.context > 1:
            local = zigzag(lengths, self.rank, self.context)
            tokens, targets, own = tokens[local], targets[local], own[local]
            shard = ContextShard.of(lengths, self.rank, self.context)
        own = own[own >= 0]
        return Microbatch(
            tokens=tokens[None],
            targets=targets,
            own=own,
            values={name: value[own] for name, value in self.values.items()},
            lengths=lengths,
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
            shard=shard,
        )
