"""What outcomes amount to: mean@K and pass@K with their intervals, by split, kind of task and hops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megatron_empg.evaluate.intervals import pass_at, share_interval
from megatron_empg.evaluate.questions import Decoding, Outcome
from megatron_empg.trainer.failures import kinds_of_errors
from megatron_empg.wilson import Interval

ALL_SPLITS = "all"
"""Stands for all splits of an evaluation together."""


@dataclass(frozen=True)
class Estimate:
    """A share of success and its interval of 95%."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Figures:
    """Of some questions in one decoding, each asked `samples` times. An error counts as a failure.

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


def summarise(outcomes: Sequence[Outcome], seed: int) -> list[PassFigures]:
    """Figures of every split and decoding there is, and of all splits together where there are several.

    `seed` is the bootstraps'. Raises ValueError where questions of a pass have different numbers of samples.
    """
    found: list[PassFigures] = []
    for decoding in dict.fromkeys(outcome.decoding for outcome in outcomes):
        ours = [outcome for outcome in outcomes if outcome.decoding == decoding]
        splits = list(dict.fromkeys(outcome.split for outcome in ours))
        for split in splits:
            found.append(_pass(split, decoding, [outcome for outcome in ours if outcome.split == split], seed))
        if len(splits) > 1:
            found.append(PassFigures(ALL_SPLITS, decoding, figures(ours, seed)))
    return found


def figures(outcomes: Sequence[Outcome], seed: int) -> Figures:
    """Of outcomes of one decoding. Raises ValueError without any, or for questions of unequal samples."""
    questions = samples_by_question(outcomes)
    samples = len(next(iter(questions.values())))
    if any(len(answers) != samples for answers in questions.values()):
        raise ValueError("some questions have more samples than others: the evaluation has not come to its end")
    wins = [sum(answer.success for answer in answers) for answers in questions.values()]
    played = [outcome for outcome in outcomes if outcome.end != "error"]
    errors = kinds_of_errors(outcome.error for outcome in outcomes if outcome.end == "error")
    return Figures(
        questions=len(questions),
        samples=samples,
        mean=_estimate([won / samples for won in wins], seed),
        pass_at={k: _pass_at(k, wins, samples, seed) for k in ks(samples)},
        errors=dict(errors.most_common()),
        truncated=sum(outcome.end == "truncated" for outcome in outcomes),
        reward=_mean([outcome.reward for outcome in outcomes]) or 0.0,
        turns=_mean([outcome.turns for outcome in played]),
        tokens=_mean([outcome.tokens for outcome in played]),
    )


def samples_by_question(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """{(split, id): the outcomes of its samples}. Raises ValueError without any."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.split, outcome.id), []).append(outcome)
    if not found:
        raise ValueError("there is no outcome to make figures of")
    return found


def ks(samples: int) -> list[int]:
    """The k of pass@k that are told: powers of two from 2 on, and the number of samples itself."""
    powers = [2**power for power in range(1, samples.bit_length()) if 2**power < samples]
    return [*powers, samples] if samples > 1 else []


def _pass(split: str, decoding: Decoding, outcomes: list[Outcome], seed: int) -> PassFigures:
    kinds: dict[str, list[Outcome]] = {}
    hops: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.kind, []).append(outcome)
        if outcome.hops is not None:
            hops.setdefault(outcome.hops, []).append(outcome)
    return PassFigures(
        split,
        decoding,
        figures(outcomes, seed),
        by_kind={kind: figures(kinds[kind], seed) for kind in sorted(kinds)},
        by_hops={number: figures(hops[number], seed) for number in sorted(hops)},
    )


def _pass_at(k: int, wins: Sequence[int], samples: int, seed: int) -> Estimate:
    return _estimate([pass_at(k, samples, won) for won in wins], seed)


def _estimate(shares: Sequence[float], seed: int) -> Estimate:
    return Estimate(sum(shares) / len(shares), share_interval(shares, seed))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
