"""How slow the slowest episodes of a batch were, and when their turns took place."""

from __future__ import annotations

import pytest

from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.service.batch import Batch, without_texts
from megatron_empg.rollout.service.collect import Collection
from megatron_empg.rollout.service.timeline import tail_metrics, timeline_of
from megatron_empg.run.metric_names import by_clock, find
from megatron_empg.run.timeline import EpisodeTimes, Span, TurnTimes
from tests.support.episodes import BEGAN, timed_episode


def test_the_slowest_come_first_in_seconds_of_the_batch() -> None:
    played = [timed_episode("short", 2.0), timed_episode("long", 8.0), timed_episode("middle", 4.0)]
    made = timeline_of(played, Span(BEGAN, BEGAN + 10), 2)
    assert (made.step, made.played, made.seconds, made.median) == (0, 3, 10.0, 4.0)
    assert [each.task_id for each in made.slowest] == ["long", "middle"]
    assert made.slowest[0] == EpisodeTimes(
        "long",
        "success",
        "http://engine:1",
        Span(1.0, 9.0),
        Span(1.0, 2.0),
        [TurnTimes(Span(3.0, 7.0), Span(7.0, 8.0))],
    )


def test_failures_are_shown_and_are_no_measure() -> None:
    played = [
        timed_episode("slow", 90.0, "error"),
        timed_episode("a", 2.0),
        timed_episode("b", 4.0),
        timed_episode("c", 5.0),
    ]
    assert timeline_of(played, Span(BEGAN, BEGAN + 99), 1).slowest[0].task_id == "slow"
    metrics = tail_metrics(played)
    assert metrics == {
        "rollout/tail_ratio": 1.25,
        "rollout/episode_seconds_median": 4.0,
        "rollout/episode_seconds_max": 5.0,
        "rollout/environment_share": pytest.approx(0.25),
    }
    assert [name for name in metrics if find(name) is None or not by_clock(name)] == []


def test_an_episode_that_never_began_has_no_times() -> None:
    never = Episode("never", 0, 0, error="RoundTimeout: not begun")
    assert timeline_of([never], Span(BEGAN, BEGAN + 1), 4).slowest == []
    assert tail_metrics([never]) == {}
    assert tail_metrics([]) == {}


def test_times_travel_with_the_texts_and_reach_the_first_rank_alone() -> None:
    collection = Collection(4, lambda _: True, timed=3)
    collection.played = [timed_episode("long", 8.0), timed_episode("short", 2.0)]
    collection.whole = Span(BEGAN, BEGAN + 10)
    batch = collection.batch()
    assert batch.timeline is not None
    assert [each.task_id for each in batch.timeline.slowest] == ["long", "short"]
    data = batch.to_bytes()
    assert Batch.from_bytes(data).timeline == batch.timeline
    assert Batch.from_bytes(bytes(without_texts(data))).timeline is None
    assert batch.metrics["rollout/tail_ratio"] == pytest.approx(1.6)


def test_two_plays_of_the_same_tokens_are_equal_however_long_they_took() -> None:
    assert timed_episode("a", 2.0) == timed_episode("a", 3.0)
