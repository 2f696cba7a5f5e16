"""The page's first lines: what ran, and its numbers in large."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from megatron_empg.report.data import RunData, part
from megatron_empg.report.figures import SPLITS
from megatron_empg.run.progress import duration

LAST_VALUES = (
    ("policy/kl_to_initial", "KL to the initial policy", "nats per token"),
    ("tokens_per_second", "tokens per second", "in the last step"),
)


@dataclass(frozen=True)
class Tile:
    """A number in large with what it is of; before `about` there may be a change of percentage points."""

    label: str
    value: str
    about: str
    change: float | None = None


def lead(run: RunData) -> str:
    """Algorithm, environment and model in a line."""
    algorithm = run.setting("algorithm.name", "")
    names = [algorithm, part(run, "modulation")["name"], part(run, "regularizer")["name"]]
    parts = [str(run.setting("environment.name", "")), str(run.setting("model.path", ""))]
    if algorithm:
        parts.insert(0, " + ".join(str(name).upper() for name in names if name and name != "none"))
    if run.setting("algorithm.shuffle_rewards"):
        parts.append("control: rewards shuffled")
    return " · ".join(filter(None, parts))


def tiles(run: RunData) -> list[Tile]:
    """Those of which something was logged."""
    success = list(_evaluated(run)) or list(_trained(run))
    return [*success, *_progress(run), *_last_values(run)]


def _evaluated(run: RunData) -> Iterator[Tile]:
    for split, label in SPLITS:
        for decoding in ("sampled", "greedy"):
            points = run.series(f"eval/{split}/{decoding}")
            if points:
                yield change_tile(f"{label}, {decoding}", [value for _, value in points])


def _trained(run: RunData) -> Iterator[Tile]:
    values = [value for _, value in run.series("train/success")]
    if len(values) > 1:
        window = min(5, len(values) // 2)
        yield change_tile("success in training", [fmean(values[:window]), fmean(values[-window:])])


def _progress(run: RunData) -> Iterator[Tile]:
    if run.metrics:
        done, planned = run.metrics[-1]["step"], run.setting("run.steps")
        if isinstance(planned, int) and planned:
            yield Tile("steps", f"{done:,} / {planned:,}", "finished" if done >= planned else "so far")
        else:
            yield Tile("steps", f"{done:,}", "")
    durations = [value for _, value in run.series("time/step")]
    if durations:
        yield Tile("time of all steps", duration(sum(durations)), f"{fmean(durations):.3g}s per step")


def _last_values(run: RunData) -> Iterator[Tile]:
    for name, label, about in LAST_VALUES:
        points = run.series(name)
        if points:
            yield Tile(label, number(points[-1][1]), about)


def change_tile(label: str, rates: Sequence[float]) -> Tile:
    """The last rate, and how far it is from the first."""
    first, last = rates[0], rates[-1]
    if len(rates) < 2:
        return Tile(label, f"{first:.1%}", "at the first evaluation")
    return Tile(label, f"{last:.1%}", f"from {first:.1%}", change=100 * (last - first))


def number(value: float) -> str:
    """Short: 0.25, 1,200, 3e-05."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
