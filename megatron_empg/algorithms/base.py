"""The typed carriers of tensors that an algorithm is given and gives back, and the interfaces of its parts.

An algorithm has six parts, each chosen by a recipe key and each a file of this package: the advantages
(`algorithm.name`), their modulation, the loss's regularizer, the correction of the engines' log-probs, the KL and
the masks. Here are the carriers between them, and the interfaces of modulation, regularizer and correction; that
of the advantages is in section.py beside the keys which all algorithms share.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.sample import Sample, TokenStreams
    from megatron_empg.algorithms.segments import Segments


@dataclass(frozen=True)
class Experience:
    """A batch of episodes as an algorithm sees it: everything that was known before the actor scored it.

    Turns lie end to end, those of an episode adjacent and in order; so do the samples, and the own tokens of all
    turns. Example: an episode of two turns with 3 and 2 own tokens and one of a single turn with 4 have
    ``episode_of_turn`` [0, 0, 1] and ``turn_lengths`` [3, 2, 4], and there are 9 own tokens.
    """

    rewards: Float[Tensor, "episodes"]
    """The episode's whole reward."""
    groups: Int[Tensor, "episodes"]
    """The number of the question that each episode answers."""
    truncated: Bool[Tensor, "episodes"]
    """True for an episode that a limit ended."""
    episode_of_turn: Int[Tensor, "turns"]
    turn_lengths: Int[Tensor, "turns"]
    """The number of own tokens of each turn."""
    turn_rewards: Float[Tensor, "turns"]
    """The reward that the environment gave for each turn; they add up to the episode's reward."""
    anchors: Int[Tensor, "turns"]
    """Names the state that the turn acted in: equal numbers are equal states."""
    cut: Bool[Tensor, "turns"]
    """True for a turn that the token limit ended."""
    rollout_logprobs: Float[Tensor, "own_tokens"]
    """Log-probs of the own tokens as the engine computed them when it sampled."""
    samples: list[Sample]
    episode_of_sample: Int[Tensor, "samples"]
    gold: list[Int[Tensor, "gold_tokens"]] = field(default_factory=list)
    """For each episode the tokens of the turn that would answer right; empty where the environment knows none."""
    progress: float = 0.0
    """Share of the run's steps that are done, in [0, 1)."""

    @property
    def turn_of_token(self) -> Int[Tensor, "own_tokens"]:
        return torch.arange(len(self.turn_lengths)).repeat_interleave(self.turn_lengths)

    @property
    def episode_of_token(self) -> Int[Tensor, "own_tokens"]:
        return self.episode_of_turn.repeat_interleave(self.turn_lengths)

    @property
    def episode_lengths(self) -> Int[Tensor, "episodes"]:
        """The number of own tokens of each episode."""
        empty = torch.zeros(len(self.rewards), dtype=torch.long)
        return empty.index_add(0, self.episode_of_turn, self.turn_lengths)

    @property
    def sample_lengths(self) -> Int[Tensor, "samples"]:
        """The number of own tokens of each sample."""
        turns = torch.tensor([len(sample.turns) for sample in self.samples], dtype=torch.long)
        sample_of_turn = torch.arange(len(turns)).repeat_interleave(turns)
        return torch.zeros_like(turns).index_add(0, sample_of_turn, self.turn_lengths)

    @property
    def place_of_turn(self) -> Int[Tensor, "turns"]:
        """The number of each turn in its episode, from 0."""
        turns = torch.zeros(len(self.rewards), dtype=torch.long)
        turns = turns.index_add(0, self.episode_of_turn, torch.ones_like(self.episode_of_turn))
        first = turns.cumsum(0) - turns
        return torch.arange(len(self.episode_of_turn)) - first[self.episode_of_turn]

    def turn_means(self, values: Float[Tensor, "own_tokens"]) -> Float[Tensor, "turns"]:
        """Mean of a per-token number over each turn's own tokens, in float64."""
        sums = torch.zeros(len(self.turn_lengths), dtype=torch.float64)
        return sums.index_add(0, self.turn_of_token, values.double()) / self.turn_lengths

    def turns_of(self, episodes: list[int]) -> Int[Tensor, "chosen_turns"]:
        """The turns of chosen episodes, in the order of the choice."""
        return _members(self.episode_of_turn, episodes)

    def tokens_of(self, episodes: list[int]) -> Int[Tensor, "chosen_tokens"]:
        """The own tokens of chosen episodes, in the order of the choice."""
        return _members(self.episode_of_token, episodes)

    def select(self, episodes: list[int]) -> Experience:
        """The chosen episodes alone, in the order of the choice. Raises ValueError unless each is there, once."""
        _check_choice(episodes, len(self.rewards))
        turns, tokens = self.turns_of(episodes), self.tokens_of(episodes)
        samples = _members(self.episode_of_sample, episodes)
        gold = []
        if self.gold:
            gold = [self.gold[episode] for episode in episodes]
        chosen = torch.tensor(episodes, dtype=torch.long)
        # By an episode's number here, its number among the chosen; of the others it says nothing.
        number = torch.empty(len(self.rewards), dtype=torch.long)
        number[chosen] = torch.arange(len(chosen))
        return replace(
            self,
            rewards=self.rewards[chosen],
            groups=self.groups[chosen],
            truncated=self.truncated[chosen],
            episode_of_turn=number[self.episode_of_turn[turns]],
            turn_lengths=self.turn_lengths[turns],
            turn_rewards=self.turn_rewards[turns],
            anchors=self.anchors[turns],
            cut=self.cut[turns],
            rollout_logprobs=self.rollout_logprobs[tokens],
            samples=[self.samples[sample] for sample in samples.tolist()],
            episode_of_sample=number[self.episode_of_sample[samples]],
            gold=gold,
        )


def _check_choice(episodes: list[int], count: int) -> None:
    if len(set(episodes)) < len(episodes) or not all(0 <= episode < count for episode in episodes):
        wrong = [episode for episode in episodes if not 0 <= episode < count or episodes.count(episode) > 1]
        raise ValueError(f"episode {wrong[0]} was chosen of {count}: choose numbers below {count}, each once")


def _members(owner: Int[Tensor, "items"], chosen: list[int]) -> Int[Tensor, "chosen_items"]:
    """Positions of the items of the chosen owners; an owner's items are adjacent and owners ascend."""
    if not len(owner):
        return torch.empty(0, dtype=torch.long)
    counts = owner.bincount(minlength=max(chosen, default=0) + 1)
    first = (counts.cumsum(0) - counts).tolist()
    count = counts.tolist()
    spans = [torch.arange(first[i], first[i] + count[i]) for i in chosen]
    if spans:
        return torch.cat(spans)
    return torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Scores:
    """A policy's log-probs and exact entropies, in nats, of own tokens that lie end to end."""

    logprobs: Float[Tensor, "own_tokens"]
    entropies: Float[Tensor, "own_tokens"]


@dataclass(frozen=True)
class Probe:
    """Samples that an algorithm wants scored beside the batch."""

    samples: list[Sample]
    policy: Literal["current", "reference"] = "current"
    """The policy that scores them: the one that the batch updates, or the run's initial one."""


@dataclass(frozen=True)
class Advantages:
    """The advantages as the rewards give them, before any modulation."""

    episodes: Float[Tensor, "episodes"]
    """The advantage of each whole episode, for readers; where turns differ, that of its outcome."""
    turns: Float[Tensor, "turns"]


@dataclass(frozen=True)
class ModulatedAdvantages:
    """The turns' advantages after a modulation, and their parts: ``advantages = A·scale + bonus - mean``."""

    advantages: Float[Tensor, "turns"]
    h_norm: Float[Tensor, "turns"]
    """The turn's normalised entropy: 0 is the surest."""
    scale: Float[Tensor, "turns"]
    """EMPG's g, AEM's alpha."""
    bonus: Float[Tensor, "turns"]
    """EMPG's zeta·f; 0 without one."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenWeights:
    """The weights that a correction gives tokens for the gap between engine and actor."""

    weights: Float[Tensor, "own_tokens"]
    """Factor of each token's loss; 0 where the correction rejects it."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Credit:
    """Everything that the batch is trained on: an advantage per turn, weights and masks per token."""

    advantages: Advantages
    turns: Float[Tensor, "turns"]
    """The final advantage of each turn."""
    entropies: Float[Tensor, "turns"]
    """Mean entropy of each turn's own tokens in nats: H_t of the papers."""
    modulated: ModulatedAdvantages | None
    loss_weights: Float[Tensor, "own_tokens"]
    """The correction's factors."""
    kept: Bool[Tensor, "own_tokens"]
    """False for tokens that the masks take out of the loss."""
    reference_logprobs: Float[Tensor, "own_tokens"] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class LossFunction(Protocol):
    """A loss per token, which `Actor.update` minimises: the actor takes the global mean over own tokens."""

    statistics: tuple[str, ...]
    """Names of the numbers that come with the loss; their token means are reported."""

    def __call__(
        self,
        logprobs: Float[Tensor, "own_tokens"],
        entropies: Float[Tensor, "own_tokens"],
        streams: TokenStreams,
        segments: Segments,
        /,
    ) -> tuple[Float[Tensor, "own_tokens"], dict[str, Tensor]]:
        """The loss at each own token, with gradient, and detached statistics by name, per token too.

        It is called once per microbatch on every context-parallel rank, also on one without own tokens there. So
        what the loss communicates through ``segments`` it must communicate always, and in the same order.
        """
        ...


class LossTerm(LossFunction, Protocol):
    """A part of the loss: the surrogate, the KL, the regularizer."""

    weighted: bool
    """Whether its values carry their weights in the mean already, so that ``mean_weights`` are not for them."""


class Modulation(Protocol):
    """Changes the turns' advantages by the turns' entropies. It may keep running statistics."""

    def modulate(
        self, advantages: Float[Tensor, "turns"], entropies: Float[Tensor, "turns"], experience: Experience
    ) -> ModulatedAdvantages: ...

    def state_dict(self) -> dict[str, Any]:
        """The running statistics, as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Regularizer(Protocol):
    """A term of the loss over the policy's entropies. It may keep a history."""

    def begin(self, experience: Experience, entropies: Float[Tensor, "turns"]) -> dict[str, float]:
        """Begin a batch, once, before its first optimizer step; `streams` and `term` are then of it. Returns
        metrics."""
        ...

    def streams(self, part: Experience, kept: Bool[Tensor, "own_tokens"]) -> TokenStreams:
        """The streams ``entropy_…`` that the term reads, at each own token of an optimizer step's episodes.

        ``kept`` is False for tokens that the loss does not see. The episodes are of the batch begun last.
        """
        ...

    def term(self) -> LossTerm | None:
        """The term itself, for the batch begun last; None when it is nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The history, as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Correction(Protocol):
    """Weighs tokens by how far the engine's log-probs are from the actor's."""

    def weigh(self, logprobs: Float[Tensor, "own_tokens"], experience: Experience) -> TokenWeights:
        """The weights of the batch's own tokens. ``logprobs`` are the actor's, before the update."""
        ...


class Stateless:
    """Base of parts that keep nothing between batches."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != {}:
            raise ValueError(
                f"{type(self).__name__} keeps no state, the checkpoint holds {state!r}: go on with the parts that "
                "the run began with"
            )
