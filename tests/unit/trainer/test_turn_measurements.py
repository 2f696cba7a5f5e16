"""Which turns are measured, and that each is measured alone."""

import pytest
import torch

from megatron_empg.algorithms.sample import Sample
from megatron_empg.trainer.turn_measurements import evenly_spread, turn_alone


def test_a_turn_alone_is_the_sample_up_to_its_end() -> None:
    sample = Sample(torch.arange(12), torch.tensor([[2, 4], [7, 9], [10, 12]]))
    alone = turn_alone(sample, 1)
    assert alone.tokens.tolist() == list(range(9))
    assert alone.turns.tolist() == [[7, 9]]


@pytest.mark.parametrize(
    ("items", "wanted", "chosen"), [(10, 4, [0, 2, 5, 7]), (3, 8, [0, 1, 2]), (0, 4, []), (5, 1, [0])]
)
def test_measured_turns_are_spread_evenly(items: int, wanted: int, chosen: list[int]) -> None:
    assert evenly_spread(items, wanted) == chosen
