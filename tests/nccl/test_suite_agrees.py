"""Live times of the suite against a plain loop around torch.distributed, in turns in the same processes."""

import statistics
import time

import pytest

from tests.distributed.ranks import run_ranks

SIZE = 64 * 2**20
LIMIT = 0.15
NAMES = ("all_reduce", "all_gather")
_TURNS = range(6, 30)


def _seconds() -> dict[str, tuple[float, float]]:
    """By collective: (the suite's, the loop's) median seconds of all turns, on this rank."""
    import torch
    import torch.distributed as dist

    from megatron_empg.actor.config import ActorConfig
    from megatron_empg.cluster.nccl_suite.collectives import COLLECTIVES
    from megatron_empg.cluster.nccl_suite.performance import time_exchange
    from megatron_empg.cluster.nccl_suite.session import SuiteSession
    from megatron_empg.cluster.place import RankPlace

    session = SuiteSession(RankPlace.from_environment(), "gloo", layout=ActorConfig())
    case = session.case(session.groups["world"], torch.float32, SIZE)
    whole, half = torch.zeros(SIZE // 4), torch.zeros(SIZE // 8)
    loops = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather([*whole.chunk(2)], half),
    }
    medians = {}
    for name in NAMES:
        exchange = COLLECTIVES[name](case)
        assert exchange.size == SIZE
        ours, theirs = [], []
        for turn in range(_TURNS.stop):
            ours += time_exchange(session, name, case, exchange, turns=2)
            for _ in range(3):
                start = time.perf_counter()
                loops[name]()
                theirs.append(time.perf_counter() - start)
            medians[name] = statistics.median(ours), statistics.median(theirs)
            near = turn >= _TURNS.start and abs(medians[name][0] / medians[name][1] - 1) < LIMIT
            if session.agree("whether that is enough", near):  # a busy machine gets more turns
                break
    session.close()
    return medians


def test_times_at_64_mib_agree_with_a_plain_loop() -> None:
    medians = run_ranks(_seconds, 2, timeout=170)[0]
    for name in NAMES:
        ours, theirs = medians[name]
        print(f"{name} of {SIZE >> 20} MiB: suite / plain loop {ours / theirs:.3f}")
        assert ours == pytest.approx(theirs, rel=LIMIT), name
