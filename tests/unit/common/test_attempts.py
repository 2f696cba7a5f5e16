"""Attempts share their time."""

from types import SimpleNamespace

import pytest

from megatron_empg.common import attempts as module
from megatron_empg.common.attempts import ATTEMPTS, attempts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless a test moves it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_attempts_that_use_all_their_time_end_within_the_whole(clock: SimpleNamespace) -> None:
    number = 0
    for attempt in attempts(within=6.0, longest=60.0):
        number += 1
        clock.now += attempt.seconds + attempt.pause
    assert number == ATTEMPTS
    assert clock.now == pytest.approx(106.0)


def test_no_attempt_is_longer_than_it_may_be(clock: SimpleNamespace) -> None:
    assert [attempt.seconds for attempt in attempts(within=60.0, longest=5.0)] == [5.0] * ATTEMPTS


def test_pauses_grow_and_the_last_attempt_has_none(clock: SimpleNamespace) -> None:
    assert [attempt.pause for attempt in attempts(within=10.0, longest=1.0)] == [0.5, 1.0, 0.0]
    assert [attempt.pause for attempt in attempts(within=1000.0, longest=1.0)] == [1.0, 2.0, 0.0]


def test_when_the_time_is_over_there_are_no_more(clock: SimpleNamespace) -> None:
    number = 0
    for _ in attempts(within=6.0, longest=60.0):
        number += 1
        clock.now += 6.0
    assert number == 1
