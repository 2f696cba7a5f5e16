"""What the masks look at where a modulation has moved the advantages."""

import torch

from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.masks import MasksSection
from tests.unit.algorithms.experiences import experience


def test_turns_that_a_bonus_alone_would_train_are_told_by_their_advantage_before_it() -> None:
    """Two questions, the first with equal rewards; every turn ends up with an advantage."""
    batch = experience(
        rewards=[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]],
        groups=[0, 0, 1, 1],
        lengths=[[1, 2], [1, 1], [3, 1], [1, 2]],
    )
    tokens = int(batch.turn_lengths.sum())
    scores = Scores(torch.full((tokens,), -1.0), torch.linspace(0.1, 2.0, tokens))
    credit = Algorithm(Grpo(masks=MasksSection(bonus_only=True))).credit(batch, scores, [])
    assert (credit.turns != 0).all()
    assert credit.kept.tolist() == [False] * 5 + [True] * 7
    assert credit.metrics["algorithm/masked_tokens"] == 5 / 12
