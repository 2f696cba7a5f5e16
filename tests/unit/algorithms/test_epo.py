import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.epo import (
    PRESETS,
    EntropyHistory,
    Epo,
    EpoRegularizer,
    phase_weight,
)
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.algorithms.segments import Segments
from tests.unit.algorithms.experiences import experience, random_experience


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


def test_progress_outside_the_run_is_named() -> None:
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        phase_weight(1.5)


FORMS = ("distance", "constant")
HISTORIES = ("batch", "turn")
EXPLICIT = {"coefficient": 0.01, "beta": 0.7, "alpha": 1.5, "band_low": 0.8, "band_high": 1.2}


def segments_of(part: Experience) -> Segments:
    return Segments(part.episode_of_token, part.turn_of_token, len(part.rewards), len(part.turn_lengths))


def random_entropies(part: Experience, seed: int) -> Tensor:
    """Of each own token, spread so that turns lie below, inside and above a band around 1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = int(part.turn_lengths.sum())
    spread = torch.randn(len(part.turn_lengths), generator=generator, dtype=torch.float64)
    values = 1 + 0.4 * spread[part.turn_of_token]
    return (values + 0.2 * torch.rand(tokens, generator=generator, dtype=torch.float64)).clamp(min=0)


def begun(batch: Experience, past: list[float], **keys: object) -> EpoRegularizer:
    """A regularizer whose history holds ``past`` (by turn index, or the first alone), at the start of a batch."""
    regularizer = Epo.model_validate(EXPLICIT | keys).make()
    means = past if regularizer.settings.history == "turn" else past[:1]
    regularizer.histories = [EntropyHistory(2 * mean, 2) for mean in means]
    regularizer.begin(batch, batch.turn_means(random_entropies(batch, 100)))
    return regularizer


def streams_of(regularizer: EpoRegularizer, part: Experience) -> TokenStreams:
    """With no token masked."""
    return regularizer.streams(part, torch.ones(int(part.turn_lengths.sum()), dtype=torch.bool))


def loss_of(regularizer: EpoRegularizer, part: Experience, entropies: Tensor) -> Tensor:
    """The mean over own tokens, as the actor takes it."""
    term = regularizer.term()
    assert term is not None
    loss, _ = term(entropies, entropies, streams_of(regularizer, part), segments_of(part))
    return loss.mean()


def test_value_and_gradient_are_those_of_the_paper_s_equation_for_every_form_and_history() -> None:
    past = [1.0, 0.8, 1.1, 0.9]  # of the turn places 4 and 5 nothing is known
    for seed in range(3):
        batch = random_experience(seed)
        for episodes in (list(range(24)), [7, 3, 20], [11]):
            part = batch.select(episodes)
            for form in FORMS:
                for history in HISTORIES:
                    regularizer = begun(batch, past, form=form, history=history, phase_weights=False)
                    entropies = random_entropies(part, seed).requires_grad_()
                    loss = loss_of(regularizer, part, entropies)
                    expected = by_equation(part, entropies, past if history == "turn" else past[:1], form)
                    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-9)
                    (ours,) = torch.autograd.grad(loss, entropies)
                    (plain,) = torch.autograd.grad(expected, entropies)
                    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-9)


def by_equation(part: Experience, entropies: Tensor, past: list[float], form: str) -> Tensor:
    """The term from differentiable means of turns, each with the penalty of its own place in the episode."""
    turns = torch.stack([turn.mean() for turn in entropies.split(part.turn_lengths.tolist())])
    penalized = []
    for turn, place in zip(turns, part.place_of_turn.tolist(), strict=True):
        mean = past[0] if len(past) == 1 else (past[place] if place < len(past) else None)
        penalized.append(turn - EXPLICIT["beta"] * penalty(turn, mean, form))
    episodes = []
    for episode in part.episode_of_turn.unique():
        episodes.append(torch.stack(penalized)[part.episode_of_turn == episode].mean())
    return -EXPLICIT["coefficient"] * torch.stack(episodes).mean()


def penalty(turn: Tensor, history: float | None, form: str) -> Tensor:
    """P: 0 inside the band and without a history; outside alpha, or alpha times the distance."""
    if history is None:
        return torch.zeros_like(turn)
    below, above = EXPLICIT["band_low"] * history - turn, turn - EXPLICIT["band_high"] * history
    distance = torch.maximum(below, above).clamp(min=0)
    return EXPLICIT["alpha"] * (distance if form == "distance" else (distance > 0).double())


def test_the_current_policy_decides_on_the_side_of_the_band() -> None:
    """The old policy was inside the band; now turn 0 is above, turn 1 below and turn 2 inside."""
    batch = experience([[0, 0, 1]], lengths=[[2, 1, 2]])
    regularizer = begun(batch, [1.0], form="distance", alpha=3.0, beta=1.0, coefficient=1.0)
    entropies = torch.tensor([1.0, 2.0, 0.2, 1.0, 1.1], requires_grad=True)
    term = regularizer.term()
    assert term is not None
    loss, statistics = term(entropies, entropies, streams_of(regularizer, batch), segments_of(batch))
    (gradient,) = torch.autograd.grad(loss.mean(), entropies)
    # By the mean over tokens of turns' means: a third, shared by the turn's tokens. H falls above, 1 - 3; below it
    # rises, 1 + 3.
    assert gradient.tolist() == pytest.approx([2 / 6, 2 / 6, -4 / 3, -1 / 6, -1 / 6])
    assert statistics["epo_penalty"].tolist() == pytest.approx([0.9, 0.9, 1.8, 0, 0])
    assert statistics["epo_outside"].tolist() == [1, 1, 1, 0, 0]
    assert list(statistics) == list(term.statistics)


def test_the_constant_form_trains_as_the_plain_bonus_does() -> None:
    batch = random_experience(5)
    entropies = random_entropies(batch, 1).requires_grad_()
    gradients = []
    for alpha in (0.0, 100.0):
        regularizer = begun(batch, [1.0], form="constant", alpha=alpha)
        gradients.append(torch.autograd.grad(loss_of(regularizer, batch, entropies), entropies)[0])
    assert torch.equal(*gradients)


def test_the_default_pulls_back_into_the_band_from_both_sides_and_the_published_ones_only_up() -> None:
    batch = experience([[1], [1]])
    for preset in PRESETS:
        regularizer = Epo(preset=preset).make()
        regularizer.histories = [EntropyHistory(1.0, 1)]
        regularizer.begin(batch, torch.ones(2))
        entropies = torch.tensor([0.1, 4.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(loss_of(regularizer, batch, entropies), entropies)
        assert gradient[0] < 0
        assert (gradient[1] > 0) == (preset == "differentiable")


def test_a_turn_split_over_ranks_is_judged_as_a_whole() -> None:
    batch = random_experience(2)
    entropies = random_entropies(batch, 3)
    regularizer = begun(batch, [1.0])
    term, streams, whole = regularizer.term(), streams_of(regularizer, batch), segments_of(batch)
    assert term is not None
    expected, _ = term(entropies, entropies, streams, whole)
    for rank in (0, 1):
        mine, other = slice(rank, None, 2), slice(1 - rank, None, 2)

        def add_other(sums: Tensor, other: slice = other) -> None:
            sums[0].index_add_(0, whole.turn_of_token[other], entropies[other])
            sums[1].index_add_(0, whole.turn_of_token[other], torch.ones_like(entropies[other]))

        part = Segments(
            whole.sample_of_token[mine], whole.turn_of_token[mine], whole.samples, whole.turns, reduce=add_other
        )
        ours, _ = term(entropies[mine], entropies[mine], streams.map(lambda values, mine=mine: values[mine]), part)
        torch.testing.assert_close(ours, expected[mine])


def test_masked_tokens_carry_nothing_and_count_in_no_mean() -> None:
    """What is left weighs as if it were all."""
    batch = experience([[0, 1, 0], [1], [1, 1]], lengths=[[2, 1, 3], [2], [1, 1]])
    kept = torch.tensor([False, False, True, True, True, True, False, False, True, False])
    left = experience([[1, 0], [1]], lengths=[[1, 3], [1]])
    regularizer = begun(batch, [1.0])
    term = regularizer.term()
    assert term is not None
    entropies = random_entropies(batch, 4).requires_grad_()
    tokens, statistics = term(entropies, entropies, regularizer.streams(batch, kept), segments_of(batch))
    alone = entropies.detach()[kept].requires_grad_()
    expected = loss_of(regularizer, left, alone)
    (gradient,) = torch.autograd.grad(tokens.mean(), entropies)
    torch.testing.assert_close(tokens.mean(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient[kept], torch.autograd.grad(expected, alone)[0], rtol=1e-6, atol=1e-9)
    for values in (gradient, *statistics.values()):
        assert (values[~kept] == 0).all()


def test_the_entropy_s_weight_does_not_shrink_with_the_mask() -> None:
    """Neither does that of the plain bonus."""
    batch = random_experience(6)
    for share in (0.1, 0.5, 1.0):
        mask = torch.rand(len(batch.turn_lengths), generator=torch.Generator().manual_seed(1)) <= share
        kept = mask.repeat_interleave(batch.turn_lengths)
        regularizer = begun(batch, [1.0], coefficient=1.0, beta=0.0)
        weights = regularizer.streams(batch, kept).entropy_weights
        assert weights is not None
        assert weights.mean().item() == pytest.approx(1.0)
    nothing = regularizer.streams(batch, torch.zeros_like(kept)).entropy_weights
    assert nothing is not None
    assert (nothing == 0).all()


def test_a_batch_is_held_to_the_batches_before_it_and_then_joins_them() -> None:
    batch = experience([[0, 0], [1]], lengths=[[1, 2], [1]])
    regularizer = Epo.model_validate(EXPLICIT | {"history": "batch"}).make()
    metrics = regularizer.begin(batch, torch.tensor([1.0, 3.0, 5.0]))
    assert metrics == {"epo/phase_weight": 1.0}
    assert streams_of(regularizer, batch).entropy_low.tolist() == [-math.inf] * 4
    # The mean over turns, then over episodes: (2 + 5) / 2.
    metrics = regularizer.begin(batch, torch.tensor([3.0, 1.0, 9.0]))
    assert metrics == pytest.approx({"epo/phase_weight": 1.0, "epo/history": 3.5, "epo/outside_share": 2 / 3})
    assert streams_of(regularizer, batch).entropy_low.tolist() == pytest.approx([0.8 * 3.5] * 4)
    assert streams_of(regularizer, batch).entropy_high.tolist() == pytest.approx([1.2 * 3.5] * 4)
    regularizer.begin(batch, torch.zeros(3))
    assert streams_of(regularizer, batch).entropy_low.tolist() == pytest.approx([0.8 * (3.5 + 5.5) / 2] * 4)


def test_a_history_by_turn_is_kept_for_each_place() -> None:
    batch = experience([[0, 0], [1]])
    regularizer = Epo.model_validate(EXPLICIT | {"history": "turn"}).make()
    regularizer.begin(batch, torch.tensor([1.0, 3.0, 5.0]))
    longer = experience([[0, 0, 0]])
    regularizer.begin(longer, torch.tensor([5.0, 1.0, 7.0]))
    assert streams_of(regularizer, longer).entropy_low.tolist() == pytest.approx([0.8 * 3, 0.8 * 3, -math.inf])
    assert [history.mean for history in regularizer.histories] == [4.0, 2.0, 7.0]


def test_the_history_goes_through_a_checkpoint_as_json() -> None:
    batch = random_experience(0)
    entropies = batch.turn_means(random_entropies(batch, 0))
    for history in HISTORIES:
        section = Epo.model_validate({"history": history})
        first, second = section.make(), section.make()
        second.load_state_dict({})
        first.begin(batch, entropies)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert first.begin(batch, entropies) == second.begin(batch, entropies)
        assert first.state_dict() == second.state_dict()
    with pytest.raises(ValueError, match="by turn, the regularizer's by batch"):
        Epo(history="batch").make().load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"totals": [1.0], "batches": [1]}, "must be a dict of history, totals and batches"),
        ({"history": "batch"}, "must be a dict of history, totals and batches"),
        (["batch"], r"entropy history is \['batch'\]"),
        ({"history": "batch", "totals": [1.0], "batches": []}, "both must be lists of one length"),
        ({"history": "batch", "totals": 1.0, "batches": [1]}, r"totals 1\.0"),
        ({"history": "batch", "totals": ["1"], "batches": [1]}, "total of '1' over 1 batches"),
        ({"history": "batch", "totals": [math.nan], "batches": [1]}, "total of nan"),
        ({"history": "batch", "totals": [10**400], "batches": [1]}, "total of 1000"),
        ({"history": "batch", "totals": [1.0], "batches": [10**400]}, "total of 1.0 over 1000"),
        ({"history": "batch", "totals": [1.0], "batches": [0]}, "over 0 batches"),
        ({"history": "batch", "totals": [1.0], "batches": [None]}, "over None batches"),
    ],
)
def test_a_broken_history_is_refused_by_name_and_changes_nothing(state: Any, named: str) -> None:
    regularizer = Epo(history="batch").make()
    regularizer.histories = [EntropyHistory(2.0, 1)]
    with pytest.raises(ValueError, match=named):
        regularizer.load_state_dict(state)
    assert regularizer.histories == [EntropyHistory(2.0, 1)]


def test_the_phase_weight_of_the_run_s_progress_multiplies_the_penalty() -> None:
    for progress, weight in ((0.0, 1.0), (0.5, 0.8), (0.75, 0.8 * math.exp(-1.5))):
        batch = experience([[1]], progress=progress)
        for weighted in (True, False):
            regularizer = begun(batch, [1.0], phase_weights=weighted, form="constant")
            metrics = regularizer.begin(batch, torch.ones(1))
            assert metrics["epo/phase_weight"] == pytest.approx(weight if weighted else 1.0)
            loss = loss_of(regularizer, batch, torch.tensor([3.0]))
            used = weight if weighted else 1.0
            assert loss.item() == pytest.approx(-0.01 * (3.0 - 0.7 * 1.5 * used))


def test_empty_batches_and_a_coefficient_of_0_are_no_fault() -> None:
    empty = experience([])
    regularizer = begun(experience([[1]]), [1.0])
    before = regularizer.state_dict()
    assert regularizer.begin(empty, torch.zeros(0, dtype=torch.float64)) == {"epo/phase_weight": 1.0}
    assert regularizer.state_dict() == before
    assert all(len(values) == 0 for values in streams_of(regularizer, empty).present().values())
    nothing = Epo(coefficient=0.0).make()
    assert nothing.term() is None
    assert streams_of(nothing, experience([[1]])).present() == TokenStreams().present()


def test_keys_override_the_preset_s_numbers_one_by_one() -> None:
    for preset, settings in PRESETS.items():
        assert Epo(preset=preset).settings == settings
        assert Epo(preset=preset, alpha=0.0).settings == replace(settings, alpha=0.0)
        assert Epo(preset=preset, phase_weights=False).settings == replace(settings, phase_weights=False)
    with pytest.raises(ValueError, match=r"band_low is 3\.0 and band_high 1\.2"):
        Epo(band_low=3.0)


def test_an_entropy_that_is_no_number_is_refused() -> None:
    for history in HISTORIES:
        regularizer = Epo.model_validate({"history": history}).make()
        with pytest.raises(ValueError, match="mean entropy is nan"):
            regularizer.begin(experience([[0, 1]]), torch.tensor([1.0, math.nan]))
