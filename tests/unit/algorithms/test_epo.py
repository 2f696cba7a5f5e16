import math

import pytest
import torch

from megatron_empg.algorithms.epo import EntropyHistory, entropy_regularizer, phase_weight, smoothing_penalty

ENTROPIES = [0.5, 0.9, 1.0, 1.5]  # with history 1 and the band [0.8, 1.2]: below, inside, inside, above


def test_penalties_by_hand() -> None:
    entropies = torch.tensor(ENTROPIES)
    constant = smoothing_penalty(entropies, 1.0, alpha=0.1, form="constant")
    assert constant.tolist() == pytest.approx([0.1, 0, 0, 0.1])
    distance = smoothing_penalty(entropies, 1.0, alpha=0.1)
    assert distance.tolist() == pytest.approx([0.03, 0, 0, 0.03])
    assert smoothing_penalty(entropies, None).tolist() == [0.0] * 4


def test_only_the_distance_form_pulls_back_into_the_band() -> None:
    entropies = torch.tensor(ENTROPIES, requires_grad=True)
    smoothing_penalty(entropies, 1.0, alpha=0.1).sum().backward()
    assert entropies.grad is not None
    assert entropies.grad.tolist() == pytest.approx([-0.1, 0, 0, 0.1])
    assert not smoothing_penalty(entropies, 1.0, form="constant").requires_grad


def test_regularizer_is_a_mean_of_trajectory_means() -> None:
    entropies = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
    penalties = torch.tensor([0.2, 0.0, 0.4], dtype=torch.float64)
    term = entropy_regularizer(entropies, penalties, torch.tensor([4, 4, 2]), strength=0.01, beta=0.5)
    # Mean entropies 2 and 5, penalties 0.1 and 0.4: -0.01 * (3.5 - 0.5 * 0.25).
    assert term.item() == pytest.approx(-0.01 * (3.5 - 0.125))
    (gradient,) = torch.autograd.grad(term, entropies)
    assert gradient.tolist() == pytest.approx([-0.0025, -0.0025, -0.005])


def test_no_turns_give_zero() -> None:
    assert entropy_regularizer(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long)).item() == 0.0


def test_history_is_the_mean_of_all_batches() -> None:
    history = EntropyHistory()
    assert history.mean is None
    for value in (1.0, 2.0, 6.0):
        history.add(value)
    assert history.mean == 3.0
    assert EntropyHistory(history.total, history.batches).mean == 3.0
    with pytest.raises(ValueError, match="entropy is nan"):
        history.add(math.nan)


def test_phase_weights_by_hand() -> None:
    assert phase_weight(0.0) == 1.0
    assert phase_weight(0.25) == pytest.approx(1 - 0.2 * (1 - math.exp(-1)))
    assert phase_weight(0.5) == 0.8
    assert phase_weight(1.0) == pytest.approx(0.8 * math.exp(-3))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"band is \[1.2, 0.8\]"):
        smoothing_penalty(torch.zeros(1), 1.0, low=1.2, high=0.8)
    with pytest.raises(ValueError, match="form is 'square'"):
        smoothing_penalty(torch.zeros(1), 1.0, form="square")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"penalties \(2,\)"):
        entropy_regularizer(torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        phase_weight(1.5)
