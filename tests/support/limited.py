"""What a rollout of the tests is told: the configs that say how far an episode may go, from a few numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from megatron_empg.common.limits import LimitsConfig
from megatron_empg.common.waits import Waits, nested_waits
from megatron_empg.rollout.config import RolloutConfig


class Limited(NamedTuple):
    """In the order in which `run_episode` takes them."""

    rollout: RolloutConfig
    waits: Waits
    max_turns: int


def limited(
    turns: int, turn_tokens: int, episode_tokens: int, *, concurrency: int = 256, **seconds: float | None
) -> Limited:
    """Episodes of so many turns, tokens of a turn and tokens in all. `seconds`: fields of `Waits`; those that are
    not given, or None, are a recipe's defaults, which no test waits for."""
    # Unchecked: a recipe refuses a turn that may be as long as its episode, an episode plays it.
    rollout = RolloutConfig.model_construct(
        groups=1,
        group_size=2,
        max_turn_tokens=turn_tokens,
        max_episode_tokens=episode_tokens,
        concurrency=concurrency,
    )
    given = {name: limit for name, limit in seconds.items() if limit is not None}
    return Limited(rollout, replace(nested_waits(LimitsConfig(), several_rounds=False), **given), turns)
