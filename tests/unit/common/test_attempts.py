"""Attempts share their time."""

import pytest

from megatron_empg.common.attempts import SHARES, all_failed, attempts


class Clock:
    """Stands still unless a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(within: float, longest: float, takes: float | None = None) -> tuple[list[float], list[float], float]:
    """Seconds that each attempt may take and each pause after it, and when the last one is over; an attempt takes
    all its time, or so long."""
    clock, seconds, pauses = Clock(), [], []
    for attempt in attempts(within, longest, clock):
        assert attempt.number == len(seconds) + 1
        seconds.append(attempt.seconds)
        clock.now += attempt.seconds if takes is None else min(takes, attempt.seconds)
        pauses.append(attempt.pause())
        clock.now += pauses[-1]
    return seconds, pauses, clock.now - 100.0


def test_attempts_that_use_all_their_time_end_within_the_whole() -> None:
    seconds, _, took = made(6.0, 60.0)
    assert len(seconds) == SHARES
    assert took == pytest.approx(6.0)


def test_no_attempt_is_longer_than_it_may_be() -> None:
    seconds, _, _ = made(60.0, 5.0)
    assert max(seconds) == 5.0


def test_pauses_grow_to_a_longest_and_the_last_attempt_has_none() -> None:
    _, pauses, _ = made(1000.0, 1.0)
    assert pauses[:7] == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0]
    assert pauses[-1] == 0.0
    assert made(10.0, 1.0)[1][:2] == [0.5, 1.0]


@pytest.mark.parametrize("within", [6.0, 60.0, 600.0])
def test_a_server_that_refuses_at_once_is_asked_until_the_time_is_over(within: float) -> None:
    seconds, pauses, took = made(within, 20.0, takes=0.001)
    assert len(seconds) > SHARES
    assert within - max(pauses) - 0.1 <= took <= within


def test_when_the_time_is_over_there_are_no_more() -> None:
    clock = Clock()
    for _ in attempts(6.0, 60.0, clock):
        clock.now += 6.0
    assert clock.now == 106.0


def test_there_is_one_attempt_at_least() -> None:
    clock = Clock()

    def jumping() -> float:
        clock.now += 10.0
        return clock.now

    assert len(list(attempts(6.0, 1.0, jumping))) == 1


def test_what_is_said_at_the_end_counts_those_that_were_made() -> None:
    assert all_failed(3, "status 503") == "3 attempts failed, the last one: status 503"
    assert all_failed(1, "status 503") == "the only attempt that there was time for failed: status 503"
