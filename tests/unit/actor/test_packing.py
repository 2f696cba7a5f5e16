"""Where the policy's own tokens are predicted, and which sequences share a microbatch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.actor.packing import IGNORE, Sequence, pack, plan_microbatches


def sequence(tokens: list[int], steps: list[tuple[int, int]], **values: list[float]) -> Sequence:
    offsets = torch.tensor(steps).reshape(-1, 2).long()
    return Sequence(torch.tensor(tokens), offsets, {name: torch.tensor(v) for name, v in values.items()})


def test_a_packed_batch_by_hand() -> None:
    first = sequence([10, 11, 12, 13, 14, 15], [(2, 4), (5, 6)], advantages=[1.0, 2.0, 3.0])
    second = sequence([20, 21, 22], [(1, 3)], advantages=[4.0, 5.0])
    batch = pack([first, second], [1, 0], ["advantages"])
    assert batch.tokens.tolist() == [[20, 21, 22, 10, 11, 12, 13, 14, 15]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5]]
    # Each position is asked for its next token, where that is the policy's own: never across sequences.
    assert batch.targets.tolist() == [21, 22, IGNORE, IGNORE, 12, 13, IGNORE, 15, IGNORE]
    assert batch.cu_seqlens.tolist() == [0, 3, 9]
    assert batch.max_seqlen == 6
    assert batch.values["advantages"].tolist() == [4.0, 5.0, 1.0, 2.0, 3.0]
    assert batch.indices == [1, 0]


@pytest.mark.parametrize(("multiple", "padding"), [(1, 0), (2, 1), (4, 3), (5, 0)])
def test_padding_is_a_sequence_that_predicts_nothing(multiple: int, padding: int) -> None:
    batch = pack([sequence([1, 2, 3, 4, 5], [(1, 5)])], [0], [], multiple=multiple)
    assert batch.tokens.shape[1] == 5 + padding
    assert batch.targets[5:].tolist() == [IGNORE] * padding
    assert batch.cu_seqlens.tolist() == ([0, 5, 5 + padding] if padding else [0, 5])


def test_a_microbatch_without_sequences_can_be_run() -> None:
    batch = pack([], [], ["advantages"], multiple=2)
    assert batch.tokens.shape == (1, 2)
    assert (batch.targets == IGNORE).all()
    assert batch.values["advantages"].shape == (0,)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([(2, 2)], "non-empty"),
        ([(3, 2)], "increasing"),
        ([(1, 3), (2, 4)], "disjoint"),
        ([(3, 4), (1, 2)], "increasing"),
        ([(0, 2)], "first token"),
        ([(2, 6)], "outside tokens 1 to 5"),
    ],
)
def test_impossible_spans_are_refused(steps: list[tuple[int, int]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sequence([1, 2, 3, 4, 5], steps)


def test_values_must_fit_the_own_tokens() -> None:
    with pytest.raises(ValueError, match="advantages has 3 values for 2 own tokens"):
        sequence([1, 2, 3], [(1, 3)], advantages=[1.0, 2.0, 3.0])


def test_steps_may_touch() -> None:
    touching = sequence([1, 2, 3, 4], [(1, 2), (2, 4)])
    assert touching.predictors().tolist() == [0, 1, 2]
    assert touching.step_lengths == [1, 2]


@given(
    lengths=st.lists(st.integers(2, 50), max_size=40),
    ranks=st.integers(1, 4),
    slack=st.integers(0, 100),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_sequence_is_planned_once_within_the_budget(lengths: list[int], ranks: int, slack: int) -> None:
    budget = max(lengths, default=1) + slack
    plans = [plan_microbatches(lengths, budget=budget, ranks=ranks, rank=rank) for rank in range(ranks)]
    planned = [index for plan in plans for microbatch in plan for index in microbatch]
    assert sorted(planned) == list(range(len(lengths)))
    for plan in plans:
        assert plan, "a rank without a microbatch would miss the collectives"
        assert all(sum(lengths[i] for i in microbatch) <= budget for microbatch in plan)
        assert all(plan) or plan == [[]], "only a rank without any sequence has an empty microbatch"


def test_ranks_get_like_loads() -> None:
    lengths = [400, 390, 100, 90, 80, 70, 60, 50, 40, 30]
    loads = [
        sum(lengths[i] for m in plan_microbatches(lengths, budget=512, ranks=2, rank=rank) for i in m)
        for rank in (0, 1)
    ]
    assert max(loads) / min(loads) < 1.1


def test_a_sequence_beyond_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match=r"sequence of 65 tokens exceeds actor\.max_tokens_per_microbatch \(64\)"):
        plan_microbatches([3, 65], budget=64, ranks=2, rank=1)
