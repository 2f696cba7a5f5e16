"""`modulate_advantages` against the paper's equations, written as plain loops over Python floats."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_empg.algorithms.empg import Empg, modulate_advantages, modulation
from megatron_empg.algorithms.normalization import normalized_entropy
from tests.unit.algorithms.experiences import experience


def equations(
    advantages: list[float],
    entropies: list[float],
    trajectories: list[int],
    k: float,
    k_f: float,
    zeta: float,
    center: bool,
) -> list[float]:
    """The paper's equations, one step at a time."""
    if not entropies:
        return []
    low, high = min(entropies), max(entropies)
    h_norm = [(entropy - low) / (high - low + 1e-8) for entropy in entropies]
    mean_scale = math.fsum(math.exp(-k * h) for h in h_norm) / len(h_norm)
    result = []
    for t, advantage in enumerate(advantages):
        value = advantage * math.exp(-k * h_norm[t]) / mean_scale
        if t + 1 < len(advantages) and trajectories[t + 1] == trajectories[t]:
            value += zeta * math.exp(-k_f * h_norm[t + 1])
        result.append(value)
    if center:
        mean = math.fsum(result) / len(result)
        result = [value - mean for value in result]
    return result


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[float], list[float], list[int]]:
    """Trajectories of 1 to 6 steps under shuffled names; entropies spread, equal or barely different."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=0, max_size=7))
    names = draw(st.permutations(range(len(lengths))))
    trajectories = [name for name, length in zip(names, lengths, strict=True) for _ in range(length)]
    per_trajectory = draw(st.lists(st.floats(-3, 3), min_size=len(lengths), max_size=len(lengths)))
    advantages = [a for a, length in zip(per_trajectory, lengths, strict=True) for _ in range(length)]
    entropy = st.one_of(st.floats(0, 12), st.sampled_from([0.0, 0.7, 0.7 + 1e-9]))
    entropies = draw(st.lists(entropy, min_size=len(advantages), max_size=len(advantages)))
    return advantages, entropies, trajectories


@settings(max_examples=300, deadline=None, derandomize=True)
@given(batches(), st.floats(0, 4), st.floats(0, 4), st.floats(-1, 1), st.booleans())
def test_equals_the_papers_equations(
    batch: tuple[list[float], list[float], list[int]], k: float, k_f: float, zeta: float, center: bool
) -> None:
    advantages, entropies, trajectories = batch
    result = modulate_advantages(
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(entropies, dtype=torch.float64),
        torch.tensor(trajectories, dtype=torch.long),
        k=k,
        k_f=k_f,
        zeta=zeta,
        center=center,
    )
    expected = torch.tensor(
        equations(advantages, entropies, trajectories, k, k_f, zeta, center), dtype=torch.float64
    )
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_an_example_by_hand() -> None:
    # One trajectory of two steps with H = 1, 3 and one of one step with H = 2: H_norm = 0, 1, 1/2.
    parts = modulation(
        torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64),
        torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64),
        torch.tensor([0, 0, 1]),
        center=False,
    )
    mean = (1 + math.exp(-1) + math.exp(-0.5)) / 3
    bonus = 0.1 * math.exp(-1)
    expected = [2 / mean + bonus, 2 * math.exp(-1) / mean, -math.exp(-0.5) / mean]
    assert parts.h_norm.tolist() == pytest.approx([0, 1, 0.5], abs=1e-8)
    assert parts.g.tolist() == pytest.approx([1 / mean, math.exp(-1) / mean, math.exp(-0.5) / mean])
    assert parts.bonus.tolist() == pytest.approx([bonus, 0, 0])
    assert parts.advantage.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_switched_off_it_returns_its_input_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(97, generator=generator).to(dtype)
    entropies = torch.rand(97, generator=generator)
    trajectories = torch.arange(97) // 5
    result = modulate_advantages(advantages, entropies, trajectories, k=0, zeta=0, center=False)
    assert result.dtype == dtype
    assert torch.equal(result, advantages)


def test_last_steps_have_no_bonus_and_none_crosses_trajectories() -> None:
    trajectories = torch.tensor([4, 4, 4, 1, 9, 9])
    parts = modulation(torch.zeros(6), torch.tensor([1.0, 2, 3, 0, 5, 4]), trajectories, center=False)
    assert (parts.bonus > 0).tolist() == [True, True, False, False, True, False]
    assert torch.equal(parts.advantage, parts.bonus)


def test_a_bonus_does_not_depend_on_another_trajectory() -> None:
    trajectories = torch.tensor([0, 0, 1, 1])
    first = modulation(torch.ones(4), torch.tensor([0.0, 0.5, 1.0, 0.2]), trajectories)
    second = modulation(torch.ones(4), torch.tensor([0.0, 0.5, 0.3, 1.0]), trajectories)
    assert torch.equal(first.bonus[:2], second.bonus[:2])
    assert first.bonus[2] != second.bonus[2]


@pytest.mark.parametrize("entropies", [[], [0.4], [1.3, 1.3, 1.3], [0.0, 0.0]])
def test_no_spread_of_entropies_is_defined(entropies: list[float]) -> None:
    steps = len(entropies)
    parts = modulation(
        torch.full((steps,), 0.5), torch.tensor(entropies), torch.zeros(steps, dtype=torch.long), center=False
    )
    assert parts.h_norm.tolist() == [0.0] * steps
    assert parts.g.tolist() == [1.0] * steps
    assert all(part.isfinite().all() and part.shape == (steps,) for part in parts)


def test_an_entropy_rounded_below_zero_is_no_fault() -> None:
    parts = modulation(torch.ones(2), torch.tensor([-1e-8, 1.0]), torch.tensor([0, 1]))
    assert parts.h_norm.tolist() == pytest.approx([0.0, 1.0])


def test_scale_has_batch_mean_one_and_centring_gives_mean_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = modulation(
        torch.randn(40, generator=generator, dtype=torch.float64),
        torch.rand(40, generator=generator, dtype=torch.float64) * 3,
        torch.arange(40) // 4,
        k=2.0,
    )
    assert parts.g.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert parts.g.max() / parts.g.min() == pytest.approx(math.exp(2.0), rel=1e-6)
    assert parts.advantage.mean().item() == pytest.approx(0.0, abs=1e-12)


STEPS = {"advantages": torch.zeros(3), "entropies": torch.zeros(3), "trajectory_ids": torch.tensor([0, 0, 1])}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"entropies": torch.tensor([0.1, float("nan"), 0.2])}, r"entropies\[1\] is nan"),
        ({"entropies": torch.tensor([0.1, 0.2, -0.5])}, r"entropies\[2\] is -0.5"),
        ({"entropies": torch.tensor([float("inf"), 0.2, 0.5])}, r"entropies\[0\] is inf"),
        ({"advantages": torch.tensor([0.0, float("inf"), 0.0])}, r"advantages\[1\] is inf"),
        ({"entropies": torch.zeros(2)}, r"entropies \(2,\)"),
        ({name: values.reshape(3, 1) for name, values in STEPS.items()}, "one-dimensional"),
        ({"trajectory_ids": torch.tensor([0, 1, 0])}, "trajectory 0 are not contiguous"),
        ({"trajectory_ids": torch.zeros(3)}, "named by an integer"),
        ({"advantages": torch.tensor([0, 1, 0])}, "floating point"),
        ({"k": -1.0}, "k is -1.0"),
        ({"zeta": float("nan")}, "zeta is nan"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        modulate_advantages(**{**STEPS, **change})  # type: ignore[arg-type]


# As a part of an algorithm


def as_equations_of_the_experience(section: Empg, advantages: list[float], entropies: list[float]) -> list[float]:
    """`equations` with means by tokens, for the batch of `PLAYED`."""
    weights = [float(length) for length in LENGTHS] if section.weights == "token" else [1.0] * len(LENGTHS)
    low, high = min(entropies), max(entropies)
    h_norm = [(entropy - low) / (high - low + 1e-8) for entropy in entropies]
    scale = [math.exp(-section.k * h) for h in h_norm]
    mean_scale = sum(w * s for w, s in zip(weights, scale, strict=True)) / sum(weights)
    result = []
    for turn, advantage in enumerate(advantages):
        value = advantage * scale[turn] / mean_scale
        if turn + 1 < len(advantages) and EPISODE_OF_TURN[turn + 1] == EPISODE_OF_TURN[turn]:
            value += section.zeta * math.exp(-section.k_f * h_norm[turn + 1])
        result.append(value)
    if section.center:
        mean = sum(w * value for w, value in zip(weights, result, strict=True)) / sum(weights)
        result = [value - mean for value in result]
    return result


PLAYED = experience([[0.0, 0, 1], [0.0], [0.0, 1]], lengths=[[7, 1, 3], [40], [2, 5]])
LENGTHS = PLAYED.turn_lengths.tolist()
EPISODE_OF_TURN = PLAYED.episode_of_turn.tolist()
ADVANTAGES = torch.tensor([0.5, 0.5, 0.5, -1.0, 0.0, 0.0], dtype=torch.float64)
ENTROPIES = torch.tensor([0.3, 2.0, 0.9, 1.1, 0.2, 0.7], dtype=torch.float64)


def test_by_default_it_is_the_modulation_bit_for_bit() -> None:
    expected = modulation(ADVANTAGES, ENTROPIES, PLAYED.episode_of_turn)
    modulated = Empg().make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    assert torch.equal(modulated.advantages, expected.advantage)
    assert torch.equal(modulated.h_norm, expected.h_norm)
    assert torch.equal(modulated.scale, expected.g)
    assert torch.equal(modulated.bonus, expected.bonus)


@pytest.mark.parametrize("weights", ["turn", "token"])
@pytest.mark.parametrize("center", [True, False])
def test_means_count_turns_or_their_tokens(weights: str, center: bool) -> None:
    section = Empg.model_validate({"k": 2.0, "k_f": 0.5, "zeta": 0.3, "center": center, "weights": weights})
    modulated = section.make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    expected = as_equations_of_the_experience(section, ADVANTAGES.tolist(), ENTROPIES.tolist())
    assert modulated.advantages.tolist() == pytest.approx(expected, rel=1e-12)


def test_by_tokens_the_mean_factor_of_a_token_is_one_and_its_mean_advantage_is_zero() -> None:
    modulated = Empg(weights="token", k=3.0).make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    weights = PLAYED.turn_lengths.double()
    assert (weights * modulated.scale).sum().item() / weights.sum().item() == pytest.approx(1.0)
    assert modulated.metrics["empg/advantage_token_mean"] == pytest.approx(0.0, abs=1e-15)
    assert modulated.metrics["empg/advantage_mean"] != pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("normalize", ["quantile", "rank"])
def test_the_equations_hold_for_other_normalisations(normalize: str) -> None:
    section = Empg.model_validate({"normalize": normalize, "k": 2.0, "center": False})
    modulated = section.make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    h_norm = normalized_entropy(ENTROPIES, section.normalize)
    scale = torch.exp(-2 * h_norm)
    bonus = [0.1 * math.exp(-h_norm[turn + 1]) if turn in (0, 1, 4) else 0.0 for turn in range(6)]
    expected = ADVANTAGES * scale / scale.mean() + torch.tensor(bonus, dtype=torch.float64)
    assert torch.equal(modulated.h_norm, h_norm)
    torch.testing.assert_close(modulated.advantages, expected, rtol=1e-12, atol=1e-12)


def test_reversed_the_least_sure_turn_is_amplified_most() -> None:
    plain = Empg(k=2.0).make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    turned = Empg(k=2.0, reverse=True).make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    assert plain.scale.argmin() == turned.scale.argmax() == ENTROPIES.argmax()
    assert torch.equal(turned.h_norm, 1 - plain.h_norm)
    assert turned.metrics["empg/g_q95"] == pytest.approx(float(turned.scale.quantile(0.95)))


@pytest.mark.parametrize("weights", ["turn", "token"])
@pytest.mark.parametrize("center", [True, False])
def test_metrics_are_those_of_loops(weights: str, center: bool) -> None:
    section = Empg.model_validate({"k": 2.0, "zeta": 0.3, "center": center, "weights": weights})
    modulated = section.make().modulate(ADVANTAGES, ENTROPIES, PLAYED)
    final, g, bonus = modulated.advantages.tolist(), modulated.scale.tolist(), modulated.bonus.tolist()
    counted = LENGTHS if weights == "token" else [1] * 6
    scaled = [advantage * factor for advantage, factor in zip(ADVANTAGES.tolist(), g, strict=True)]
    scaled_mean = mean_by(scaled, counted) if center else 0.0
    bonus_mean = mean_by(bonus, counted) if center else 0.0
    from_bonus = mean_by([abs(value - bonus_mean) for value in bonus], LENGTHS)
    from_advantage = mean_by([abs(value - scaled_mean) for value in scaled], LENGTHS)
    expected = {
        "empg/k": 2.0,
        "empg/zeta": 0.3,
        "empg/h_norm_mean": sum(modulated.h_norm.tolist()) / 6,
        "empg/g_min": min(g),
        "empg/g_max": max(g),
        "empg/bonus_mean": sum(bonus) / 6,
        "empg/advantage_mean": sum(final) / 6,
        "empg/advantage_token_mean": mean_by(final, LENGTHS),
        "empg/bonus_only_tokens": 7 / 58,
        "empg/bonus_share": from_bonus / (from_bonus + from_advantage),
    }
    for name, value in expected.items():
        assert modulated.metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    spreads = {f"empg/{part}_{how}" for part in ("h_norm", "g") for how in ("std", "q05", "q95")}
    assert set(modulated.metrics) == set(expected) | spreads
    assert modulated.metrics["empg/g_std"] == pytest.approx(statistics.pstdev(g))
    assert modulated.metrics["empg/g_q05"] == pytest.approx(torch.tensor(g).quantile(0.05).item())
    assert modulated.metrics["empg/g_q95"] == pytest.approx(torch.tensor(g).quantile(0.95).item())
    assert modulated.metrics["empg/h_norm_q05"] == pytest.approx(0.1 / 1.8 / 4, abs=1e-6)


def mean_by(values: list[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def test_no_share_of_the_bonus_is_told_where_all_advantages_are_zero() -> None:
    modulated = Empg(zeta=0.0).make().modulate(ADVANTAGES * 0, ENTROPIES, PLAYED)
    assert "empg/bonus_share" not in modulated.metrics
    assert modulated.metrics["empg/bonus_only_tokens"] == 1.0


@pytest.mark.parametrize("normalize", ["minmax", "quantile", "rank"])
@pytest.mark.parametrize("weights", ["turn", "token"])
@pytest.mark.parametrize(
    "rewards", [[], [[1.0]], [[0.0, 1.0]], [[1.0], [0.0], [1.0]]], ids=["none", "one turn", "one", "one-turn"]
)
def test_degenerate_batches_are_defined(normalize: str, weights: str, rewards: list[list[float]]) -> None:
    section = Empg.model_validate({"normalize": normalize, "weights": weights, "center": False})
    played = experience(rewards)
    turns = len(played.turn_lengths)
    equal = torch.full((turns,), 0.7)
    modulated = section.make().modulate(torch.full((turns,), 0.5), equal, played)
    assert modulated.scale.tolist() == pytest.approx([1.0] * turns)
    bonus = [0.1 if place == 0 and len(rewards[0]) > 1 else 0.0 for place in range(turns)]
    assert modulated.advantages.tolist() == pytest.approx([0.5 + value for value in bonus])
    assert all(math.isfinite(value) for value in modulated.metrics.values())
    assert bool(modulated.metrics) == (turns > 0)


def test_given_tensors_are_left_as_they_were_and_dtypes_kept() -> None:
    advantages, entropies = ADVANTAGES.float(), ENTROPIES.clone()
    modulated = Empg(weights="token").make().modulate(advantages, entropies, PLAYED)
    assert torch.equal(advantages, ADVANTAGES.float())
    assert torch.equal(entropies, ENTROPIES)
    parts = (modulated.advantages, modulated.h_norm, modulated.scale, modulated.bonus)
    assert {part.dtype for part in parts} == {torch.float32}


def test_an_impossible_batch_is_named() -> None:
    part = Empg().make()
    with pytest.raises(ValueError, match=r"advantages\[1\] is nan"):
        part.modulate(torch.tensor([0.0, math.nan, 0, 0, 0, 0]), ENTROPIES, PLAYED)
    with pytest.raises(ValueError, match=r"entropies \(5,\)"):
        part.modulate(ADVANTAGES, ENTROPIES[:5], PLAYED)
    with pytest.raises(ValueError, match=r"turn_lengths\[3\] is 0; a turn has at least one own token"):
        part.modulate(ADVANTAGES, ENTROPIES, replace(PLAYED, turn_lengths=torch.tensor([7, 1, 3, 0, 2, 5])))
    with pytest.raises(ValueError, match="trajectory 0 are not contiguous"):
        part.modulate(ADVANTAGES, ENTROPIES, replace(PLAYED, episode_of_turn=torch.tensor([0, 1, 0, 1, 2, 2])))


@pytest.mark.parametrize("keys", [{"k": -1.0}, {"zeta": 101.0}, {"normalize": "max"}, {"weights": "episode"}])
def test_keys_out_of_range_are_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Empg.model_validate(keys)


def test_a_part_without_targets_keeps_no_state() -> None:
    part = Empg().make()
    assert part.state_dict() == {}
    with pytest.raises(ValueError, match="clarity"):
        part.load_state_dict({"clarity": [1.0, 1.0]})
