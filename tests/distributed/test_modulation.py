"""Batch statistics of the modulation over gloo ranks with uneven numbers of turns."""

import pytest
import torch
import torch.distributed as dist

from megatron_empg.algorithms.aem import response_scale
from megatron_empg.algorithms.empg import ModulationTerms, modulation
from tests.distributed.ranks import run_ranks

# Trajectories of 5, 2, 1 and 4 turns.
TRAJECTORIES = torch.tensor([0] * 5 + [1] * 2 + [2] + [3] * 4)


def whole_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    advantages = torch.randn(4, generator=generator)[TRAJECTORIES]
    return advantages, torch.rand(len(TRAJECTORIES), generator=generator) * 2, TRAJECTORIES


def join() -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def modulate_slice(boundary: int) -> list[list[float]]:
    join()
    own = slice(0, boundary) if dist.get_rank() == 0 else slice(boundary, None)
    parts = modulation(*(values[own] for values in whole_batch()), group=dist.group.WORLD)
    return [part.tolist() for part in parts]


@pytest.mark.parametrize("boundary", [5, 7, 12], ids=["5+7 turns", "7+5 turns", "12+0 turns"])
def test_two_ranks_give_what_one_gives(boundary: int) -> None:
    first, second = run_ranks(modulate_slice, 2, boundary)
    alone = modulation(*whole_batch())
    for name, expected, head, tail in zip(ModulationTerms._fields, alone, first, second, strict=True):
        assert len(head) == boundary
        assert head + tail == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-7), name


def scale_slice(boundary: int) -> list[float]:
    join()
    own = slice(0, boundary) if dist.get_rank() == 0 else slice(boundary, None)
    return response_scale(whole_batch()[1][own], strength=2.0, group=dist.group.WORLD).tolist()


def test_aems_scale_is_that_of_one_rank() -> None:
    first, second = run_ranks(scale_slice, 2, 7)
    alone = response_scale(whole_batch()[1], strength=2.0)
    assert first + second == pytest.approx(alone.tolist(), rel=1e-6)


def no_turns_anywhere() -> list[tuple[int, ...]]:
    join()
    parts = modulation(*(values[:0] for values in whole_batch()), group=dist.group.WORLD)
    return [tuple(part.shape) for part in parts]


def test_no_turns_on_any_rank() -> None:
    assert run_ranks(no_turns_anywhere, 2) == [[(0,)] * 4] * 2


def bad_on_rank_one() -> str:
    join()
    advantages, entropies, trajectories = whole_batch()
    if dist.get_rank() == 1:
        entropies[4] = float("nan")
    try:
        modulation(advantages, entropies, trajectories, group=dist.group.WORLD)
    except ValueError as error:
        return str(error)
    return "no error"


def test_bad_input_on_one_rank_is_an_error_on_both() -> None:
    good, bad = run_ranks(bad_on_rank_one, 2)
    assert "another rank" in good
    assert "entropies[4] is nan" in bad
