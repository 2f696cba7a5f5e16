import torch

from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.sequence_clip import SequenceClip
from tests.unit.algorithms.experiences import random_experience


def test_a_sequence_is_clipped_as_a_whole_within_the_papers_bounds() -> None:
    clip = Gspo().surrogate()
    assert isinstance(clip, SequenceClip)
    assert (clip.clip_low, clip.clip_high) == (3e-4, 4e-4)
    given = Gspo(clip_low=0.1, clip_high=0.2).surrogate()
    assert isinstance(given, SequenceClip)
    assert (given.clip_low, given.clip_high) == (0.1, 0.2)


def test_the_loss_is_the_mean_over_sequences_unless_a_recipe_says_otherwise() -> None:
    assert Gspo().mean == "sequence"
    assert Gspo(loss_mean="token").mean == "token"


def test_advantages_are_those_of_grpo() -> None:
    batch = random_experience(4)
    for divided in (True, False):
        expected = Grpo(normalize_std=divided).advantages(batch, [])
        advantages = Gspo(normalize_std=divided).advantages(batch, [])
        assert torch.equal(advantages.turns, expected.turns)
        assert torch.equal(advantages.episodes, expected.episodes)
