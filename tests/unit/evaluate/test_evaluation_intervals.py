"""Intervals and p-values against published numbers, exact sums and loops written anew."""

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_empg.common.wilson import Interval, wilson
from megatron_empg.evaluate.intervals import (
    bootstrap_mean,
    difference_interval,
    mcnemar,
    pass_at,
    resolvable,
    resolvable_at,
    share_interval,
    unseen,
)

Z = 1.959963984540054


def binomial(count: int, share: float) -> Iterator[tuple[int, float]]:
    """(successes, probability)."""
    for successes in range(count + 1):
        yield successes, math.comb(count, successes) * share**successes * (1 - share) ** (count - successes)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, count: int, low: float, high: float) -> None:
    interval = wilson(successes, count)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(0, 300), st.data())
def test_wilsons_ends_are_where_the_score_test_turns(count: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, count))
    interval = wilson(successes, count)
    assert 0 <= interval.low <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            distance = abs(successes / count - end)
            assert distance == pytest.approx(Z * math.sqrt(end * (1 - end) / count), abs=1e-9)


def test_wilsons_interval_at_its_edges() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert wilson(0, 1).low == 0.0
    assert wilson(1, 1).high == 1.0
    nothing, everything = wilson(0, 50), wilson(50, 50)
    assert nothing.low == 0.0
    assert everything.high == 1.0
    assert nothing.high == pytest.approx(1 - everything.low)
    assert 0.05 < nothing.high < 0.08


@pytest.mark.parametrize(("successes", "count"), [(-1, 5), (6, 5), (1, 0)])
def test_more_successes_than_questions_are_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError, match="there cannot be so many"):
        wilson(successes, count)


@pytest.mark.parametrize("count", [10, 50, 200])
def test_wilsons_interval_holds_the_truth_19_times_in_20(count: int) -> None:
    """Exact sums over every outcome, averaged over shares."""
    shares = [0.02 + 0.04 * step for step in range(25)]
    covered = []
    for share in shares:
        held = 0.0
        for successes, probability in binomial(count, share):
            interval = wilson(successes, count)
            held += probability * (interval.low <= share <= interval.high)
        covered.append(held)
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)


def test_the_bootstrap_is_that_of_a_plain_loop() -> None:
    values = [0.0, 0.25, 0.25, 0.5, 1.0, 1.0, 1.0, 0.75, 0.0, 0.5] * 4
    rng, means = random.Random(3), []
    for _ in range(10_000):
        means.append(sum(rng.choice(values) for _ in values) / len(values))
    means.sort()
    ours = bootstrap_mean(values, seed=1)
    assert ours.low == pytest.approx(means[250], abs=0.01)
    assert ours.high == pytest.approx(means[9750], abs=0.01)


def test_a_bootstrap_is_the_same_for_the_same_seed_and_in_any_order() -> None:
    values = [0.0, 0.5, 1.0, 0.25] * 10
    assert bootstrap_mean(values, 7) == bootstrap_mean(values[::-1], 7)
    assert bootstrap_mean(values, 7) != bootstrap_mean(values, 8)


def test_a_bootstrap_of_very_many_different_values_is_cut_into_parts() -> None:
    values = np.random.default_rng(0).random(2500).tolist()
    interval = bootstrap_mean(values, 0, draws=2000)
    assert interval.half_width == pytest.approx(Z * np.std(values) / math.sqrt(2500), rel=0.08)


def test_samples_of_one_question_do_not_count_as_questions() -> None:
    """Questions that are all right or all wrong, or nearly: four samples of one say little more than one."""
    assert share_interval([1.0] * 40 + [0.0] * 60, seed=0) == wilson(40, 100)
    nearly = share_interval([1.0] * 38 + [0.75] * 2 + [0.25] * 2 + [0.0] * 58, seed=0)
    assert nearly.half_width == pytest.approx(wilson(40, 100).half_width, rel=0.1)
    assert nearly.half_width > 1.8 * wilson(160, 400).half_width


def test_the_clustered_interval_holds_the_truth_where_one_over_episodes_does_not() -> None:
    """Questions of chances drawn from a beta distribution of mean 0.4, eight samples of each; 57 are expected."""
    rng = np.random.default_rng(11)
    held, held_over_episodes = 0, 0
    for trial in range(60):
        won = rng.binomial(8, rng.beta(0.4, 0.6, size=80))
        interval, naive = share_interval((won / 8).tolist(), seed=trial), wilson(int(won.sum()), 640)
        held += interval.low <= 0.4 <= interval.high
        held_over_episodes += naive.low <= 0.4 <= naive.high
    assert held >= 52
    assert held_over_episodes <= 45


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_samples_end_alike_the_interval_still_has_a_width(value: float) -> None:
    assert share_interval([value] * 30, seed=0) == wilson(round(30 * value), 30)


def test_no_questions_allow_everything() -> None:
    assert share_interval([], seed=0) == Interval(0.0, 1.0)


def test_what_is_no_number_has_no_interval() -> None:
    for values in ([], [float("nan")], [0.5, float("inf")]):
        with pytest.raises(ValueError, match="question"):
            bootstrap_mean(values, 0)


def test_a_paired_interval_is_narrower_than_that_of_two_policies_apart() -> None:
    """On 100 questions the two agree on 90, however hard these are."""
    differences = [0.0] * 90 + [1.0] * 8 + [-1.0] * 2
    paired = difference_interval(differences, seed=0)
    apart = math.sqrt(0.5**2 / 100 * 2) * Z
    assert paired.low < 0.06 < paired.high
    assert paired.half_width < 0.5 * apart
    assert paired.half_width == pytest.approx(Z * np.std(differences) / 10, rel=0.06)


def test_policies_without_a_difference_may_still_differ_a_little() -> None:
    share = unseen(100)
    assert share == pytest.approx(0.0362, abs=1e-4)  # Clopper-Pearson's upper end of 0 of 100
    assert (1 - share) ** 100 == pytest.approx(0.025)
    assert difference_interval([0.0] * 100, seed=0) == Interval(-share, share)
    always = difference_interval([1.0] * 100, seed=0)
    assert always.high == 1.0
    assert always.low == pytest.approx(1 - 2 * share)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_p_value_is_a_sum_of_coin_tosses(first: int, second: int) -> None:
    probabilities = dict(binomial(first + second, 0.5))
    tail = sum(probabilities[heads] for heads in range(min(first, second) + 1))
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)
    assert mcnemar(first, second) == mcnemar(second, first)


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (0, 0, 1.0),
        (7, 7, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (0, 6, 2 / 64),
        (5, 15, 0.04138946533203125),  # 2 * 21700 / 2**20
    ],
)
def test_mcnemars_p_value_by_hand(first: int, second: int, p_value: float) -> None:
    assert mcnemar(first, second) == p_value


def test_mcnemars_p_value_of_thousands_of_questions_is_a_number() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0 < mcnemar(2000, 3000) < 1e-40
    with pytest.raises(ValueError, match="fewer than none"):
        mcnemar(-1, 3)


@pytest.mark.parametrize(("samples", "successes"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_pass_at_k_is_the_share_of_choices_with_a_success(samples: int, successes: int) -> None:
    answers = [True] * successes + [False] * (samples - successes)
    for k in range(1, samples + 1):
        choices = list(itertools.combinations(answers, k))
        assert pass_at(k, samples, successes) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all outcomes of ten samples is the chance of a success among three."""
    mean = sum(probability * pass_at(3, 10, successes) for successes, probability in binomial(10, 0.2))
    assert mean == pytest.approx(1 - 0.8**3)


@pytest.mark.parametrize(("k", "samples", "successes"), [(0, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, -1)])
def test_pass_at_k_refuses_what_cannot_be(k: int, samples: int, successes: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        pass_at(k, samples, successes)


def test_what_questions_resolve_is_found_four_times_in_five() -> None:
    """By playing 20,000 evaluations whose true difference is just that."""
    count, discordant = 200, 0.3
    difference = resolvable_at(count, discordant)
    won, lost = (discordant + difference) / 2, (discordant - difference) / 2
    drawn = np.random.default_rng(5).multinomial(count, [won, lost, 1 - discordant], size=20_000)
    score = (drawn[:, 0] - drawn[:, 1]) / np.sqrt(np.maximum(1, drawn[:, 0] + drawn[:, 1]))
    assert np.mean(score > Z) == pytest.approx(0.8, abs=0.02)


def test_more_questions_resolve_more() -> None:
    steps = [resolvable_at(count, 0.3) for count in (50, 200, 800, 3200)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] / steps[-1] == pytest.approx(8, rel=0.05)
    assert resolvable_at(2, 0.3) == 1.0
    with pytest.raises(ValueError, match="cannot be"):
        resolvable_at(0, 0.3)


def test_what_was_resolved_follows_from_the_spread_of_the_differences() -> None:
    differences = [1.0] * 40 + [-1.0] * 20 + [0.0] * 140
    assert resolvable(differences) == pytest.approx(resolvable_at(200, 0.3), rel=0.05)
    assert resolvable([0.0] * 50) is None
    assert resolvable([1.0]) is None
