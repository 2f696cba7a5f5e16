"""Sequences packed into microbatches: what to predict where, and the per-token values that go with it."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    """Sequences end to end. ``targets`` is IGNORE wherever the next token is not the policy's own."""

    tokens: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    targets: Int[Tensor, "tokens"]
    cu_seqlens: Int[Tensor, "sequences+1"]
    max_seqlen: int
    values: dict[str, Float[Tensor, "own_tokens"]]
    indices: list[int]
    """Which of the caller's sequences lie here, in order."""

    def to(self, device: torch.device) -> "Microbatch":
        return Microbatch(
            self.tokens.to(device),
            self.positions.to(device),
            self.targets.to(device),
            self.cu_seqlens.to(device),
            self.max_seqlen,
            {name: value.to(device) for name, value in self.values.items()},
            self.indices,
        )


def pack(
    sequences: SequenceOf[Sequence], indices: list[int], names: SequenceOf[str], *, multiple: int = 1
) -> Microbatch:
    """Lay the chosen sequences end to end; a padding sequence fills up to a `multiple` of tokens."""
    chosen = [sequences[i] for i in indices]
    lengths = [len(s.tokens) for s in chosen]
    targets = [torch.full((length,), IGNORE) for length in lengths]
    for sequence, target in zip(chosen, targets, strict=True):
        where = sequence.predictors()
        target[where] = sequence.tokens[where + 1]
    tokens = [s.tokens for s in chosen]
    padding = max(-sum(lengths) % multiple, 0 if lengths else multiple)
    if padding:
        lengths.append(padding)
        tokens.append(torch.zeros(padding, dtype=torch.long))
        targets.append(torch.full((padding,), IGNORE))
    return Microbatch(
        tokens=torch.cat(tokens)[None],
        positions=torch.cat([torch.arange(length) for length in lengths])[None],
        targets=torch.cat(targets),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        values={name: torch.cat([s.values[name] for s in chosen]) if chosen else torch.empty(0) for name in names},
        indices=indices,
    )


def plan_microbatches(lengths: SequenceOf[int], *, budget: int, ranks: int, rank: int) -> list[list[int]]:
    """This data-parallel rank's microbatches as lists of sequence indices.

    Longest first, each sequence goes to the rank with the least load, attention's square counted; then to its
    first microbatch with room. A rank without sequences gets one empty microbatch: it still enters every
    collective. Raises ValueError for a sequence longer than the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > budget:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens exceeds actor.max_tokens_per_microbatch ({budget})"
        )
    mean = max(1.0, sum(lengths) / max(1, len(lengths)))
    load = [0.0] * ranks
    mine: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = lengths[index]
        target = min(range(ranks), key=load.__getitem__)
        load[target] += length * (1 + length / (8 * mean))
        if target != rank:
            continue
        slot = next((s for s, free in enumerate(room) if free >= length), None)
        if slot is None:
            mine.append([])
            room.append(budget)
            slot = len(room) - 1
        mine[slot].append(index)
        room[slot] -= length
    return mine or [[]]
