"""Everything the report shows, read from a run folder; whatever is missing there is missing here."""

import json
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.jsonl import number
from megatron_empg.report.points import Points
from megatron_empg.run.episode_log import episode_files, read_episodes, read_steps
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import read_metrics
from megatron_empg.run.timeline import StepTimeline, read_timelines


@dataclass(frozen=True)
class RunData:
    """A run as logged so far."""

    name: str
    recipe: dict[str, Any]
    recipe_text: str
    starts: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    steps: list[dict[str, list[float | None]]]
    first_episodes: list[dict[str, Any]]
    last_episodes: list[dict[str, Any]]
    timeline: StepTimeline | None = None
    """Of the step that was asked for, or of the last one that has one."""

    def series(self, name: str) -> Points:
        """(step, value) wherever a metric was measured and is a finite number."""
        points = []
        for line in self.metrics:
            value = number(line.get(name))
            if value is not None:
                points.append((line["step"], value))
        return points

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A key of the resolved recipe."""
        node: Any = self.recipe
        for key in dotted.split("."):
            if not isinstance(node, dict) or key not in node:
                return default
            node = node[key]
        return node


def part(run: RunData, name: str) -> dict[str, Any]:
    """The keys of the algorithm's part of that name (modulation, regularizer, correction) with its own ``name``,
    which is empty where the recipe does not say. Earlier recipes gave the name alone and the keys beside it."""
    given = run.setting(f"algorithm.{name}")
    if isinstance(given, dict):
        return {"name": "", **given}
    found = {"name": given or ""}
    beside = run.setting(f"algorithm.{given}")
    if isinstance(beside, dict):
        found |= beside
    return found


class NoTimelineError(EmpgError, ValueError):
    """A step whose timeline was asked for has none."""

    exit_code = 2


def read_run(folder: RunFolder, timeline_step: int | None = None) -> RunData:
    """Read what there is. Raises FileNotFoundError when the folder itself is not there, and NoTimelineError where
    a step's timeline is asked for that was not recorded."""
    if not folder.root.is_dir():
        raise FileNotFoundError(f"no run folder at {folder.root}")
    text = ""
    if folder.recipe.exists():
        text = folder.recipe.read_text(encoding="utf-8", errors="replace")
    files = episode_files(folder)
    first, last = files[:-1][:1], files[-1:]
    return RunData(
        name=folder.root.resolve().name,
        recipe=_mapping(text),
        recipe_text=text,
        starts=_starts(folder),
        metrics=_metrics(folder),
        steps=read_steps(folder),
        first_episodes=_episodes(first),
        last_episodes=_episodes(last),
        timeline=_timeline(folder, timeline_step),
    )


def _episodes(files: list[Path]) -> list[dict[str, Any]]:
    """Of one file, or of none."""
    return [episode for file in files for episode in read_episodes(file)]


def _metrics(folder: RunFolder) -> list[dict[str, Any]]:
    lines = read_metrics(folder)
    return sorted(lines, key=itemgetter("step"))


def _timeline(folder: RunFolder, step: int | None) -> StepTimeline | None:
    recorded = {timeline.step: timeline for timeline in read_timelines(folder)}
    if step is None:
        return recorded[max(recorded)] if recorded else None
    if step not in recorded:
        steps = f"steps {min(recorded)} to {max(recorded)} have one" if recorded else "no step has one"
        raise NoTimelineError(f"step {step} of {folder.root} has no timeline in {folder.timeline.name}: {steps}")
    return recorded[step]


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):  # ValueError: such as the 32nd of a month
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _starts(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        starts = json.loads(folder.versions.read_text(encoding="utf-8", errors="replace"))["starts"]
        return [_start(start) for start in starts if isinstance(start, dict)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def _start(written: dict[str, Any]) -> dict[str, Any]:
    """A start, its changed keys left out where they are not pairs of values."""
    changed = written.get("changed")
    if isinstance(changed, dict) and all(isinstance(pair, dict) for pair in changed.values()):
        return written
    return {**written, "changed": None}
