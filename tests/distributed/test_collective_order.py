"""Ranks that would wait for each other for ever are named within seconds, with the line."""

import inspect
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from actor_cases import fresh_actor, policy_loss, run_cases, sequences
from collective_order import QUIET
from models import save_random_model
from ranks import run_ranks


def settle_under_a_rank_condition(folder: Path) -> None:
    """A planted fault: Megatron gathers parameters over the data-parallel ranks, and one of them does not come."""
    actor = fresh_actor(folder, {"data": 2}, distributed_optimizer=True, overlap=True)
    actor.update(sequences([24, 30, 41, 20]), policy_loss())
    if dist.get_rank() == 0:
        actor.settle()
    dist.barrier()


def other_sizes(folder: Path) -> None:
    for number in range(3):
        dist.all_reduce(torch.zeros(4 if number < 2 or dist.get_rank() == 0 else 5))


def returns_early(folder: Path) -> None:
    if dist.get_rank() == 0:
        dist.all_reduce(torch.zeros(2))


def error_on_one_rank(folder: Path) -> None:
    if dist.get_rank() == 1:
        raise OSError("the disk of rank 1")
    dist.broadcast(torch.zeros(3), 0)


def without_cases(function: Any, folder: str) -> None:
    """The function itself: `run_cases` would meet its ranks again afterwards."""
    from megatron_empg.actor import platform

    platform.prepare()
    dist.init_process_group("gloo")
    function(Path(folder))


def line_of(function: Any, text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + i for i, line in enumerate(lines) if text in line]
    return f"test_collective_order.py:{number} {function.__name__}"


def message_of(function: Any, *arguments: Any) -> tuple[str, float]:
    """What the check says of a fault, and the seconds from the ranks' start."""
    started = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        run_ranks(function, 2, *arguments)
    return str(caught.value), time.monotonic() - started


def test_a_collective_that_one_rank_does_not_enter_is_named(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model", "qwen2")
    message, seconds = message_of(without_cases, settle_under_a_rank_condition, str(tmp_path))
    print(f"\n{message}\nafter {seconds:.1f} s")
    gathering, barrier = sorted(message.splitlines()[1:], key=lambda line: "rank 0" not in line)
    assert "all_gather" in gathering
    assert f"settle < {line_of(settle_under_a_rank_condition, 'actor.settle()')}" in gathering
    assert "rank 1" in barrier
    assert f"barrier of ranks [0, 1] at {line_of(settle_under_a_rank_condition, 'dist.barrier()')}" in barrier


def test_a_rank_with_another_size_is_named(tmp_path: Path) -> None:
    message, _ = message_of(without_cases, other_sizes, str(tmp_path))
    assert "ranks differ in collective 2 of their group" in message
    assert "rank 0: allreduce(4 float32)" in message
    assert "rank 1: allreduce(5 float32)" in message


def test_a_rank_that_has_returned_is_not_waited_for(tmp_path: Path) -> None:
    message, _ = message_of(without_cases, returns_early, str(tmp_path))
    assert "rank 0: allreduce(2 float32)" in message
    assert "not there: rank 1, which has returned" in message


def test_the_error_that_took_a_rank_elsewhere_is_told(tmp_path: Path) -> None:
    message, _ = message_of(run_cases, [error_on_one_rank], str(tmp_path))
    assert "the disk of rank 1" in message
    assert "rank 0: broadcast(3 float32 from 0)" in message


def test_quiet_is_seconds() -> None:
    assert QUIET <= 5
