"""All collectives in all groups again and again for some minutes: what fails only when warm shows here."""

import time
from typing import Any

import torch

from megatron_empg.cluster.nccl_suite.collectives import COLLECTIVES, all_reduce, supported
from megatron_empg.cluster.nccl_suite.correctness import DTYPES, check
from megatron_empg.cluster.nccl_suite.faults import SuiteFault, WrongBytes, blame, wrong_bytes
from megatron_empg.cluster.nccl_suite.performance import time_exchange
from megatron_empg.cluster.nccl_suite.session import SuiteSession


def stress(session: SuiteSession, minutes: float, size: int) -> tuple[dict[str, Any], list[SuiteFault]]:
    """(rounds and their bandwidth, faults), complete on rank 0. Ends after the first round with wrong bytes."""
    until = time.monotonic() + minutes * 60
    wrong: list[WrongBytes] = []
    times: list[float] = []
    world = session.groups["world"]
    while True:
        dtype = DTYPES[len(times) % len(DTYPES)]
        for members in session.groups.values():
            for name in COLLECTIVES:
                if supported(name, dtype, members.size):
                    wrong += check(session, name, session.case(members, dtype, size))
        case = session.case(world, torch.float32, size)
        times.append(min(time_exchange(session, "all_reduce", case, all_reduce(case), turns=3)))
        gathered = session.exchange("stress", [w.__dict__ for w in wrong])
        found = wrong_bytes(gathered)
        if session.agree("the end of the stress", bool(found) or time.monotonic() > until):
            break
    rounds = {"rounds": len(times), "size": size, "all_reduce_seconds": times}
    return rounds, blame(found)
