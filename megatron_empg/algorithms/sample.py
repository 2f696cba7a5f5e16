"""A sample: token ids that the actor reads in one piece, and what the loss needs to know of each own token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    PerToken = Float[Tensor, "own_tokens"] | None
    """One number for each of the policy's own tokens, in order; None where no part of the algorithm reads it."""


@dataclass(frozen=True)
class TokenStreams:
    """The per-token streams that the loss reads beside the current policy's log-probs and entropies."""

    old_logprobs: PerToken = None
    """Log-probs under the policy that is updated, before the batch's first optimizer step."""
    advantages: PerToken = None
    """The advantage of the token's turn."""
    loss_weights: PerToken = None
    """Factors of the surrogate: the correction's importance weights, detached."""
    mean_weights: PerToken = None
    """Weights that make the mean over all own tokens the mean that the algorithm takes; 0 for masked tokens."""
    entropy_weights: PerToken = None
    """The regularizer's factor of the token's entropy."""
    entropy_low: PerToken = None
    """The lower end of the band in which the regularizer lets the turn's mean entropy be, in nats."""
    entropy_high: PerToken = None
    """The upper end of that band."""
    reference_logprobs: PerToken = None
    """Log-probs under the policy that the KL term holds to."""

    def present(self) -> dict[str, Tensor]:
        """The streams that are there, by their name."""
        given = {stream.name: getattr(self, stream.name) for stream in fields(self)}
        return {name: values for name, values in given.items() if values is not None}

    def joined(self, others: TokenStreams) -> TokenStreams:
        """These streams and others. Raises ValueError where both have one: neither may hide the other."""
        mine, theirs = self.present(), others.present()
        double = [name for name in theirs if name in mine]
        if double:
            raise ValueError(f"the streams {double} are given twice; a part may add streams, and replace none")
        return TokenStreams(**mine, **theirs)

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenStreams:
        """The streams with ``change`` applied to each."""
        return TokenStreams(**{name: change(values) for name, values in self.present().items()})

    def split(self, lengths: list[int]) -> list[TokenStreams]:
        """Cut the streams into consecutive pieces of ``lengths`` own tokens."""
        pieces: list[dict[str, Tensor]] = [{} for _ in lengths]
        for name, values in self.present().items():
            for piece, part in zip(pieces, values.split(lengths), strict=True):
                piece[name] = part
        return [TokenStreams(**piece) for piece in pieces]

    @classmethod
    def concatenated(cls, parts: list[TokenStreams]) -> TokenStreams:
        """The streams of several samples, laid end to end. Raises ValueError unless all have the same ones."""
        if parts:
            names = list(parts[0].present())
        else:
            names = []
        for part in parts:
            if list(part.present()) != names:
                raise ValueError(f"one sample has the streams {names}, another {list(part.present())}")
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Sample:
    """A token sequence, and which of its tokens the policy itself wrote.

    ``turns`` are the (start, end) offsets of each turn's own tokens. Example: a prompt of 3 tokens, a turn of 2,
    an observation of 4 and a turn of 1 are 10 ``tokens`` with ``turns`` [[3, 5], [9, 10]], hence 3 own tokens.
    """

    tokens: Int[Tensor, "length"]
    turns: Int[Tensor, "turns 2"]
    streams: TokenStreams = field(default_factory=TokenStreams)

    def __post_init__(self) -> None:
        offsets = self.turns.flatten()
        if (len(offsets) and (offsets.diff() < 0).any()) or (self.turns[:, 0] >= self.turns[:, 1]).any():
            raise ValueError(f"turn offsets {self.turns.tolist()} are not increasing, disjoint and non-empty")
        if len(offsets) and (offsets[0] < 1 or offsets[-1] > len(self.tokens)):
            raise ValueError(
                f"turn offsets {self.turns.tolist()} lie outside tokens 1 to {len(self.tokens)}: the first token "
                "has nothing before it that could predict it"
            )
        for name, values in self.streams.present().items():
            if len(values) != self.num_own_tokens:
                raise ValueError(f"{name} has {len(values)} values for {self.num_own_tokens} own tokens")

    @property
    def num_own_tokens(self) -> int:
        return int((self.turns[:, 1] - self.turns[:, 0]).sum())

    @property
    def turn_lengths(self) -> list[int]:
        """Own tokens of each turn."""
        return (self.turns[:, 1] - self.turns[:, 0]).tolist()

    def predictors(self) -> Int[Tensor, "own_tokens"]:
        """Positions whose logits predict the policy's own tokens: each token's predecessor."""
        spans = [torch.arange(start - 1, end - 1) for start, end in self.turns.tolist()]
        if spans:
            return torch.cat(spans)
        return torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class SampleScore:
    """The actor's log-probs and exact entropies, in nats, of one sample's own tokens; on the CPU."""

    logprobs: Float[Tensor, "own_tokens"]
    entropies: Float[Tensor, "own_tokens"]
