"""A run as its folder shows it at a moment: how far it is, what it does, whether it lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from megatron_empg.common.jsonl import LARGEST_STEP, number, step_of
from megatron_empg.run.folder import NotARunError, RunFolder
from megatron_empg.run.heartbeat import Beat, read_beats
from megatron_empg.run.names import WHOLE_NUMBER
from megatron_empg.run.watch.file_times import changed_at
from megatron_empg.run.watch.growing_file import GrowingLines
from megatron_empg.run.watch.log_warnings import LogLine, last_warnings, newest_change

ALIVE = 30.0
"""Seconds that a heartbeat may be old; a rank writes one every two. Clocks of machines may differ by some."""
STARTING = 120.0
"""Seconds that the logs may be silent before the first heartbeat; a start's limit, where the recipe has one, is
another measure."""
RECENT = 20
"""Steps whose mean time tells how long the others will take."""
WARNINGS = 5
ADDED_TIME = ("time/step", "time/evaluate", "time/checkpoint")


class RunState(Enum):
    """What a run is at."""

    NOT_BEGUN = "has not begun"
    STARTING = "starting"
    RUNNING = "running"
    SILENT = "no sign of life"
    STOPPED = "not running"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunView:
    """What is to be shown. `age`: seconds since the last sign of life; None where there never was one."""

    name: str
    recipe: Mapping[str, Any]
    state: RunState
    age: float | None
    records: Sequence[Mapping[str, Any]]
    """Of metrics.jsonl, steps rising."""
    beats: Sequence[Beat]
    starts: Sequence[int]
    """The checkpoint that each start went on from."""
    checkpoint: int
    """The newest; 0 without one."""
    stopping: bool
    """Whether the file STOP asks it to end."""
    warnings: Sequence[LogLine] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Steps that are logged."""
        if not self.records:
            return 0
        return int(self.records[-1]["step"])

    @property
    def steps(self) -> int | None:
        """That the recipe wants; None where it cannot be read."""
        wanted = self.setting("run.steps")
        if type(wanted) is not int or not 1 <= wanted <= LARGEST_STEP:
            return None
        return wanted

    @property
    def supervised(self) -> bool:
        return isinstance(self.recipe.get("sft"), Mapping)

    def setting(self, dotted: str) -> Any:
        """A key of the recipe; None where there is none."""
        return setting(self.recipe, dotted)

    def series(self, name: str) -> list[float]:
        """A metric wherever it was measured."""
        values = [number(record.get(name)) for record in self.records]
        return [value for value in values if value is not None]

    def last(self, name: str) -> float | None:
        """A metric of the last training step that has it at all."""
        for record in reversed(self.records):
            value = number(record.get(name))
            if value is not None:
                return value
        return None

    def now(self, name: str) -> float | None:
        """A metric of the last step, if it was measured there."""
        if not self.records:
            return None
        return number(self.records[-1].get(name))

    @property
    def seconds_left(self) -> float | None:
        """Seconds left, by the last steps with their evaluations and checkpoints; None before the first step."""
        timed = [record for record in self.records if number(record.get("time/step")) is not None][-RECENT:]
        if not timed or self.steps is None or self.done >= self.steps:
            return None
        taken = 0.0
        for record in timed:
            for name in ADDED_TIME:
                taken += number(record.get(name)) or 0.0
        return taken / len(timed) * (self.steps - self.done)


class WatchedRun:
    """A run folder that is looked at again and again. `clock`: seconds since 1970."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises NotARunError for a folder that no run has been in."""
        self.folder = RunFolder(root)
        self._clock = clock
        self._metrics = GrowingLines(self.folder.metrics)
        signs = (self.folder.recipe, self.folder.metrics, self.folder.starts, self.folder.lock_file)
        if not any(path.exists() for path in signs):
            what = "is not a folder: a run has in it one of"
            if root.is_dir():
                what = "is not a run folder: it has none of"
            names = ", ".join(path.name for path in signs)
            raise NotARunError(f"{root} {what} {names}. Give the `run.folder` of a recipe")

    def look(self) -> RunView:
        """The run now."""
        folder = self.folder
        records = _rising(self._metrics.look())
        begun = changed_at(folder.starts)
        beats = read_beats(folder.root, since=begun)
        recipe = _recipe(folder.recipe)
        state, age = self._state(recipe, records, beats, begun)
        return RunView(
            name=folder.root.resolve().name,
            recipe=recipe,
            state=state,
            age=age,
            records=records,
            beats=beats,
            starts=_starts(folder.starts),
            checkpoint=folder.last_checkpoint(),
            stopping=folder.stop.exists(),
            warnings=last_warnings(folder.logs, WARNINGS),
        )

    def _state(
        self, recipe: Mapping[str, Any], records: Sequence[Any], beats: Sequence[Beat], begun: float
    ) -> tuple[RunState, float | None]:
        """`begun`: when the newest start was; heartbeats from before are of ranks that were killed."""
        folder = self.folder
        heard = max(map(changed_at, folder.all_heartbeats()), default=0.0)
        if heard < begun:
            heard = 0.0
        logged = newest_change(folder.logs)
        newest = max(heard, logged, changed_at(folder.metrics))
        age = None
        if newest:
            age = max(0.0, self._clock() - newest)
        steps = setting(recipe, "run.steps")
        if isinstance(steps, int) and folder.finished(steps) and not beats:
            return RunState.FINISHED, age
        if heard and self._clock() - heard <= ALIVE:
            return RunState.RUNNING, age
        if heard:
            return RunState.SILENT, age
        if logged and (self._clock() - logged <= STARTING or self._still_starts(recipe, begun)):
            return RunState.STARTING, age
        if records or logged:
            return RunState.STOPPED, age
        return RunState.NOT_BEGUN, age

    def _still_starts(self, recipe: Mapping[str, Any], begun: float) -> bool:
        """Whether the newest start has had no rank yet and is younger than an engine's start may take, in which
        nothing need be logged.

        A rank makes its heartbeat's file in a folder that a start takes away, and removes it when it ends.
        """
        limit = number(setting(recipe, "engines.start_timeout"))
        if limit is None or changed_at(self.folder.heartbeats) > begun:
            return False
        return self._clock() - begun <= limit


def setting(recipe: Mapping[str, Any], dotted: str) -> Any:
    """A key of a recipe; None where there is none."""
    node: Any = recipe
    for key in dotted.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(key)
    return node


def _rising(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if step_of(record) is not None]


def _recipe(path: Path) -> dict[str, Any]:
    import yaml

    try:
        # libyaml's loader where there is one: the pure one takes a tenth of a second for a whole recipe.
        loaded = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # ValueError: such as the 32nd of a month
        return {}
    if not isinstance(loaded, dict):
        return {}
    return loaded


def _starts(path: Path) -> list[int]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    checkpoints = []
    for line in lines:
        words = line.split()
        if len(words) == 2 and WHOLE_NUMBER.fullmatch(words[1]):
            checkpoints.append(int(words[1]))
    return checkpoints
