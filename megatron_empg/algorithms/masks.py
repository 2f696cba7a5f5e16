"""What is left out of the loss though it was played: masks over episodes, turns and groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_empg.common.section import Section

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from megatron_empg.algorithms.base import Advantages, Experience


class MasksSection(Section):
    """Tokens that the loss does not see. They still count in the algorithm's statistics."""

    truncated: bool = False
    """Leave out episodes that a limit ended (DAPO's overlong filtering)."""
    cut_turns: bool = False
    """Leave out turns that `rollout.max_turn_tokens` cut."""
    bonus_only: bool = False
    """Leave out turns whose advantage is 0 before modulation, which a bonus and centring, a KL and a regularizer
    alone would train."""

    def kept(self, experience: Experience, advantages: Advantages) -> Bool[Tensor, "own_tokens"]:
        """True for the own tokens that the loss sees."""
        left_out = experience.cut & self.cut_turns
        left_out = left_out | (experience.truncated[experience.episode_of_turn] & self.truncated)
        left_out = left_out | ((advantages.turns == 0) & self.bonus_only)
        return ~left_out.repeat_interleave(experience.turn_lengths)

    def metrics(self, kept: Bool[Tensor, "own_tokens"]) -> dict[str, float]:
        """The share of own tokens left out, where a mask is on."""
        if not (self.truncated or self.cut_turns or self.bonus_only) or not len(kept):
            return {}
        return {"algorithm/masked_tokens": float((~kept).double().mean())}
