"""What outcomes amount to: mean@K and pass@K with their intervals, by split, kind of task and hops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_empg.common.wilson import Interval
from megatron_empg.evaluate.intervals import pass_at, share_interval
from megatron_empg.evaluate.questions import Decoding, SampleOutcome
from megatron_empg.rollout.service.failures import kinds_of_errors

ALL_SPLITS = "all"
"""Stands for all splits of an evaluation together."""
Question = tuple[str, str]
"""Its split and its id."""
Field = Literal["decoding", "split", "kind", "hops", "reward", "turns", "tokens"]
"""Of an outcome."""


@dataclass(frozen=True)
class Estimate:
    """A share of success and its interval of 95%."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Figures:
    """Results of some questions in one decoding, each asked `samples` times. An error counts as a failure.

    `mean` is mean@K, K being `samples`; `pass_at` has pass@k for k of 2, 4, 8 … and K. Turns and tokens are means
    over episodes that did not end in an error, None where all did.
    """

    questions: int
    samples: int
    mean: Estimate
    pass_at: dict[int, Estimate]
    errors: dict[str, int]
    """How many episodes ended in an error, by its kind."""
    truncated: int
    reward: float
    turns: float | None
    tokens: float | None


@dataclass(frozen=True)
class PassFigures:
    """One split in one decoding."""

    split: str
    decoding: Decoding
    all: Figures
    by_kind: dict[str, Figures] = field(default_factory=dict)
    by_hops: dict[int, Figures] = field(default_factory=dict)


def summarise(outcomes: Sequence[SampleOutcome], seed: int) -> list[PassFigures]:
    """Figures of every split and decoding there is, and of all splits together where there are several.

    `seed` is the bootstraps'. Raises ValueError where questions of a pass have different numbers of samples.
    """
    found: list[PassFigures] = []
    for decoding, ours in grouped(outcomes, "decoding").items():
        splits = grouped(ours, "split")
        for split, inside in splits.items():
            found.append(_pass(split, decoding, inside, seed))
        if len(splits) > 1:
            found.append(PassFigures(ALL_SPLITS, decoding, figures(ours, seed)))
    return found


def figures(outcomes: Sequence[SampleOutcome], seed: int) -> Figures:
    """Figures of one decoding's outcomes. Raises ValueError without any, or for questions of unequal samples."""
    questions = samples_by_question(outcomes)
    samples = _samples_of_each(questions.values())
    wins = list(successes(questions).values())
    shares = [won / samples for won in wins]
    passed = {}
    for k in ks(samples):
        passed[k] = _pass_at(k, wins, samples, seed)
    failed = [outcome for outcome in outcomes if outcome.end == "error"]
    played = [outcome for outcome in outcomes if outcome.end != "error"]
    errors = kinds_of_errors(outcome.error for outcome in failed)
    ends = Counter(outcome.end for outcome in outcomes)
    reward = _mean(outcomes, "reward") or 0.0
    return Figures(
        questions=len(questions),
        samples=samples,
        mean=_estimate(shares, seed),
        pass_at=passed,
        errors=dict(errors.most_common()),
        truncated=ends["truncated"],
        reward=reward,
        turns=_mean(played, "turns"),
        tokens=_mean(played, "tokens"),
    )


def grouped(outcomes: Iterable[SampleOutcome], by: Field) -> dict[Any, list[SampleOutcome]]:
    """{value of the field: the outcomes that have it}, in the order in which the values come."""
    found: dict[Any, list[SampleOutcome]] = {}
    for outcome in outcomes:
        found.setdefault(getattr(outcome, by), []).append(outcome)
    return found


def samples_by_question(outcomes: Iterable[SampleOutcome]) -> dict[Question, list[SampleOutcome]]:
    """The outcomes of each question's samples. Raises ValueError without any."""
    found: dict[Question, list[SampleOutcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.split, outcome.id), []).append(outcome)
    if not found:
        raise ValueError("there is no outcome to make figures of")
    return found


def successes(questions: Mapping[Question, Sequence[SampleOutcome]]) -> dict[Question, int]:
    """How many samples of each question succeeded."""
    found: dict[Question, int] = {}
    for question, answers in questions.items():
        found[question] = sum(answer.success for answer in answers)
    return found


def _samples_of_each(questions: Iterable[Sequence[SampleOutcome]]) -> int:
    numbers = {len(answers) for answers in questions}
    if len(numbers) > 1:
        raise ValueError("some questions have more samples than others: the evaluation has not come to its end")
    return numbers.pop()


def ks(samples: int) -> list[int]:
    """The k of pass@k that are told: powers of two from 2 on, and the number of samples itself."""
    if samples == 1:
        return []
    found, power = [], 2
    while power < samples:
        found.append(power)
        power *= 2
    return [*found, samples]


def _pass(split: str, decoding: Decoding, outcomes: list[SampleOutcome], seed: int) -> PassFigures:
    chained = [outcome for outcome in outcomes if outcome.hops is not None]
    by_kind = _figures_by("kind", outcomes, seed)
    by_hops = _figures_by("hops", chained, seed)
    return PassFigures(split, decoding, figures(outcomes, seed), by_kind, by_hops)


def _figures_by(field: Field, outcomes: list[SampleOutcome], seed: int) -> dict[Any, Figures]:
    found: dict[Any, Figures] = {}
    for value, inside in sorted(grouped(outcomes, field).items()):
        found[value] = figures(inside, seed)
    return found


def _pass_at(k: int, wins: Sequence[int], samples: int, seed: int) -> Estimate:
    return _estimate([pass_at(k, samples, won) for won in wins], seed)


def _estimate(shares: Sequence[float], seed: int) -> Estimate:
    return Estimate(sum(shares) / len(shares), share_interval(shares, seed))


def _mean(outcomes: Sequence[SampleOutcome], field: Field) -> float | None:
    if not outcomes:
        return None
    total: float = sum(getattr(outcome, field) for outcome in outcomes)
    return total / len(outcomes)
