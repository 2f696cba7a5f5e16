import logging

import pytest
import torch

from megatron_empg.algorithms import gigpo
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.sampo import Sampo
from megatron_empg.algorithms.sequence_clip import SequenceClip
from tests.unit.algorithms.experiences import experience, random_experience


def test_a_sequence_is_clipped_as_a_whole_within_the_released_bounds() -> None:
    clip = Sampo().surrogate()
    assert isinstance(clip, SequenceClip)
    assert (clip.clip_low, clip.clip_high) == (3e-3, 4e-3)


def test_the_loss_is_the_mean_over_sequences() -> None:
    assert Sampo().mean == "sequence"


def test_groups_that_teach_nothing_are_asked_for_again() -> None:
    section = Sampo(max_generation_rounds=4)
    assert section.generation_rounds == 4
    assert section.keeps(torch.tensor([0.0, 1.0]))
    assert not section.keeps(torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("normalize_std", [True, False])
def test_advantages_are_those_of_gigpo(normalize_std: bool) -> None:
    batch = random_experience(8)
    expected = Gigpo(omega=0.5, gamma=0.8, normalize_std=normalize_std).advantages(batch, [])
    advantages = Sampo(omega=0.5, gamma=0.8, normalize_std=normalize_std).advantages(batch, [])
    assert torch.equal(advantages.turns, expected.turns)
    assert torch.equal(advantages.episodes, expected.episodes)


def test_that_no_state_repeats_is_said_by_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    gigpo._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        Sampo().advantages(experience(rewards=[[0.0, 1.0], [0.0, 0.0]]), [])
    gigpo._warn_once.cache_clear()
    assert caplog.text.count("sampo: no state beyond the first one") == 1
