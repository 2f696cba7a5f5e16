import pytest
import torch

from megatron_empg.algorithms.entropy_bonus import EntropyBonus
from megatron_empg.algorithms.sample import TokenStreams
from megatron_empg.algorithms.segments import Segments
from tests.unit.algorithms.experiences import random_experience


def test_every_token_is_paid_for_its_entropy() -> None:
    tokens = torch.zeros(3, dtype=torch.long)
    for coefficient in (0.01, -0.5):
        term = EntropyBonus(coefficient=coefficient).make().term()
        assert term is not None
        assert term.statistics == ()
        entropies = torch.tensor([0.5, 0.0, 2.0], requires_grad=True)
        loss, statistics = term(torch.zeros(3), entropies, TokenStreams(), Segments(tokens, tokens, 1, 1))
        assert loss.tolist() == pytest.approx([-0.5 * coefficient, 0.0, -2.0 * coefficient])
        (gradient,) = torch.autograd.grad(loss.sum(), entropies)
        assert gradient.tolist() == pytest.approx([-coefficient] * 3)
        assert statistics == {}


def test_it_keeps_nothing_and_reads_no_stream() -> None:
    bonus, batch = EntropyBonus().make(), random_experience(0)
    assert bonus.begin(batch, torch.zeros(len(batch.turn_lengths))) == {}
    assert bonus.streams(batch, torch.ones(int(batch.turn_lengths.sum()), dtype=torch.bool)).present() == {}
    assert bonus.state_dict() == {}
    assert EntropyBonus(coefficient=0.0).make().term() is None
