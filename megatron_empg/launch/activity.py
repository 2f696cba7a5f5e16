"""What a run does at this moment, in lines: each thing once until a step is logged, later only what is slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_empg.launch.parts import RunPart
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.heartbeat import Beat, read_beat
from megatron_empg.run.playing import FIRST_QUESTIONS, Playing, read_playing
from megatron_empg.run.progress import StepProgress, duration

SLOW_SECONDS = 30.0
"""What goes on for so long is named again, and then after twice as long each time."""
IN_STEP: Mapping[str, str] = {
    "rollout": "playing the episodes of step {step}",
    "score": "step {step}: scoring what was played",
    "update": "step {step}: updating the policy",
    "sync": "step {step}: sending the weights to the engines",
    "checkpoint": "writing a checkpoint after step {step}",
    "evaluate": "evaluating after step {step}",
    "export": "exporting the policy",
}
BEFORE_STEPS: Mapping[str, str] = {
    "start": "loading the policy into the trainer",
    "sync": "sending the policy to the engines",
    "rollout": "playing the first questions",
    "evaluate": "evaluating before the first step",
}


@dataclass(frozen=True)
class RunActivity:
    """One thing that the run does. `counted`: the episodes it plays, where they are known."""

    line: str
    phase: str
    counted: Playing | None = None

    def so_far(self, seconds: float) -> str:
        """What is said of it when it is slow.

        Example: "still evaluating: test_id, sampled, 60 questions (1 of 4): 34 of 60 are over after 30s"
        """
        counted = f": {self.counted.done} of {self.counted.total} are over" if self.counted else ""
        return f"still {self.line}{counted} after {duration(seconds)}"


def activity_of(beat: Beat, playing: Playing | None, passes: Sequence[str]) -> RunActivity:
    """What a run does, by the first rank's heartbeat and what the rollout service plays.

    `passes` are those of an evaluation.
    """
    texts = IN_STEP if beat.step else BEFORE_STEPS
    line = texts.get(beat.phase, beat.phase).format(step=beat.step)
    if playing is None:
        return RunActivity(line, beat.phase)
    if beat.phase == "rollout" and playing.what == FIRST_QUESTIONS:
        return RunActivity(f"playing {playing.total} first questions", beat.phase, playing)
    if beat.phase == "evaluate" and playing.what in passes:
        number = passes.index(playing.what) + 1
        named = f"evaluating: {playing.what}, {playing.total} questions ({number} of {len(passes)})"
        return RunActivity(named, beat.phase, playing)
    return RunActivity(line, beat.phase)


def is_pause_after(shown: RunActivity, activity: RunActivity) -> bool:
    """Whether what is shown was played and its phase goes on: no line is due until more is played."""
    return shown.counted is not None and activity.counted is None and activity.phase == shown.phase


class ActivityDisplay:
    """Says by `progress` what a run does; `look` is called again and again. `clock`: seconds, of any beginning."""

    def __init__(
        self,
        folder: RunFolder,
        progress: StepProgress,
        passes: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._progress, self._passes, self._clock = folder, progress, passes, clock
        self._serving = False
        self._starting = RunActivity("starting", "start")
        self._now: RunActivity | None = None
        self._since = 0.0
        self._named_again_after = SLOW_SECONDS
        self._longest: dict[str, float] = {}
        """Seconds by phase, since a step was logged."""

    def start(self, parts: Sequence[RunPart]) -> None:
        """These parts start now, for the first time or again."""
        self._serving = False
        self._starting = RunActivity(f"starting {', '.join(part.name for part in parts)}", "start")
        self._now = None
        self._longest.clear()

    def serve(self) -> None:
        """All that serve are healthy from now on."""
        self._serving = True

    def look(self, *, logged: bool) -> Beat | None:
        """Say what is new, or slow; returns the first rank's heartbeat. `logged`: whether a step was, since the
        start."""
        beat = read_beat(self._folder.heartbeat(0))
        if not self._serving or beat is None:
            self._show(self._starting, logged=logged)
        else:
            self._show(activity_of(beat, read_playing(self._folder.root), self._passes), logged=logged)
        return beat

    def _show(self, activity: RunActivity, *, logged: bool) -> None:
        if self._now is not None and is_pause_after(self._now, activity):
            activity = self._now
        if self._now is None or activity.line != self._now.line:
            self._change(activity, logged=logged)
        else:
            self._now = activity  # its count may be another
        counted = activity.counted
        self._progress.phase(activity.line, *((counted.done, counted.total) if counted else ()))
        seconds = self._clock() - self._since
        if seconds >= self._named_again_after:
            self._named_again_after = 2 * seconds
            self._progress.note_without_terminal(activity.so_far(seconds))

    def _change(self, activity: RunActivity, *, logged: bool) -> None:
        now = self._clock()
        if self._now is not None and logged:
            longest = self._longest.get(self._now.phase, 0.0)
            self._longest[self._now.phase] = max(longest, now - self._since)
        self._now, self._since = activity, now
        # A phase that always takes minutes is not slow.
        self._named_again_after = max(SLOW_SECONDS, 2 * self._longest.get(activity.phase, 0.0))
        if not logged:
            self._progress.note(activity.line)
