"""IGPO (arXiv 2510.14967): a turn is worth by how much surer it made the policy of the right answer.

Written from the released code; the paper's text was not at hand. Two things differ from that code, chosen here. It
asks for the probability of the answer's words inside a fixed closing turn; here all tokens of the gold turn count,
which an environment writes in its own form. It takes turns that gained exactly nothing out of the group's
statistics, and its standard deviation is the biased one; here every turn counts, as in `grpo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_empg.algorithms.base import Advantages, Probe
from megatron_empg.algorithms.grpo import check_episodes, grouped, normalized_in_groups
from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.returns import discounted_returns, is_last_turn
from megatron_empg.algorithms.sample import Sample
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Fraction, NonNegativeCoefficient

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm, Scores


class Igpo(AlgorithmSection):
    """IGPO (arXiv 2510.14967): rewards of turns are information gains, the last turn's is the episode's reward.

    They are normalised together inside a question's group, all turns of all its episodes, and then summed from
    each turn to its episode's end with a discount. What the environment gave for single turns is not looked at.
    """

    needs_gold: ClassVar[bool] = True
    tells_turns_apart: ClassVar[bool] = True

    name: Literal["igpo"] = "igpo"
    clip_low: Fraction = 0.2
    """A ratio is clipped below 1 minus this. 0.2 is PPO's (arXiv 1707.06347), which the released code keeps."""
    clip_high: NonNegativeCoefficient = 0.2
    """A ratio is clipped above 1 plus this. Default as for `clip_low`."""
    gain: Literal["probability", "logprob"] = "probability"
    """What a turn raises: the exponential of the gold turn's mean log-prob, in [0, 1] like most rewards, or that
    mean itself, in nats. The first is the default of the released code."""
    gamma: Fraction = 1.0
    """Discount of a normalised reward for each turn until it. Default of the released code."""
    normalize_std: bool = True
    """Divide by the standard deviation of the group's turn rewards. Default of the released code."""

    def probes(self, experience: Experience) -> list[Probe]:
        """The gold turn in the place of each turn. Raises ValueError for an episode without one."""
        samples = gold_in_place_of_turns(experience)
        if not samples:
            return []
        return [Probe(samples)]

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        check_episodes(experience.rewards, experience.groups)
        last = is_last_turn(experience.episode_of_turn)
        rewards = experience.rewards.double()[experience.episode_of_turn]
        if len(last):
            rewards = torch.where(last, rewards, self._gains(experience, probes))
        questions = grouped(experience.groups[experience.episode_of_turn])
        normalized = normalized_in_groups(rewards, questions, normalize_std=self.normalize_std)
        outcomes = torch.zeros(len(experience.rewards), dtype=torch.float64)
        outcomes[experience.episode_of_turn[last]] = normalized[last]
        turns = discounted_returns(normalized, experience.episode_of_turn, self.gamma)
        return Advantages(outcomes, turns)

    def surrogate(self) -> LossTerm:
        return TokenClip(self.clip_low, self.clip_high)

    def _gains(self, experience: Experience, probes: list[Scores]) -> Float[Tensor, "turns"]:
        """The gain from before to after each turn. That of an episode's last turn means nothing."""
        if not probes:
            raise ValueError("no scores of the gold turns were given; score the probes of the same batch")
        before = gold_logprobs(experience, probes[0])
        if self.gain == "probability":
            before = before.exp()
        return before.roll(-1) - before


def gold_in_place_of_turns(experience: Experience) -> list[Sample]:
    """A sample per turn: what the turn's sample holds before it, then the gold turn as the only turn.

    One of them is longer than its sample where the gold turn is longer than the turn in whose place it stands: the
    longest sequence that the actor takes must have room for that.
    """
    _check_gold(experience)
    samples = []
    for sample, episode in zip(experience.samples, experience.episode_of_sample.tolist(), strict=True):
        gold = experience.gold[episode]
        for start in sample.turns[:, 0].tolist():
            tokens = torch.cat([sample.tokens[:start], gold.to(sample.tokens.dtype)])
            samples.append(Sample(tokens, torch.tensor([[start, len(tokens)]])))
    return samples


def gold_logprobs(experience: Experience, scores: Scores) -> Float[Tensor, "turns"]:
    """The mean log-prob of the gold turn's tokens in the place of each turn, in nats and float64.

    ``scores`` are those of `gold_in_place_of_turns`. Raises ValueError when they are not, or are not finite.
    """
    lengths = torch.tensor([len(gold) for gold in experience.gold], dtype=torch.long)[experience.episode_of_turn]
    logprobs = scores.logprobs.double()
    if len(logprobs) != int(lengths.sum()):
        raise ValueError(
            f"{len(logprobs)} log-probs of gold turns for {int(lengths.sum())} tokens; "
            "they must be those of the probes, in their order"
        )
    if not logprobs.isfinite().all():
        position = int((~logprobs.isfinite()).nonzero()[0])
        raise ValueError(
            f"the log-prob of gold token {position} is {logprobs[position].item()}; it must be finite: "
            "the actor's weights or logits are not"
        )
    turn_of_token = torch.arange(len(lengths)).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64).index_add(0, turn_of_token, logprobs)
    return sums / lengths


def _check_gold(experience: Experience) -> None:
    episodes = len(experience.rewards)
    known = [len(gold) for gold in experience.gold] or [0] * episodes
    if 0 in known:
        raise ValueError(
            f"{known.count(0)} of {episodes} episodes (first: {known.index(0)}) have no gold turn, and igpo "
            "rewards turns by how likely they make it: let the environment name for every task the turn that "
            "would answer right, or choose another algorithm.name"
        )
