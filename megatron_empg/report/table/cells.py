"""The numbers of a line: means over its seeds with their intervals, and the paper's as it printed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from megatron_empg.common.wilson import Interval
from megatron_empg.report.table.groups import RunGroup
from megatron_empg.report.table.measured import Pass, PassResult, Share, with_all_splits
from megatron_empg.report.table.names import ALL, Column
from megatron_empg.report.table.published import PublishedPapers
from megatron_empg.report.table.seeds import newcombe, student_interval, within

OVER_SEEDS, OVER_QUESTIONS = "seeds", "questions"


@dataclass(frozen=True)
class TableCell:
    """A mean of some seeds, its interval where there is one, and what that is over."""

    value: float
    seeds: int
    interval: Interval | None
    over: str


@dataclass(frozen=True)
class GainOverPlain:
    """What a line gains over the plain algorithm in a pass, as a share of success, by the seeds of both."""

    line: int
    plain: int
    split: str
    decoding: str
    seeds: list[int]
    difference: float
    interval: Interval | None
    over: str


def passes_of(group: RunGroup) -> list[Pass]:
    """Every split and decoding that some seed of the line was asked in; all splits together last."""
    found: dict[Pass, None] = {}
    for result in group.results:
        found |= dict.fromkeys(with_all_splits(result.passes))
    return list(found)


def cells_of(group: RunGroup, asked: Pass, published: PublishedPapers) -> dict[Column, TableCell]:
    """The cells by column: each kind of question, and all of them."""
    shares: dict[Column, list[Share]] = {}
    for result in _by_seed(group, asked).values():
        for kind, share in result.by_kind.items():
            shares.setdefault(published.column(group.environment, kind), []).append(share)
        shares.setdefault(ALL, []).append(result.all)
    return {column: cell_of(found) for column, found in shares.items()}


def cell_of(shares: Sequence[Share]) -> TableCell:
    """The mean of one share for each seed; for a single one the interval over its questions."""
    values = [share.value for share in shares]
    if len(values) == 1:
        return TableCell(values[0], 1, shares[0].interval, OVER_QUESTIONS)
    return TableCell(mean(values), len(values), within(student_interval(values), 0.0, 1.0), OVER_SEEDS)


def gains_of(group: RunGroup, plain: RunGroup) -> list[GainOverPlain]:
    """The gains in every pass that both lines were asked in, by the seeds that both have."""
    found = []
    for asked in passes_of(group):
        ours, theirs = _by_seed(group, asked), _by_seed(plain, asked)
        seeds = sorted(ours.keys() & theirs.keys())
        if seeds:
            pairs = [(theirs[seed].all, ours[seed].all) for seed in seeds]
            found.append(_gain(group, plain, asked, seeds, pairs))
    return found


def _gain(
    group: RunGroup, plain: RunGroup, asked: Pass, seeds: list[int], pairs: list[tuple[Share, Share]]
) -> GainOverPlain:
    differences = [after.value - before.value for before, after in pairs]
    over = OVER_QUESTIONS
    interval = _over_questions(*pairs[0])
    if len(pairs) > 1:
        over = OVER_SEEDS
        interval = within(student_interval(differences), -1.0, 1.0)
    return GainOverPlain(group.number, plain.number, *asked, seeds, mean(differences), interval, over)


def _over_questions(before: Share, after: Share) -> Interval | None:
    if before.interval is None or after.interval is None:
        return None
    return newcombe(before.value, before.interval, after.value, after.interval)


def _by_seed(group: RunGroup, asked: Pass) -> dict[int, PassResult]:
    """What each seed found in the pass, of those that were asked in it."""
    found = {}
    for result in group.results:
        passes = with_all_splits(result.passes)
        if asked in passes:
            found[result.seed] = passes[asked]
    return found
