"""When the slowest episodes of a step generated, and when their environments worked: RUN/timeline.jsonl.

It has a line for each step. Nothing reads it but the report; a run goes on without it as with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_empg.common.jsonl import append_line, number, read_lines
from megatron_empg.run.names import RunPaths

_log = logging.getLogger(__name__)
DIGITS = 3
"""Of seconds, behind the point."""


@dataclass(frozen=True)
class Span:
    """A stretch of time, in seconds of one clock."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def after(self, zero: float) -> Span:
        """The same stretch by a clock that began at `zero`."""
        return Span(self.start - zero, self.end - zero)

    def to_json(self) -> list[float]:
        return [round(self.start, DIGITS), round(self.end, DIGITS)]

    @classmethod
    def from_json(cls, given: Any) -> Span:
        """Raises TypeError or ValueError for anything but two numbers."""
        start, end = given
        return cls(_measured(start), _measured(end))


@dataclass(frozen=True)
class TurnTimes:
    """One turn: when the engine sampled it, and when the environment acted on it; None where it did not."""

    generation: Span
    environment: Span | None = None

    def to_json(self) -> list[list[float] | None]:
        return [self.generation.to_json(), None if self.environment is None else self.environment.to_json()]

    @classmethod
    def from_json(cls, given: Any) -> TurnTimes:
        generation, environment = given
        acted = None
        if environment is not None:
            acted = Span.from_json(environment)
        return cls(Span.from_json(generation), acted)


@dataclass(frozen=True)
class EpisodeTimes:
    """One episode as it passed, in seconds since its step's batch began."""

    task_id: str
    outcome: str
    engine: str
    """The URL of the one that played it."""
    whole: Span
    opening: Span | None
    """When the environment was reset; None where it did not come so far."""
    turns: list[TurnTimes]

    def to_json(self) -> dict[str, Any]:
        opening = None
        if self.opening is not None:
            opening = self.opening.to_json()
        return {
            "task_id": self.task_id,
            "outcome": self.outcome,
            "engine": self.engine,
            "whole": self.whole.to_json(),
            "opening": opening,
            "turns": [turn.to_json() for turn in self.turns],
        }

    @classmethod
    def from_json(cls, given: Any) -> EpisodeTimes:
        task_id, outcome, engine = str(given["task_id"]), str(given["outcome"]), str(given["engine"])
        whole, opening = Span.from_json(given["whole"]), None
        if given["opening"] is not None:
            opening = Span.from_json(given["opening"])
        turns = [TurnTimes.from_json(turn) for turn in given["turns"]]
        return cls(task_id, outcome, engine, whole, opening, turns)


@dataclass(frozen=True)
class StepTimeline:
    """The slowest episodes of a step, and what they are compared with."""

    step: int
    played: int
    """Episodes of the whole batch, dropped ones and failures included."""
    seconds: float
    """That the batch was played."""
    median: float
    """Seconds of the median usable episode; 0 where there was none."""
    slowest: list[EpisodeTimes]
    """Slowest first."""

    def of_step(self, step: int) -> StepTimeline:
        """The same, with its number in the run."""
        return replace(self, step=step)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "played": self.played,
            "seconds": round(self.seconds, DIGITS),
            "median": round(self.median, DIGITS),
            "slowest": [episode.to_json() for episode in self.slowest],
        }

    @classmethod
    def from_json(cls, given: Any) -> StepTimeline:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            return cls(
                int(given["step"]),
                int(given["played"]),
                _measured(given["seconds"]),
                _measured(given["median"]),
                [EpisodeTimes.from_json(episode) for episode in given["slowest"]],
            )
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this is not a timeline of a step: {type(error).__name__}: {error}") from error


def _measured(given: Any) -> float:
    value = number(given)
    if value is None:
        raise ValueError(f"{given!r:.40} is not a finite number")
    return value


def write_timeline(paths: RunPaths, timeline: StepTimeline) -> None:
    """Add a step's line; nothing for a step without episodes. A fault of the disk is a warning."""
    if not timeline.slowest:
        return
    try:
        append_line(paths.timeline, timeline.to_json())
    except OSError as error:
        _log.warning("step %d: its timeline could not be written to %s: %s", timeline.step, paths.timeline, error)


def read_timelines(paths: RunPaths) -> Sequence[StepTimeline]:
    """Timelines of all steps, in order; lines that are torn or of another form are left out."""
    found: dict[int, StepTimeline] = {}
    for line in read_lines(paths.timeline):
        try:
            timeline = StepTimeline.from_json(line)
        except ValueError:
            continue
        found[timeline.step] = timeline
    return [found[step] for step in sorted(found)]
