"""Ranks that would wait for each other for ever are named within seconds, with the line."""

import inspect
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed import collective_order
from tests.distributed.actor_cases import fresh_actor, policy_loss, run_cases, sequences
from tests.distributed.collective_order import QUIET, Order
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model


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


def test_the_error_that_took_a_rank_elsewhere_is_told(tmp_path: Path) -> None:
    message, _ = message_of(run_cases, [error_on_one_rank], str(tmp_path))
    assert "the disk of rank 1" in message
    assert "rank 0: broadcast(3 float32 from 0)" in message


def written(folder: Path, *by_rank: list[tuple[str, str, str]]) -> Order:
    """An order in which each rank has entered these (group, members, operation), long ago."""
    for rank, entered in enumerate(by_rank):
        lines = ["\t".join([*what, f"{i}.0", f"a.py:{i} f"]) + "\n" for i, what in enumerate(entered)]
        (folder / f"rank_{rank}").write_text("".join(lines))
    order = Order(folder, len(by_rank))
    order.fault(set())
    order._quiet_since -= QUIET
    return order


WORLD, PAIR = ("0", "0,1,2"), ("3", "1,2")


def test_ranks_that_compute_are_not_waited_for_in_vain(tmp_path: Path) -> None:
    """Rank 2 has all that it entered behind it: it may come yet."""
    order = written(tmp_path, [(*WORLD, "barrier")] * 2, [(*WORLD, "barrier")] * 2, [(*WORLD, "barrier")])
    assert order.fault(set()) is None
    fault = order.fault({2})
    assert fault is not None
    assert "rank 0: barrier of ranks [0, 1, 2] at a.py:1 f" in fault
    assert "not there: rank 2, which has returned" in fault


def test_a_record_goes_on_in_its_next_part(tmp_path: Path) -> None:
    for rank, operation in enumerate(["barrier", "allreduce(1 int64)"]):
        record = collective_order._Record(tmp_path / f"rank_{rank}")
        for _ in range(1000):
            record.write("0", "0,1", "barrier", 1.0, "a.py:1 f")
        record.write("0", "0,1", operation, 2.0, "a.py:2 f")
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= collective_order.PART_BYTES
    fault = Order(tmp_path, 2).fault(set())
    assert fault is not None
    assert "ranks differ in collective 1000" in fault


def test_a_circle_of_two_groups_is_found(tmp_path: Path) -> None:
    gather = (*PAIR, "all_gather_single(4 float32)")
    order = written(tmp_path, [(*WORLD, "barrier")], [gather], [(*WORLD, "barrier")])
    fault = order.fault(set())
    assert fault is not None
    assert fault.splitlines()[1:] == [
        "  rank 1: all_gather_single(4 float32) of ranks [1, 2] at a.py:0 f",
        "  not there: rank 2, which is in barrier of ranks [0, 1, 2] at a.py:0 f",
        "  beside them: rank 0, which is in barrier of ranks [0, 1, 2] at a.py:0 f",
    ]


def test_the_odd_rank_of_three_comes_first(tmp_path: Path) -> None:
    for rank, operation in enumerate(["allreduce(4 float32)"] * 2 + ["barrier"]):
        (tmp_path / f"rank_{rank}").write_text(f"0\t0,1,2\t{operation}\t1.0\ta.py:{rank} f\n")
    fault = Order(tmp_path, 3).fault(set())
    assert fault is not None
    assert fault.splitlines()[1] == "  rank 2: barrier of ranks [0, 1, 2] at a.py:2 f"


def test_quiet_is_seconds() -> None:
    assert QUIET <= 5
