"""What a preparation costs in GB and hours, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.prepare.disk import free_bytes
from megatron_empg.prepare.errors import PrepareError

ASSUMED_BYTES_PER_SECOND = 50e6
"""Where nothing was measured and --bandwidth is not given."""
SPARE_BYTES = 1_000_000_000
"""Left free on the disk."""


@dataclass(frozen=True)
class Cost:
    """Cost of one part: bytes to fetch, bytes still to be written to the disk, and hours besides fetching.

    `peak`: bytes on the disk `meanwhile`, where these are more. `unknown`: whether more may come that nobody has
    told the size of.
    """

    part: str
    fetch: int
    disk: int
    hours: float = 0.0
    unknown: bool = False
    peak: int = 0
    meanwhile: str = ""

    @property
    def most(self) -> int:
        return max(self.disk, self.peak)


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second, and where that figure is from."""

    bytes_per_second: float
    source: str

    @classmethod
    def of(cls, given_megabytes: float | None, measured: float) -> Bandwidth:
        if given_megabytes:
            return cls(given_megabytes * 1e6, "given")
        if measured:
            return cls(measured, "measured by the last run in this folder")
        return cls(ASSUMED_BYTES_PER_SECOND, "an assumption: --bandwidth MB/S tells better")


def table(costs: Sequence[Cost], bandwidth: Bandwidth, folder: Path, estimate: str = "") -> str:
    """The costs as lines of text. `estimate`: what is said of figures that nobody has measured."""
    lines = [f"{'part':8} {'to fetch':>10} {'on disk':>10} {'hours':>7}"]
    for cost in costs:
        hours = cost.fetch / bandwidth.bytes_per_second / 3600 + cost.hours
        more = ""
        if cost.unknown:
            more = " and what the server says"
        lines.append(f"{cost.part:8} {cost.fetch / 1e9:>7.1f} GB {cost.disk / 1e9:>7.1f} GB {hours:>7.1f}{more}")
    fetch, disk = sum(cost.fetch for cost in costs), sum(cost.disk for cost in costs)
    hours = fetch / bandwidth.bytes_per_second / 3600 + sum(cost.hours for cost in costs)
    lines.append(f"{'in all':8} {fetch / 1e9:>7.1f} GB {disk / 1e9:>7.1f} GB {hours:>7.1f}")
    peak = sum(cost.most for cost in costs)
    if peak > disk:
        doing = next(cost.meanwhile for cost in costs if cost.peak > cost.disk)
        lines.append(f"while {doing}, {peak / 1e9:.0f} GB lie on the disk")
    more = ""
    if estimate:
        more = f"; {estimate}"
    lines.append(f"at {bandwidth.bytes_per_second / 1e6:.0f} MB/s ({bandwidth.source}){more}")
    lines.append(f"free on the disk of {folder}: {free_bytes(folder) / 1e9:.1f} GB")
    return "\n".join(lines)


def require_room(costs: Sequence[Cost], folder: Path) -> None:
    """Raise PrepareError where the disk has too little room for all of it."""
    needed, free = sum(cost.most for cost in costs) + SPARE_BYTES, free_bytes(folder)
    if needed > free:
        raise PrepareError(
            f"{folder} has {free / 1e9:.1f} GB free and this takes {needed / 1e9:.1f} GB (1 GB of it to spare): "
            "give a DIR on a larger disk, make room, or prepare less (--only, --model of a folder you have)"
        )
