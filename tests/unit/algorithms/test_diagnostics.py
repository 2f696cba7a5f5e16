"""The papers' diagnostics against loops over turns and tokens."""

import math
from dataclasses import replace

import pytest
import torch

from megatron_empg.algorithms.base import Advantages, Credit, Experience, ModulatedAdvantages, Scores
from megatron_empg.algorithms.diagnostics import (
    advantage_times_relative_surprisal,
    amplified_and_damped,
    batch_diagnostics,
    bonus_ratio,
    entropy_change,
    gradient_norms_by_entropy,
    modulation_spread,
    quantile_bins,
    token_weighted_advantage,
)
from megatron_empg.algorithms.empg import Empg
from tests.unit.algorithms.experiences import experience

PLAYED = experience([[0.0, 1.0], [0.0], [0.0, -0.5]], lengths=[[3, 1], [2], [1, 4]])
LENGTHS = PLAYED.turn_lengths.tolist()


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


MODULATED = ModulatedAdvantages(
    double(0.9, 1.2, -0.4, -1.1, -0.6),
    h_norm=double(0.0, 0.5, 0.25, 0.4, 1.0),
    scale=double(1.4, 1.1, 1.0, 1.2, 0.3),
    bonus=double(0.1, 0.0, 0.0, 0.05, 0.0),
)


def credit_of(modulated: ModulatedAdvantages | None = MODULATED, kept: list[bool] | None = None) -> Credit:
    turns = double(0.7, 1.0, -0.4, -0.9, -0.9)
    return Credit(
        Advantages(double(1.0, -0.4, -0.9), turns),
        turns=modulated.advantages if modulated is not None else turns,
        entropies=double(0.1, 0.2, 0.3, 0.4, 0.5),
        modulated=modulated,
        loss_weights=torch.ones(11),
        kept=torch.tensor(kept if kept is not None else [True] * 11),
    )


def scores() -> Scores:
    generator = torch.Generator().manual_seed(7)
    return Scores(-torch.rand(11, generator=generator) * 3, torch.rand(11, generator=generator) * 2)


def test_advantage_times_relative_surprisal_is_a_mean_over_the_tokens_that_the_loss_sees() -> None:
    given = scores()
    kept = [True, False, True, True, True, False, True, True, True, True, False]
    terms = []
    token = 0
    for turn, length in enumerate(LENGTHS):
        for _ in range(length):
            surprisal = -given.logprobs[token].item()
            if kept[token]:
                terms.append(MODULATED.advantages[turn].item() * (surprisal - given.entropies[token].item()))
            token += 1
    measured = advantage_times_relative_surprisal(PLAYED, given, credit_of(kept=kept))
    assert measured == {"diagnostics/advantage_times_relative_surprisal": pytest.approx(sum(terms) / len(terms))}


def test_favouring_a_surprising_token_is_a_push_towards_higher_entropy() -> None:
    one = experience([[1.0]])
    credit = Credit(
        Advantages(double(2.0), double(2.0)), double(2.0), double(0.5), None, double(1), torch.ones(1) > 0
    )
    rare = advantage_times_relative_surprisal(one, Scores(double(-3.0), double(0.5)), credit)
    usual = advantage_times_relative_surprisal(one, Scores(double(-0.1), double(0.5)), credit)
    assert list(rare.values()) == pytest.approx([2 * 2.5])
    assert list(usual.values()) == pytest.approx([2 * -0.4])


def test_amplified_and_damped_turns_are_told_apart_by_the_episodes_reward() -> None:
    # Episode 0 is right, with scales 1.4 and 1.1; the others are wrong, with 1.0, 1.2 and 0.3.
    assert amplified_and_damped(PLAYED, MODULATED) == {
        "diagnostics/amplified_turns_right": 1.0,
        "diagnostics/damped_turns_right": 0.0,
        "diagnostics/amplified_turns_wrong": pytest.approx(1 / 3),
        "diagnostics/damped_turns_wrong": pytest.approx(1 / 3),
    }
    none_right = amplified_and_damped(PLAYED, MODULATED, right_above=1.0)
    assert none_right == {
        "diagnostics/amplified_turns_wrong": pytest.approx(3 / 5),
        "diagnostics/damped_turns_wrong": pytest.approx(1 / 5),
    }


def test_the_spread_of_the_modulation_is_that_over_turns() -> None:
    measured = modulation_spread(MODULATED)
    mean = sum([1.4, 1.1, 1.0, 1.2, 0.3]) / 5
    deviations = [(value - mean) ** 2 for value in (1.4, 1.1, 1.0, 1.2, 0.3)]
    assert measured["diagnostics/scale_std"] == pytest.approx(math.sqrt(sum(deviations) / 5))
    assert measured["diagnostics/scale_q05"] == pytest.approx(0.3 + 0.2 * 0.7)
    assert measured["diagnostics/scale_q95"] == pytest.approx(1.2 + 0.8 * 0.2)
    assert measured["diagnostics/h_norm_q05"] == pytest.approx(0.2 * 0.25)
    assert measured["diagnostics/h_norm_q95"] == pytest.approx(0.5 + 0.8 * 0.5)


def test_the_bonus_is_measured_by_the_advantages_before_modulation() -> None:
    assert bonus_ratio(credit_of(), MODULATED) == {"diagnostics/bonus_ratio": pytest.approx(0.15 / 3.9)}


def test_the_mean_advantage_of_a_token_counts_turns_by_their_length() -> None:
    assert token_weighted_advantage(PLAYED, credit_of()) == {
        "diagnostics/advantage_turn_mean": pytest.approx(0.0, abs=1e-15),
        "diagnostics/advantage_token_mean": pytest.approx(
            (3 * 0.9 + 1 * 1.2 + 2 * -0.4 + 1 * -1.1 + 4 * -0.6) / 11
        ),
    }


def test_without_a_modulation_only_what_needs_none_is_measured() -> None:
    assert set(batch_diagnostics(PLAYED, scores(), credit_of(None))) == {
        "diagnostics/advantage_turn_mean",
        "diagnostics/advantage_token_mean",
        "diagnostics/advantage_times_relative_surprisal",
    }


def test_a_batch_has_all_metrics_together() -> None:
    credit = credit_of()
    measured = batch_diagnostics(PLAYED, scores(), credit)
    parts = [
        token_weighted_advantage(PLAYED, credit),
        advantage_times_relative_surprisal(PLAYED, scores(), credit),
        modulation_spread(MODULATED),
        bonus_ratio(credit, MODULATED),
        amplified_and_damped(PLAYED, MODULATED),
    ]
    assert measured == {name: value for part in parts for name, value in part.items()}
    assert len(measured) == 3 + 6 + 1 + 4


def test_what_empg_s_own_metrics_say_is_not_said_twice() -> None:
    given = scores()
    entropies = PLAYED.turn_means(given.entropies)
    modulated = Empg().make().modulate(double(1.0, 1.0, -0.4, -0.9, -0.9), entropies, PLAYED)
    credit = replace(credit_of(modulated), metrics=modulated.metrics)
    names = set(batch_diagnostics(PLAYED, given, credit))
    assert names == {
        "diagnostics/advantage_times_relative_surprisal",
        "diagnostics/bonus_ratio",
        "diagnostics/amplified_turns_right",
        "diagnostics/damped_turns_right",
        "diagnostics/amplified_turns_wrong",
        "diagnostics/damped_turns_wrong",
    }


def test_an_empty_batch_says_nothing() -> None:
    nothing: Experience = experience([])
    none = torch.empty(0, dtype=torch.float64)
    modulated = Empg().make().modulate(none, none, nothing)
    credit = Credit(Advantages(none, none), none, none, modulated, none, none > 0)
    assert batch_diagnostics(nothing, Scores(none, none), credit) == {}
    assert entropy_change(none, none) == ([], {})


def test_no_ratio_of_the_bonus_where_all_advantages_are_zero() -> None:
    none = double(0, 0, 0, 0, 0)
    credit = Credit(Advantages(none[:3], none), none, none, MODULATED, torch.ones(11), torch.ones(11) > 0)
    assert bonus_ratio(credit, MODULATED) == {}


def test_changes_of_entropy_are_binned_by_the_first_entropy() -> None:
    generator = torch.Generator().manual_seed(1)
    before = torch.rand(103, generator=generator, dtype=torch.float64)
    after = before + torch.randn(103, generator=generator, dtype=torch.float64)
    table, metrics = entropy_change(before, after, bins=4)

    ascending = sorted(range(103), key=lambda turn: before[turn].item())
    edges = [0, 25, 51, 77, 103]
    assert [row.count for row in table] == [25, 26, 26, 26]
    for number, row in enumerate(table):
        members = ascending[edges[number] : edges[number + 1]]
        changes = [after[turn].item() - before[turn].item() for turn in members]
        assert row.number == number
        assert row.low == before[members[0]].item()
        assert row.high == before[members[-1]].item()
        assert row.mean == pytest.approx(sum(changes) / len(changes))
        assert metrics[f"diagnostics/entropy_change_bin_{number}"] == row.mean
    assert metrics["diagnostics/entropy_change"] == pytest.approx((after - before).mean().item())


def test_equal_entropies_share_a_bin_and_empty_bins_have_no_row() -> None:
    before = double(0.5, 0.5, 0.5, 0.5, 0.5, 0.9)
    table, metrics = entropy_change(before, before + 1, bins=3)
    assert [(row.number, row.count, row.low, row.high) for row in table] == [(2, 6, 0.5, 0.9)]
    assert set(metrics) == {"diagnostics/entropy_change", "diagnostics/entropy_change_bin_2"}


def test_fewer_turns_than_bins_are_one_to_a_bin() -> None:
    assert quantile_bins(double(0.3, 0.1, 0.2), 10).unique().numel() == 3


def test_gradient_norms_are_binned_by_entropy() -> None:
    table, metrics = gradient_norms_by_entropy(double(4.0, 1.0, 2.0, 3.0), double(0.1, 0.9, 0.8, 0.2), bins=2)
    assert [(row.low, row.high, row.count, row.mean) for row in table] == [(0.1, 0.2, 2, 3.5), (0.8, 0.9, 2, 1.5)]
    assert metrics == {
        "diagnostics/gradient_norm": 2.5,
        "diagnostics/gradient_norm_bin_0": 3.5,
        "diagnostics/gradient_norm_bin_1": 1.5,
    }


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"'entropies after': \(2,\)"):
        entropy_change(double(0.1, 0.2, 0.3), double(0.1, 0.2))
    with pytest.raises(ValueError, match=r"gradient norms\[1\] is nan"):
        gradient_norms_by_entropy(double(0.1, math.nan), double(0.1, 0.2))
    with pytest.raises(ValueError, match="bins is 0"):
        entropy_change(double(0.1), double(0.1), bins=0)
