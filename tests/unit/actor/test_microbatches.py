"""Which sequences share a microbatch, and how evenly the work lies."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.actor.microbatches import plan_microbatches


@given(
    lengths=st.lists(st.integers(2, 50), max_size=40),
    ranks=st.integers(1, 4),
    slack=st.integers(0, 100),
    multiple=st.sampled_from([1, 2, 4]),
    equal=st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_every_sequence_is_planned_once_within_the_budget(
    lengths: list[int], ranks: int, slack: int, multiple: int, equal: bool
) -> None:
    budget = max(lengths, default=1) + slack
    plans = plan_microbatches(lengths, budget=budget, ranks=ranks, multiple=multiple, equal=equal)
    assert len(plans) == ranks
    planned = [index for plan in plans for microbatch in plan for index in microbatch]
    assert sorted(planned) == list(range(len(lengths)))
    for plan in plans:
        assert plan, "a rank without a microbatch would miss the collectives"
        assert len(plan) % multiple == 0
        assert all(sum(lengths[i] for i in microbatch) <= budget for microbatch in plan)
    if equal:
        assert len({len(plan) for plan in plans}) == 1
    elif multiple == 1:
        assert all(all(plan) or plan == [[]] for plan in plans), "an empty microbatch that nothing asks for"


def fewest_by_trying(lengths: list[int], budget: int, multiple: int) -> int:
    """The least number of microbatches that greed by tokens gets the sequences into, every number tried."""
    count = max(1, -(-sum(lengths) // budget))
    while True:
        count = -(-count // multiple) * multiple
        filled = [0] * count
        for length in sorted(lengths, reverse=True):
            with_room = [b for b in range(count) if filled[b] + length <= budget]
            if not with_room:
                break
            filled[min(with_room, key=filled.__getitem__)] += length
        else:
            return count
        count += 1


@given(
    lengths=st.lists(st.integers(2, 50), max_size=60),
    slack=st.integers(0, 100),
    multiple=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=1000, deadline=None, derandomize=True)
def test_no_more_microbatches_than_by_trying_every_number(lengths: list[int], slack: int, multiple: int) -> None:
    budget = max(lengths, default=1) + slack
    (plan,) = plan_microbatches(lengths, budget=budget, ranks=1, multiple=multiple)
    assert len(plan) <= fewest_by_trying(lengths, budget, multiple)


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize(("multiple", "equal"), [(1, False), (4, False), (1, True)])
def test_ten_thousand_episodes_take_a_second_at_most(ranks: int, multiple: int, equal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(200, 32_769, (10_000,), generator=generator).tolist()
    taken = []
    for _ in range(3):  # a busy neighbour on the core's other thread costs processor time too
        started = time.process_time()
        plan_microbatches(lengths, budget=32_768, ranks=ranks, cost=quadratic, multiple=multiple, equal=equal)
        taken.append(time.process_time() - started)
    assert min(taken) < 1.0


def quadratic(length: int) -> float:
    return length * (1 + length / 64)


def test_costs_are_even_over_ranks_and_microbatches() -> None:
    """With attention counted, one long sequence weighs as much as many short ones of more tokens."""
    lengths = [256] * 4 + [32] * 64
    plans = plan_microbatches(lengths, budget=800, ranks=2, cost=quadratic)
    costs = [[sum(quadratic(lengths[i]) for i in batch) for batch in plan] for plan in plans]
    assert max(map(sum, costs)) / min(map(sum, costs)) < 1.02
    for of_rank in costs:
        assert max(of_rank) / min(of_rank) < 1.25


def test_attention_counts_and_not_only_tokens() -> None:
    lengths = [512] + [64] * 16
    assert plan_microbatches(lengths, budget=2048, ranks=2, cost=quadratic)[0] == [[0]]
    assert len(plan_microbatches(lengths, budget=2048, ranks=2)[0][0]) > 1


def test_few_microbatches_are_made() -> None:
    lengths = torch.randint(1, 1000, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    (plan,) = plan_microbatches(lengths, budget=2000, ranks=1)
    assert len(plan) <= -(-sum(lengths) // 2000) + 2


def test_a_sequence_beyond_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match=r"sequence of 65 tokens .* 64 tokens .*actor\.max_tokens_per_microbatch"):
        plan_microbatches([3, 65], budget=64, ranks=2)
