"""Figures as tables like the paper's: policies down, kinds of question across, averages with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from megatron_empg.evaluate.comparison import Comparison, points
from megatron_empg.evaluate.figures import ALL_SPLITS, Estimate, Figures, PassFigures
from megatron_empg.evaluate.questions import Decoding
from megatron_empg.report.table.sheet import Sheet, printable

SPLIT_NAMES = {"train": "train", "test_id": "ID", "test_ood": "OOD", ALL_SPLITS: "all"}

Found = Mapping[str, Sequence[PassFigures]]
"""Figures by the policy's label."""


def tables(found: Found, temperature: float) -> list[Sheet]:
    """Sheets per decoding: mean@K by kind, pass@K with several samples, and by hops where tasks have them."""
    made: list[Sheet] = []
    first = next(iter(found.values()), [])
    for decoding in dict.fromkeys(figures.decoding for figures in first):
        ours: dict[str, list[PassFigures]] = {}
        for label, passes in found.items():
            ours[label] = [one for one in passes if one.decoding == decoding]
        made += _tables_of(decoding, ours, temperature)
    return made


def _tables_of(decoding: Decoding, found: Found, temperature: float) -> list[Sheet]:
    """Of one decoding."""
    how = "greedy"
    if decoding == "sampled":
        how = f"sampled at temperature {temperature:g}"
    first = next(iter(found.values()))
    samples = first[0].all.samples
    mean = "success"
    if samples > 1:
        mean = f"mean@{samples}"
    made = [_table(f"{mean} in %, {how} (intervals of 95%)", found, _mean)]
    if samples > 1:
        made.append(_table(f"pass@{samples} in %, {how} (intervals of 95%)", found, _pass_at_most))
    if any(one.by_hops for one in first):
        made.append(_hops_table(f"{mean} in % by hops, {how} (intervals of 95%)", found))
    return made


def _mean(figures: Figures) -> Estimate:
    return figures.mean


def _pass_at_most(figures: Figures) -> Estimate:
    return figures.pass_at[figures.samples]


def _table(title: str, found: Found, told: Callable[[Figures], Estimate]) -> Sheet:
    headings, counts = ["policy"], ["questions"]
    for one in next(iter(found.values())):
        split = SPLIT_NAMES.get(one.split, one.split)
        for kind, figures in _kinds(one).items():
            headings.append(f"{split} {kind}")
            counts.append(str(figures.questions))
        average = "avg"
        if one.split != ALL_SPLITS:
            average = f"{split} avg"
        headings.append(average)
        counts.append(str(one.all.questions))
    headings.append("errors")
    counts.append("")
    rows = []
    for label, passes in found.items():
        rows.append([label, *_cells(passes, told), str(_errors(passes))])
    return Sheet(title, headings, [*rows, counts])


def _kinds(one: PassFigures) -> dict[str, Figures]:
    """The kinds that have a column of their own: none where there is one alone, which is the average."""
    if len(one.by_kind) == 1:
        return {}
    return one.by_kind


def _cells(passes: Sequence[PassFigures], told: Callable[[Figures], Estimate]) -> list[str]:
    cells = []
    for one in passes:
        for figures in _kinds(one).values():
            cells.append(points(told(figures).value))
        cells.append(with_interval(told(one.all)))
    return cells


def _errors(passes: Sequence[PassFigures]) -> int:
    """Episodes of all splits that ended in an error, each counted once."""
    found = 0
    for one in passes:
        if one.split != ALL_SPLITS:
            found += sum(one.all.errors.values())
    return found


def _hops_table(title: str, found: Found) -> Sheet:
    headings, counts = ["policy"], ["questions"]
    for one in next(iter(found.values())):
        split = SPLIT_NAMES.get(one.split, one.split)
        for hops, figures in one.by_hops.items():
            ending = "s"
            if hops == 1:
                ending = ""
            headings.append(f"{split} {hops} hop{ending}")
            counts.append(str(figures.questions))
    rows = []
    for label, passes in found.items():
        cells = [label]
        for one in passes:
            cells += [with_interval(figures.mean) for figures in one.by_hops.values()]
        rows.append(cells)
    return Sheet(title, headings, [*rows, counts])


def with_interval(estimate: Estimate) -> str:
    """``41.0 [34.4, 47.9]``, in percent."""
    interval = estimate.interval
    return f"{points(estimate.value)} [{points(interval.low)}, {points(interval.high)}]"


def compared_line(compared: Comparison) -> str:
    """A comparison as a line: the difference in points, its interval, and how single samples fell."""
    split = compared.split
    if split == ALL_SPLITS:
        split = "all splits"
    low, high = 100 * compared.interval.low, 100 * compared.interval.high
    line = f"{compared.second} against {compared.first}, {split} {compared.decoding}: "
    line += f"{100 * compared.difference:+.1f} points [{low:+.1f}, {high:+.1f}]; "
    line += f"better on {compared.second_better} questions, worse on {compared.first_better}"
    if compared.p_value is None:
        return line
    return f"{line}; McNemar's p = {compared.p_value:.2g}"


def result_line(label: str, figures: PassFigures, seconds: float) -> str:
    """A pass that is over: ``test_id sampled: 41.0% [34.4%, 47.9%] of 200 questions (seen 41.0%), 12 s``."""
    told = figures.all
    interval = f"[{told.mean.interval.low:.1%}, {told.mean.interval.high:.1%}]"
    kinds = []
    for kind, one in figures.by_kind.items():
        kinds.append(f"{printable(kind)} {one.mean.value:.1%}")
    line = (
        f"{figures.split} {figures.decoding}: {told.mean.value:.1%} {interval} of {told.questions} questions "
        f"({', '.join(kinds)}), {seconds:.0f} s"
    )
    if label:
        line = f"{printable(label)}, {line}"
    if not told.errors:
        return line
    errors = []
    for kind, number in told.errors.items():
        errors.append(f"{number} {printable(kind)}")
    return f"{line}; errors, counted as failures: {', '.join(errors)}"
