"""DAPO (arXiv 2503.14476): GRPO with an asymmetric clip, groups of equal rewards replaced, and length shaping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_empg.algorithms.grpo import check_episodes, group_relative
from megatron_empg.algorithms.policy_loss import DualClip, TokenClip
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import Fraction, NonNegative, NonNegativeCoefficient, Positive, Section

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Advantages, Experience, LossTerm, Scores


class OverlongSection(Section):
    """What an episode loses that is nearly too long (soft overlong punishment).

    Lengths are the episode's own tokens. Prompt and observations do not count: the policy did not write them, and
    a long observation would otherwise be punished like a long thought.
    """

    buffer: NonNegative = 0
    """Own tokens below `max_length` over which the punishment grows; 0 is off. The paper's is 4096 of 20480, the
    default is chosen here: most agent papers call DAPO what has no length shaping."""
    penalty: NonNegativeCoefficient = 1.0
    """Taken from the reward at `max_length` and beyond. 1.0 is the paper's."""
    max_length: Positive | None = None
    """Own tokens at which the whole penalty is due; must be given with a `buffer`. It does not follow from
    `rollout.max_episode_tokens`, in which prompt and observations count too."""

    @model_validator(mode="after")
    def _a_buffer_lies_below_a_length(self) -> Self:
        if self.buffer == 0:
            return self
        if self.max_length is None:
            raise ValueError(
                f"overlong.buffer is {self.buffer} and overlong.max_length, below which it lies, is not given: "
                "give the own tokens of an episode at which the whole penalty is due, or set the buffer to 0"
            )
        if self.buffer > self.max_length:
            raise ValueError(
                f"overlong.buffer is {self.buffer} own tokens, more than overlong.max_length ({self.max_length}); "
                "lower the first or raise the second"
            )
        return self


class Dapo(AlgorithmSection):
    """DAPO (arXiv 2503.14476): GRPO's advantage on groups that teach something, and a clip with room upwards."""

    name: Literal["dapo"] = "dapo"
    clip_low: Fraction = 0.2
    """A ratio is clipped below 1 minus this. Default of the paper."""
    clip_high: NonNegativeCoefficient = 0.28
    """A ratio is clipped above 1 plus this (clip-higher). Default of the paper."""
    dual_clip: DualClip | None = None
    """Where the advantage is below 0 the loss is at most so many times its size (arXiv 1912.09729); null: no such
    bound, as in the paper. The released launch files have 10."""
    normalize_std: bool = True
    """Divide by the group's standard deviation, as the paper does."""
    max_generation_rounds: Positive = 10
    """Dynamic sampling: rounds of new questions until enough groups with unequal rewards are found. 10 is the
    limit in the released launch files."""
    oversampling: Annotated[float, Field(ge=1, le=100)] = 1.0
    """Questions asked in a round by questions still wanted: above 1, fewer rounds are needed and surplus groups
    are discarded. 1.0 is chosen here; the released launch files ask for 3 times the batch."""
    overlong: OverlongSection = OverlongSection()

    @property
    def generation_rounds(self) -> int:
        return self.max_generation_rounds

    @property
    def asked_by_wanted(self) -> float:
        return self.oversampling

    def keeps(self, rewards: Float[Tensor, "group_size"]) -> bool:
        """Whether the rewards, as they were earned and not yet shaped, differ."""
        return rewards_differ(rewards)

    def shaped_rewards(self, experience: Experience) -> Float[Tensor, "episodes"]:
        overlong = self.overlong
        if overlong.buffer == 0 or overlong.max_length is None:
            return experience.rewards
        penalties = overlong_penalty(
            experience.episode_lengths,
            max_length=overlong.max_length,
            buffer=overlong.buffer,
            penalty=overlong.penalty,
        )
        return experience.rewards.double() + penalties

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        return group_relative(experience, normalize_std=self.normalize_std)

    def surrogate(self) -> LossTerm:
        return TokenClip(self.clip_low, self.clip_high, self.dual_clip)


def rewards_differ(rewards: Float[Tensor, "group_size"]) -> bool:
    """Whether the episodes of one question earned different rewards: dynamic sampling keeps no other group."""
    one_group = torch.zeros(len(rewards), dtype=torch.long)
    return bool(informative_groups(rewards, one_group).any())


def informative_groups(
    rewards: Float[Tensor, "episodes"], groups: Int[Tensor, "episodes"]
) -> Bool[Tensor, "episodes"]:
    """True for the episodes of groups whose rewards differ.

    Where all rewards are equal every advantage is 0 and the group teaches nothing: dynamic sampling drops it
    and asks another question. Raises ValueError for other shapes or non-finite rewards.
    """
    check_episodes(rewards, groups)
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    low = rewards.new_full((len(counts),), torch.inf).scatter_reduce(0, index, rewards, "amin")
    high = rewards.new_full((len(counts),), -torch.inf).scatter_reduce(0, index, rewards, "amax")
    return (low < high)[index]


def overlong_penalty(
    lengths: Int[Tensor, "episodes"], *, max_length: int, buffer: int, penalty: float = 1.0
) -> Float[Tensor, "episodes"]:
    """Added to the reward, in float64: 0 up to ``max_length - buffer`` tokens, then linear down to ``-penalty`` at
    ``max_length`` and beyond. Raises ValueError unless 0 < buffer <= max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer is {buffer} tokens; it must be above 0 and at most max_length ({max_length})")
    excess = (lengths - (max_length - buffer)).double() / buffer
    return -penalty * excess.clamp(0.0, 1.0)
