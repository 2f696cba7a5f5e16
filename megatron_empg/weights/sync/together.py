"""Trainer ranks that send weights together: a part that fails on one of them ends on all, and none waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from megatron_empg.common.ranks import gathered
from megatron_empg.weights.sync.engine_control import WeightTransferError

Value = TypeVar("Value")


class PublishingRanks(Protocol):
    """The ranks that enter a `WeightPublisher`'s methods together."""

    rank: int

    def gathered(self, value: Value) -> list[Value]:
        """Every rank's value, on every rank. Collective."""
        ...


class SingleProcess:
    """This process, without others."""

    rank = 0

    def gathered(self, value: Value) -> list[Value]:
        return [value]


class TrainerRanks:
    """All ranks of torch.distributed's default group."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank = dist.get_rank()

    def gathered(self, value: Value) -> list[Value]:
        return gathered(value)


@dataclass(frozen=True)
class RankFault:
    """What a rank's part failed of. `passing`: it may go well another time."""

    words: str
    passing: bool


class RankStopped(Exception):
    """Some rank's part failed; raised on every rank."""

    def __init__(self, part: str, faults: dict[int, RankFault], rank: int, own: Exception | None) -> None:
        self._part, self._faults, self._rank, self._own = part, faults, rank, own
        super().__init__(f"{part}: {faults}")

    @property
    def passing(self) -> bool:
        """Whether all of it may go well another time; the same on every rank."""
        return all(fault.passing for fault in self._faults.values())

    def error(self) -> Exception:
        """This rank's own, unless another rank's is the cause of it: a lasting one, or what rank 0 knows of the
        engines."""
        lasting = {rank: fault for rank, fault in self._faults.items() if not fault.passing}
        causes = lasting or {min(self._faults): self._faults[min(self._faults)]}
        if self._own is not None and self._rank in causes:
            return self._own
        named = {f"trainer rank {rank}": fault.words for rank, fault in causes.items()}
        return WeightTransferError(self._part, named, passing=self.passing)


def together(ranks: PublishingRanks, part: str, work: Callable[[], Value]) -> list[Value]:
    """What `work` returns on every rank, when all have ended. Raises RankStopped, on all, if one of them failed.

    A failed transfer may go well another time; whatever else was raised would come again.
    """
    result: list[Value] = []
    own: Exception | None = None
    try:
        result.append(work())
    except Exception as error:  # told to all ranks, and raised by the caller
        own = error
    fault = None if own is None else _fault_of(own)
    answers = ranks.gathered((fault, result))
    faults = {rank: found for rank, (found, _) in enumerate(answers) if found is not None}
    if faults:
        raise RankStopped(part, faults, ranks.rank, own)
    return [value for _, (value,) in answers]


def _fault_of(error: Exception) -> RankFault:
    if isinstance(error, WeightTransferError):
        return RankFault(str(error), passing=error.passing)
    return RankFault(f"{type(error).__name__}: {error}", passing=False)
