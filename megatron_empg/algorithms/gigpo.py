"""GiGPO (arXiv 2505.10978): beside the episode's advantage, that of a turn among turns that acted in its state."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_empg.algorithms.base import Advantages
from megatron_empg.algorithms.grpo import Grouping, group_advantages, grouped, normalized_in_groups
from megatron_empg.algorithms.policy_loss import TokenClip
from megatron_empg.algorithms.returns import discounted_returns, turn_rewards_in_force
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.section import Fraction, NonNegativeCoefficient

if TYPE_CHECKING:
    from megatron_empg.algorithms.base import Experience, LossTerm, Scores

_log = logging.getLogger(__name__)


class Gigpo(AlgorithmSection):
    """GiGPO (arXiv 2505.10978): ``A = A_episode + omega·A_step``.

    A_episode is GRPO's advantage, over episodes as in the paper's equation (released code counts an episode once
    for each of its turns). A_step compares a turn's discounted return with those of the turns of the same question
    that acted in the same state; it is 0 where a state was met once.
    """

    tells_turns_apart: ClassVar[bool] = True

    name: Literal["gigpo"] = "gigpo"
    clip_low: Fraction = 0.2
    """A ratio is clipped below 1 minus this. 0.2 is that of the released launch files."""
    clip_high: NonNegativeCoefficient = 0.2
    """A ratio is clipped above 1 plus this. Default as for `clip_low`."""
    omega: NonNegativeCoefficient = 1.0
    """Weight of A_step. 1 is that of the paper and of the released launch files."""
    gamma: Fraction = 0.95
    """Discount of a reward for each turn until it. Default of the paper and of the released launch files."""
    normalize_std: bool = True
    """Divide both advantages by their groups' standard deviations. The paper has both; true is chosen here."""

    def advantages(self, experience: Experience, probes: list[Scores]) -> Advantages:
        return with_step_advantages(
            experience, self.name, omega=self.omega, gamma=self.gamma, normalize_std=self.normalize_std
        )

    def surrogate(self) -> LossTerm:
        return TokenClip(self.clip_low, self.clip_high)


def with_step_advantages(
    experience: Experience, algorithm: str, *, omega: float, gamma: float, normalize_std: bool
) -> Advantages:
    """``A_episode + omega·A_step`` at each turn, in float64; the episodes' own are A_episode.

    A batch in which step advantages say nothing new is logged, once per process, by the name of the ``algorithm``.
    Raises ValueError for rewards that are not finite.
    """
    rewards = turn_rewards_in_force(experience)
    returns = discounted_returns(rewards, experience.episode_of_turn, gamma)
    states = step_groups(experience)
    of_steps = normalized_in_groups(returns, states, normalize_std=normalize_std)
    of_episodes = group_advantages(experience.rewards.double(), experience.groups, normalize_std=normalize_std)
    if not _some_state_repeats(experience, states):
        _warn_once(algorithm)
    return Advantages(of_episodes, of_episodes[experience.episode_of_turn] + omega * of_steps)


def step_groups(experience: Experience) -> Grouping:
    """The turns of a question that acted in equal states, over all its episodes."""
    questions, states = grouped(experience.groups), grouped(experience.anchors)
    question_of_turn = questions.index[experience.episode_of_turn]
    return grouped(question_of_turn * len(states.counts) + states.index)


def _some_state_repeats(experience: Experience, states: Grouping) -> bool:
    """Whether the advantages of turns say something that those of episodes do not.

    A question's first state is its prompt. It always repeats, and what follows from it is the whole episode, which
    has its advantage already.
    """
    later = experience.place_of_turn > 0
    return not len(later) or bool((states.sizes[later] > 1).any())


@cache
def _warn_once(algorithm: str) -> None:
    _log.warning(
        "%s: no state beyond the first one of each question was met twice in a batch: step advantages are 0 but "
        "at first turns, where they judge the episode a second time; they need an environment that names its "
        "states (anchors) and comes back to them. Elsewhere choose another algorithm.name, as grpo or gspo",
        algorithm,
    )
