"""Whether ranks enter the same collectives in the same order, and who and where it is that does not.

Each rank writes a line for each collective before it enters it: group, operation, size, and the lines of the
project that called. The parent reads these while it waits for the ranks. Two kinds of fault end a test within
seconds, long before a time-out that names nobody: ranks that meet in one place of a group's order with different
collectives, and ranks of which each waits for another (one entered a collective that another never will).
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET = 3.0
"""Seconds without any collective after which ranks that all wait are said to wait for ever."""
# The argument that is of the same size on all ranks; None where sizes may differ.
_SIZED: dict[str, int | None] = {
    "allreduce": 0, "allreduce_coalesced": 0, "reduce": 0, "broadcast": 0,
    "allgather": 1, "_allgather_base": 1, "all_gather_single": 1, "allgather_coalesced": None,
    "allgather_into_tensor_coalesced": 1, "all_gather_single_coalesced": 1,
    "reduce_scatter": 0, "_reduce_scatter_base": 0, "reduce_scatter_single": 0,
    "reduce_scatter_tensor_coalesced": 0, "reduce_scatter_single_coalesced": 0,
    "alltoall": None, "alltoall_base": None, "all_to_all_single": None,
    "gather": 1, "scatter": 0, "barrier": None,
}  # fmt: skip
_DEEPEST = 3
"""Lines of the project that are named for a collective."""
PART_BYTES = 20_000
"""A rank's record is written in parts of this size: a test may forbid a rank to write larger files."""


def record(path: Path) -> None:
    """From now on write each collective of this process to ``path``."""
    from torch._C._distributed_c10d import ProcessGroup

    global _record
    _record = _Record(path)
    for name in _SIZED:
        original = getattr(ProcessGroup, name, None)
        if original is not None:
            setattr(ProcessGroup, name, _recorded(name, original))


def note(text: str) -> None:
    """Words of this rank that go with a report, such as the error that took it elsewhere."""
    if _record is not None:
        _record.write("!", text.replace("\n", "\v"))


class _Record:
    """A rank's lines, in parts."""

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, 0
        self._open_part()

    def write(self, *words: Any) -> None:
        line = ("\t".join(map(str, words)) + "\n").encode()
        if self._written and self._written + len(line) > PART_BYTES:
            os.close(self._file)
            self._number += 1
            self._open_part()
        self._written += os.write(self._file, line)

    def _open_part(self) -> None:
        self._file = os.open(part(self._path, self._number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._written = 0


def part(path: Path, number: int) -> Path:
    """A part of a rank's record. The next one exists only once this one is whole."""
    return path.with_name(f"{path.name}.{number}") if number else path


_record: _Record | None = None


def _recorded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def entered(group: Any, *args: Any, **kwargs: Any) -> Any:
        from torch.distributed import distributed_c10d

        ranks = distributed_c10d._world.pg_group_ranks.get(group)
        if ranks is not None and len(ranks) > 1:
            members = ",".join(map(str, ranks))
            assert _record is not None
            _record.write(group.group_name, members, f"{name}{_size(name, args)}", time.monotonic(), _where())
        return original(group, *args, **kwargs)

    return entered


def _size(name: str, args: tuple[Any, ...]) -> str:
    """Numbers and their kind, and the root where there is one."""
    place = _SIZED[name]
    if place is None or len(args) <= place:
        return ""
    tensors = args[place] if isinstance(args[place], list) else [args[place]]
    while tensors and isinstance(tensors[0], list):
        tensors = tensors[0]
    kind = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
    root = f" from {args[-1].rootRank}" if name == "broadcast" else ""
    return f"({sum(t.numel() for t in tensors)} {kind}{root})"


_ours: dict[str, bool] = {}


def _where() -> str:
    """The innermost lines of the project that led here."""
    frame, named = sys._getframe(3), []
    while frame is not None and len(named) < _DEEPEST:
        file = frame.f_code.co_filename
        if file not in _ours:
            _ours[file] = "site-packages" not in file and ("megatron_empg" in file or "tests" in file)
        if _ours[file]:
            named.append(f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(named)


@dataclass
class _Place:
    """One place in a group's order: what each rank entered there, when, and from which line."""

    members: list[int]
    entered: dict[int, tuple[str, float, str]] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        return [rank for rank in self.members if rank not in self.entered]

    def said_of(self, rank: int) -> str:
        operation, _, where = self.entered[rank]
        return f"rank {rank}: {operation} of ranks {self.members} at {where}"


class Order:
    """The parent's reading of what the ranks wrote in ``folder``."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self._paths = [folder / f"rank_{rank}" for rank in range(world_size)]
        self._part = [0] * world_size
        self._read = [0] * world_size
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._open: dict[tuple[str, str, int], _Place] = {}
        self._last: dict[int, _Place] = {}
        self._notes: list[str] = []
        self._quiet_since = time.monotonic()

    def fault(self, ended: set[int]) -> str | None:
        """What is wrong by now, with the ranks and lines at fault; ``ended`` are ranks that have returned."""
        for rank, path in enumerate(self._paths):
            for line in self._new_lines(rank, path):
                self._quiet_since = time.monotonic()
                if found := self._take(rank, line.split("\t")):
                    return self._with_notes(found)
        if time.monotonic() - self._quiet_since < QUIET:
            return None
        return self._deadlock(ended)

    def _new_lines(self, rank: int, path: Path) -> list[str]:
        lines: list[str] = []
        while (current := part(path, self._part[rank])).exists():
            is_whole = part(path, self._part[rank] + 1).exists()
            with current.open("rb") as file:
                file.seek(self._read[rank])
                found = file.read().rpartition(b"\n")[0]
            self._read[rank] += len(found) + 1 if found else 0
            lines += found.decode().split("\n") if found else []
            if not is_whole:
                break
            self._part[rank] += 1
            self._read[rank] = 0
        return lines

    def _take(self, rank: int, parts: list[str]) -> str | None:
        if parts[0] == "!":
            self._notes.append(f"rank {rank} said: " + parts[1].replace("\v", "\n"))
            return None
        group, members, operation, when, where = parts
        number = self._counts[group, members, rank]
        self._counts[group, members, rank] += 1
        key = (group, members, number)
        place = self._open.setdefault(key, _Place([int(r) for r in members.split(",")]))
        place.entered[rank] = operation, float(when), where
        self._last[rank] = place
        if len({entered[0] for entered in place.entered.values()}) > 1:
            said = [place.said_of(r) for r in _odd_first(place)]
            return f"ranks differ in collective {number} of their group:\n  " + "\n  ".join(said)
        if not place.missing:
            del self._open[key]
        return None

    def _deadlock(self, ended: set[int]) -> str | None:
        alive = [rank for rank in range(len(self._paths)) if rank not in ended]
        if not alive or not all(rank in self._last and self._last[rank].missing for rank in alive):
            return None
        waiting = {id(self._last[rank]): self._last[rank] for rank in alive}.values()
        first = min(waiting, key=lambda place: (len(place.entered), min(e[1] for e in place.entered.values())))
        lines = [first.said_of(rank) for rank in sorted(first.entered)]
        lines += [f"not there: rank {rank}, {self._at(rank, ended)}" for rank in first.missing]
        others = [rank for rank in alive if rank not in first.members]
        lines += [f"beside them: rank {rank}, {self._at(rank, ended)}" for rank in others]
        return self._with_notes("ranks wait for each other for ever:\n  " + "\n  ".join(lines))

    def _at(self, rank: int, ended: set[int]) -> str:
        if rank in ended:
            return "which has returned"
        operation, _, where = self._last[rank].entered[rank]
        return f"which is in {operation} of ranks {self._last[rank].members} at {where}"

    def _with_notes(self, report: str) -> str:
        return "\n".join([report, *self._notes])


def _odd_first(place: _Place) -> list[int]:
    """The ranks, those first whose operation the fewest entered."""
    frequency = Counter(operation for operation, _, _ in place.entered.values())
    return sorted(place.entered, key=lambda rank: (frequency[place.entered[rank][0]], rank))
