"""What a batch's clock says: how slow the slowest episodes were, and when their turns took place."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from megatron_empg.rollout.episode import Episode
from megatron_empg.run.timeline import EpisodeTimes, Span, StepTimeline, TurnTimes


def timeline_of(played: Sequence[Episode], whole: Span, count: int) -> StepTimeline:
    """The `count` slowest of the episodes that were played in `whole`. Its step is 0 until the trainer says it."""
    timed = [episode for episode in played if episode.whole is not None]
    timed.sort(key=_seconds, reverse=True)
    usual = usable_seconds(played)
    return StepTimeline(
        step=0,
        played=len(played),
        seconds=whole.seconds,
        median=median(usual or [0.0]),
        slowest=[_times(episode, whole.start) for episode in timed[:count]],
    )


def tail_metrics(played: Sequence[Episode]) -> dict[str, float]:
    """``rollout/…`` of how long the usable episodes took; none where none was timed."""
    seconds = usable_seconds(played)
    if not seconds or not sum(seconds):
        return {}
    usual, slowest = median(seconds), max(seconds)
    environments = sum(environment_seconds(episode) for episode in played)
    whole = sum(_seconds(episode) for episode in played)
    metrics = {
        "rollout/episode_seconds_median": usual,
        "rollout/episode_seconds_max": slowest,
        "rollout/environment_share": environments / whole,
    }
    if usual:
        metrics["rollout/tail_ratio"] = slowest / usual
    return metrics


def usable_seconds(played: Sequence[Episode]) -> list[float]:
    """How long each of them took that did not end in an error."""
    return [_seconds(episode) for episode in played if episode.outcome != "error" and episode.whole is not None]


def environment_seconds(episode: Episode) -> float:
    """Seconds of the episode that its environment took: its reset and its steps."""
    spans = [episode.opening, *(turn.environment for turn in episode.turns)]
    return sum(span.seconds for span in spans if span is not None)


def _seconds(episode: Episode) -> float:
    return 0.0 if episode.whole is None else episode.whole.seconds


def _times(episode: Episode, zero: float) -> EpisodeTimes:
    assert episode.whole is not None, "the timed ones alone are shown"
    turns = []
    for turn in episode.turns:
        if turn.generation is not None:
            turns.append(TurnTimes(turn.generation.after(zero), _after(turn.environment, zero)))
    whole, opening = episode.whole.after(zero), _after(episode.opening, zero)
    return EpisodeTimes(episode.task_id, episode.outcome, episode.engine, whole, opening, turns)


def _after(span: Span | None, zero: float) -> Span | None:
    return None if span is None else span.after(zero)
