"""Two policies on the same questions: paired, since a question that is hard for one is hard for the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.common.wilson import Interval, wilson
from megatron_empg.evaluate.figures import ALL_SPLITS, grouped, samples_by_question, successes
from megatron_empg.evaluate.intervals import difference_interval, mcnemar, resolvable, resolvable_at, unseen
from megatron_empg.evaluate.questions import Decoding, SampleOutcome

ASSUMED_DISCORDANT = 0.3
"""Share of questions on which two policies are taken to differ before anything is known of a second one."""


@dataclass(frozen=True)
class Comparison:
    """`second` against `first` in one split and decoding: what `second` gains, as a share of success.

    `p_value` is McNemar's, exact, where each question was asked once; None where it was asked several times.
    `resolvable`: the difference that so many questions find with a power of 80%, None where the policies agree.
    """

    first: str
    second: str
    split: str
    decoding: Decoding
    questions: int
    samples: int
    difference: float
    interval: Interval
    p_value: float | None
    first_better: int
    second_better: int
    resolvable: float | None


def compare(first: str, second: str, outcomes: dict[str, Sequence[SampleOutcome]], seed: int) -> list[Comparison]:
    """The two in every split and decoding, and over all splits. `outcomes`: by policy.

    Raises ValueError unless both were asked the same questions equally often.
    """
    names = (first, second)
    found: list[Comparison] = []
    others = grouped(outcomes[second], "decoding")
    for decoding, ours in grouped(outcomes[first], "decoding").items():
        theirs = others.get(decoding, [])
        before, after = grouped(ours, "split"), grouped(theirs, "split")
        for split, inside in before.items():
            found.append(_paired(names, (split, decoding), inside, after.get(split, []), seed))
        if len(before) > 1:
            found.append(_paired(names, (ALL_SPLITS, decoding), ours, theirs, seed))
    return found


def _paired(
    names: tuple[str, str],
    what: tuple[str, Decoding],
    ours: list[SampleOutcome],
    theirs: list[SampleOutcome],
    seed: int,
) -> Comparison:
    before, after = successes(samples_by_question(ours)), successes(samples_by_question(theirs))
    if before.keys() != after.keys() or len(ours) != len(theirs):
        raise ValueError(f"{names[0]} and {names[1]} were not asked the same questions of {what[0]}")
    questions = len(before)
    samples = len(ours) // questions
    gained = [after[question] - before[question] for question in before]
    shares = [gain / samples for gain in gained]
    first_better = sum(gain < 0 for gain in gained)
    second_better = sum(gain > 0 for gain in gained)
    # McNemar's test knows of one answer per question alone.
    p_value = None
    if samples == 1:
        p_value = mcnemar(first_better, second_better)
    return Comparison(
        *names,
        *what,
        questions=questions,
        samples=samples,
        difference=sum(gained) / (samples * questions),
        interval=difference_interval(shares, seed),
        p_value=p_value,
        first_better=first_better,
        second_better=second_better,
        resolvable=resolvable(shares),
    )


def what_it_resolves(compared: Comparison) -> str:
    """A sentence for a reader who asks whether the difference could be luck."""
    number = f"{compared.questions} questions"
    if compared.resolvable is None:
        share = unseen(compared.questions)
        return f"{number} without a difference allow that policies differ on {share:.1%} of all questions."
    return (
        f"{number} can resolve a difference of {points(compared.resolvable)} points (with a power of 80%); a "
        "smaller one may be there unseen."
    )


def what_questions_resolve(questions: int) -> str:
    """The same where there is one policy alone, for single samples."""
    half = wilson(questions // 2, questions).half_width
    apart = resolvable_at(questions, ASSUMED_DISCORDANT)
    told = "are too few to resolve any difference"
    if apart <= ASSUMED_DISCORDANT:
        told = f"can resolve a difference of {points(apart)} points (with a power of 80%)"
    return (
        f"{questions} questions, one sample each, say a success of 50% to within {points(half)} points; between "
        f"two policies that differ on {ASSUMED_DISCORDANT:.0%} of the questions they {told}."
    )


def points(share: float) -> str:
    """A share in percentage points."""
    return f"{100 * share:.1f}"
