"""Attempts share their time."""

import pytest

from megatron_empg.common.attempts import ATTEMPTS, all_failed, attempts


class Clock:
    """Stands still unless a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_attempts_that_use_all_their_time_end_within_the_whole() -> None:
    number, clock = 0, Clock()
    for attempt in attempts(6.0, 60.0, clock):
        number += 1
        clock.now += attempt.seconds + attempt.pause
    assert number == ATTEMPTS
    assert clock.now == pytest.approx(106.0)


def test_no_attempt_is_longer_than_it_may_be() -> None:
    assert [attempt.seconds for attempt in attempts(60.0, 5.0, Clock())] == [5.0] * ATTEMPTS


def test_pauses_grow_and_the_last_attempt_has_none() -> None:
    assert [attempt.pause for attempt in attempts(10.0, 1.0, Clock())] == [0.5, 1.0, 0.0]
    assert [attempt.pause for attempt in attempts(1000.0, 1.0, Clock())] == [1.0, 2.0, 0.0]


def test_when_the_time_is_over_there_are_no_more() -> None:
    number, clock = 0, Clock()
    for _ in attempts(6.0, 60.0, clock):
        number += 1
        clock.now += 6.0
    assert number == 1


def test_attempts_are_numbered() -> None:
    assert [attempt.number for attempt in attempts(6.0, 1.0, Clock())] == [1, 2, 3]


def test_there_is_one_attempt_at_least() -> None:
    clock = Clock()

    def jumping() -> float:
        clock.now += 10.0
        return clock.now

    assert len(list(attempts(6.0, 1.0, jumping))) == 1


def test_what_is_said_at_the_end_counts_those_that_were_made() -> None:
    assert all_failed(3, "status 503") == "3 attempts failed, the last one: status 503"
    assert all_failed(1, "status 503") == "the only attempt that there was time for failed: status 503"
