"""EPO (arXiv 2509.22576): an entropy bonus, smoothed by a band around the entropy's own history.

Added to the policy loss: ``-coefficient·(mean H - beta·mean P)``, with the mean over the turns of a trajectory,
then over the batch; what the masks leave out is in none of these means. The gradient flows through the entropies,
so they must be differentiable.

What the authors released differs from what a reader of the equations expects: P is a constant, so that it has no
gradient and only the plain entropy bonus trains. That form is `constant`; `distance` is this project's deviation.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import model_validator

from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.common.lazy_torch import torch
from megatron_empg.common.section import NonNegativeCoefficient, Section

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from megatron_empg.algorithms.base import Experience, LossTerm
    from megatron_empg.algorithms.segments import Segments

Value = TypeVar("Value")

Form = Literal["distance", "constant"]
History = Literal["batch", "turn"]


@dataclass(frozen=True)
class EpoNumbers:
    """All of EPO's numbers; see `Epo` for what each says."""

    coefficient: float
    beta: float
    alpha: float
    band_low: float
    band_high: float
    form: Form
    history: History
    phase_weights: bool


Preset = Literal["differentiable", "paper", "released", "released_sciworld", "released_alfworld"]
PRESETS: dict[Preset, EpoNumbers] = {
    # The paper's band with a penalty that has a gradient. Above the band the bonus itself pulls up by 1, so the
    # penalty pulls down only where alpha·beta > 1: alpha and no phase weights are chosen here.
    "differentiable": EpoNumbers(0.001, 1.0, 2.0, 0.8, 1.2, "distance", "batch", phase_weights=False),
    # The paper's equations, and the numbers of the released YAML.
    "paper": EpoNumbers(0.001, 1.0, 0.1, 0.8, 1.2, "constant", "batch", phase_weights=True),
    # The defaults of the released launch script.
    "released": EpoNumbers(0.001, 1.0, 0.1, 0.5, 1.5, "constant", "turn", phase_weights=False),
    # The two launch lines of the authors' page.
    "released_sciworld": EpoNumbers(0.001, 1.0, 0.05, 0.0, 2.0, "constant", "turn", phase_weights=True),
    "released_alfworld": EpoNumbers(0.001, 1.0, 0.1, 0.0, 2.0, "constant", "turn", phase_weights=True),
}


class Epo(Section):
    """The entropy bonus with a band: a preset, and keys that override its numbers; null is the preset's."""

    name: Literal["epo"] = "epo"
    preset: Preset = "differentiable"
    """Whose numbers: this project's, the paper's, or those of the released launch files. All have coefficient
    0.001 and beta 1 as the released code; the rest is in PRESETS of epo.py with its origin. (Default chosen here:
    the others' penalty has no gradient.)"""
    coefficient: NonNegativeCoefficient | None = None
    """The loss gets minus so many times the mean entropy, less the penalty (lambda)."""
    beta: NonNegativeCoefficient | None = None
    """How much the penalty counts beside the entropy."""
    alpha: NonNegativeCoefficient | None = None
    """The penalty of a turn whose mean entropy is outside the band: so much (constant), or so many times the
    distance in nats (distance)."""
    band_low: NonNegativeCoefficient | None = None
    """The band starts at so many times the history's entropy."""
    band_high: NonNegativeCoefficient | None = None
    """The band ends at so many times the history's entropy."""
    form: Form | None = None
    """constant: as released, without gradient; distance: this project's deviation, differentiable."""
    history: History | None = None
    """batch: one cumulative mean of all past batches' entropies; turn: one per place of a turn in its episode."""
    phase_weights: bool | None = None
    """Multiply the penalty by `phase_weight`, which falls as the run goes on."""

    @property
    def settings(self) -> EpoNumbers:
        """The numbers that are used: the preset's, and those that a key overrides."""
        chosen = PRESETS[self.preset]
        return EpoNumbers(
            coefficient=_given(self.coefficient, chosen.coefficient),
            beta=_given(self.beta, chosen.beta),
            alpha=_given(self.alpha, chosen.alpha),
            band_low=_given(self.band_low, chosen.band_low),
            band_high=_given(self.band_high, chosen.band_high),
            form=_given(self.form, chosen.form),
            history=_given(self.history, chosen.history),
            phase_weights=_given(self.phase_weights, chosen.phase_weights),
        )

    @model_validator(mode="after")
    def _band(self) -> Epo:
        settings = self.settings
        if settings.band_low > settings.band_high:
            raise ValueError(
                f"band_low is {settings.band_low} and band_high {settings.band_high} (preset {self.preset}); "
                "the band needs band_low <= band_high: set both"
            )
        return self

    def make(self) -> EpoRegularizer:
        return EpoRegularizer(self.settings)


def _given(value: Value | None, otherwise: Value) -> Value:
    if value is None:
        return otherwise
    return value


class EpoRegularizer:
    """Keeps the entropy's history, and draws each batch's band from the batches before it."""

    def __init__(self, settings: EpoNumbers) -> None:
        self.settings = settings
        self.histories: list[EntropyHistory] = []
        """One of whole batches, or one for each place of a turn in its episode; empty before the first batch."""
        self._means = torch.zeros(0, dtype=torch.float64)
        self._phase_weight = 1.0

    def begin(self, experience: Experience, entropies: Float[Tensor, "turns"]) -> dict[str, float]:
        """Fix the band from the batches so far, then add this one to the history.

        Raises ValueError where an entropy is not finite.
        """
        self._means = torch.tensor([history.mean for history in self.histories], dtype=torch.float64)
        self._phase_weight = phase_weight(experience.progress) if self.settings.phase_weights else 1.0
        metrics = {"epo/phase_weight": self._phase_weight}
        low, high = self._band(experience)
        if len(low) and len(self._means):
            outside = (entropies < low) | (entropies > high)
            metrics["epo/outside_share"] = float(outside.double().mean())
            metrics["epo/history"] = float(self._means.mean())
        self._take_up(experience, entropies)
        return metrics

    def streams(self, part: Experience, kept: Bool[Tensor, "own_tokens"]) -> TokenStreams:
        """The band of each token's turn, and the token's weight in a mean over kept tokens, turns, then episodes.

        ``part`` is of the batch that was begun last, whose band it is.
        """
        if not self.settings.coefficient:
            return TokenStreams()
        low, high = self._band(part)
        weights = self.settings.coefficient * len(kept) * kept_mean_weights(part, kept)
        return TokenStreams(
            entropy_weights=weights.float(),
            entropy_low=low.float().repeat_interleave(part.turn_lengths),
            entropy_high=high.float().repeat_interleave(part.turn_lengths),
        )

    def term(self) -> LossTerm | None:
        """The term with the phase weight of the batch that was begun last."""
        if not self.settings.coefficient:
            return None
        return EpoTerm(self.settings.alpha * self._phase_weight, self.settings.beta, self.settings.form)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.settings.history,
            "totals": [history.total for history in self.histories],
            "batches": [history.batches for history in self.histories],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`; an empty one is a new run's. Raises ValueError for a history that is broken, or
        of the other kind."""
        self.histories = _stored_histories(state, self.settings.history) if state else []

    def _band(self, experience: Experience) -> tuple[Float[Tensor, "turns"], Float[Tensor, "turns"]]:
        """Both ends of each turn's band; infinite for a turn that has no history."""
        place = torch.zeros_like(experience.episode_of_turn)
        if self.settings.history == "turn":
            place = experience.place_of_turn
        low = torch.full((len(place),), -math.inf, dtype=torch.float64)
        high = torch.full((len(place),), math.inf, dtype=torch.float64)
        known = place < len(self._means)
        low[known] = self.settings.band_low * self._means[place[known]]
        high[known] = self.settings.band_high * self._means[place[known]]
        return low, high

    def _take_up(self, experience: Experience, entropies: Float[Tensor, "turns"]) -> None:
        if not len(entropies):
            return
        if self.settings.history == "batch":
            means = [float((episode_mean_weights(experience) * entropies).sum())]
        else:
            place = experience.place_of_turn
            sums = torch.zeros(int(place.max()) + 1, dtype=torch.float64)
            means = (sums.index_add(0, place, entropies.double()) / place.bincount()).tolist()
        while len(self.histories) < len(means):
            self.histories.append(EntropyHistory())
        for history, mean in zip(self.histories, means, strict=False):
            history.add(mean)


def _stored_histories(state: dict[str, Any], kind: History) -> list[EntropyHistory]:
    """The histories of a checkpoint; raises ValueError unless they are whole and of this kind."""
    if not isinstance(state, dict) or set(state) != {"history", "totals", "batches"}:
        raise ValueError(
            f"the checkpoint's entropy history is {state!r}; it must be a dict of history, totals and batches: "
            "take another checkpoint"
        )
    if state["history"] != kind:
        raise ValueError(
            f"the checkpoint's entropy history is by {state['history']}, the regularizer's by {kind}: set "
            f"algorithm.regularizer.history={state['history']}"
        )
    totals, batches = state["totals"], state["batches"]
    if not isinstance(totals, list) or not isinstance(batches, list) or len(totals) != len(batches):
        raise ValueError(
            f"the checkpoint's entropy history has totals {totals!r} and batches {batches!r}; both must be lists "
            "of one length: take another checkpoint"
        )
    for total, count in zip(totals, batches, strict=True):
        finite = isinstance(total, int | float) and abs(total) <= sys.float_info.max
        sound = finite and isinstance(count, int) and 0 < count <= sys.float_info.max
        if not sound:
            raise ValueError(
                f"the checkpoint's entropy history has a total of {total!r} over {count!r} batches; the first "
                "must be a finite number, the second a count above 0: take another checkpoint"
            )
    return [EntropyHistory(float(total), count) for total, count in zip(totals, batches, strict=True)]


def episode_mean_weights(experience: Experience) -> Float[Tensor, "turns"]:
    """The weight of each turn in the mean over an episode's turns, then over the episodes that have turns."""
    turns = experience.episode_of_turn.bincount(minlength=len(experience.rewards))
    episodes = int((turns > 0).sum())
    return 1 / (turns[experience.episode_of_turn].double() * max(episodes, 1))


def kept_mean_weights(experience: Experience, kept: Bool[Tensor, "own_tokens"]) -> Float[Tensor, "own_tokens"]:
    """The weight of each own token in the mean over a turn's kept tokens, then over the turns of an episode that
    have some, then over the episodes that have some. 0 where a token is not kept.
    """
    turn, episode = experience.turn_of_token, experience.episode_of_turn
    tokens = torch.zeros(len(episode), dtype=torch.float64).index_add(0, turn, kept.double())
    some = (tokens > 0).double()
    turns = torch.zeros(len(experience.rewards), dtype=torch.float64).index_add(0, episode, some)
    episodes = turns.count_nonzero().clamp(min=1)
    of_turn = some / (tokens * turns[episode] * episodes).clamp(min=1)
    return kept * of_turn[turn]


class EpoTerm:
    """``-weight·(H - beta·P)`` at each own token; its mean over tokens is EPO's term.

    The *current* policy's mean entropy of a turn's kept tokens decides on which side of the band the turn is, and
    each of them carries its share of the distance. Masked tokens weigh 0 and carry nothing.
    """

    weighted: bool = True  # by ``entropy_weights``

    def __init__(self, alpha: float, beta: float, form: Form) -> None:
        self.alpha, self.beta, self.form = alpha, beta, form
        self.statistics: tuple[str, ...] = ("epo_penalty", "epo_outside")

    def __call__(
        self, logprobs: Tensor, entropies: Tensor, streams: TokenStreams, segments: Segments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        low, high, weights = streams.entropy_low, streams.entropy_high, streams.entropy_weights
        assert low is not None
        assert high is not None
        assert weights is not None
        kept = weights != 0
        means = segments.turn_means(entropies, kept)
        above, below = (means > high) & kept, (means < low) & kept
        outside = (above | below).to(entropies.dtype)
        side = above.to(entropies.dtype) - below.to(entropies.dtype)
        # Where a turn is inside the band, an end may be infinite; 0 stands for it, and side is 0.
        end = torch.where(above, high, torch.where(below, low, 0))
        if self.form == "constant":
            penalty = turn_penalty = self.alpha * outside
        else:
            penalty = self.alpha * side * (entropies - end)
            turn_penalty = self.alpha * side * (means - end)
        statistics = {"epo_penalty": turn_penalty, "epo_outside": outside}
        return -weights * (entropies - self.beta * penalty), statistics


@dataclass
class EntropyHistory:
    """The cumulative mean of past batches' entropies; its two numbers belong in a checkpoint."""

    total: float = 0.0
    batches: int = 0

    @property
    def mean(self) -> float | None:
        """The mean so far; None before the first batch."""
        if not self.batches:
            return None
        return self.total / self.batches

    def add(self, entropy: float) -> None:
        """Add one batch's mean entropy. Raises ValueError unless it is finite."""
        if not math.isfinite(entropy):
            raise ValueError(f"a batch's mean entropy is {entropy}; it must be finite")
        self.total += entropy
        self.batches += 1


def phase_weight(progress: float) -> float:
    """The published schedule over training progress in [0, 1]; p is the progress within a half.

    First half ``1 - 0.2(1 - e^(-2p))``, second half ``0.8·e^(-3p)``. Raises ValueError outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it must lie in [0, 1]")
    if progress < 0.5:
        return 1 - 0.2 * (1 - math.exp(-2 * (2 * progress)))
    return 0.8 * math.exp(-3 * (2 * progress - 1))
