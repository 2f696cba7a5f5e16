"""What a turn earned, and what came of it: rewards by turn, and their discounted sums to the episode's end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_empg.common.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience

ROUNDING = 1e-5
"""Relative to the larger of 1 and the reward. Sums of float32 rewards differ by less, shapings by more."""


def is_last_turn(episode_of_turn: Int[Tensor, "turns"]) -> Bool[Tensor, "turns"]:
    """True for the last turn of each episode."""
    last = torch.ones_like(episode_of_turn, dtype=torch.bool)
    last[:-1] = episode_of_turn[1:] != episode_of_turn[:-1]
    return last


def turn_rewards_in_force(experience: Experience) -> Float[Tensor, "turns"]:
    """The rewards of turns, in float64, such that they add up to the episodes' rewards.

    Where an episode's reward is not the sum of what its turns earned, because it was shaped, its last turn takes
    the difference: a shaping judges the whole episode, which is known at its end. Raises ValueError for a reward
    that is not finite.
    """
    rewards, earned = experience.rewards.double(), experience.turn_rewards.double()
    _check_finite("rewards", rewards)
    _check_finite("turn_rewards", earned)
    sums = torch.zeros_like(rewards).index_add(0, experience.episode_of_turn, earned)
    difference = rewards - sums
    shaped = difference.abs() > ROUNDING * rewards.abs().clamp(min=1)
    added = difference.where(shaped, 0.0)[experience.episode_of_turn]
    return earned + added.where(is_last_turn(experience.episode_of_turn), 0.0)


def discounted_returns(
    rewards: Float[Tensor, "turns"], episode_of_turn: Int[Tensor, "turns"], gamma: float
) -> Float[Tensor, "turns"]:
    """``r_t + gamma·r_{t+1} + gamma²·r_{t+2} + …`` to the end of the turn's episode, in float64.

    An episode's turns are adjacent and in order. Each round doubles the number of turns that a sum reaches over,
    so that a thousand turns take ten rounds; turns with equal rewards from theirs on have equal sums, bit for bit.
    """
    returns = rewards.double()
    to_come = _turns_to_come(episode_of_turn)
    longest = 0
    if len(to_come):
        longest = int(to_come.max())
    reach, factor = 1, gamma
    while reach <= longest:
        beyond = returns[reach:].where(to_come[:-reach] >= reach, 0.0)
        returns = torch.cat([returns[:-reach] + factor * beyond, returns[-reach:]])
        reach, factor = 2 * reach, factor * factor
    return returns


def _turns_to_come(episode_of_turn: Int[Tensor, "turns"]) -> Int[Tensor, "turns"]:
    """How many turns of the same episode follow each."""
    _, index, counts = episode_of_turn.unique_consecutive(return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1
    return last[index] - torch.arange(len(episode_of_turn))


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        position = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"{name}[{position}] is {values[position].item()}; every reward must be finite")
