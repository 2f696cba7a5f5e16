"""The clock of a simulation."""

import pytest

from megatron_empg.planner.simulation.events import EventQueue


def test_calls_come_in_the_order_of_time_and_equal_times_in_the_order_asked() -> None:
    clock, seen = EventQueue(), []
    for seconds, name in ((2.0, "late"), (1.0, "first"), (1.0, "second"), (0.0, "now")):
        clock.after(seconds, lambda name=name: seen.append((clock.now, name)))  # type: ignore[misc]
    clock.run(until=lambda: False)
    assert seen == [(0.0, "now"), (1.0, "first"), (1.0, "second"), (2.0, "late")]


def test_it_stops_after_the_event_that_it_was_told_to_stop_at() -> None:
    clock, seen = EventQueue(), []
    for seconds in (1.0, 2.0, 3.0):
        clock.after(seconds, lambda: seen.append(clock.now))
    clock.run(until=lambda: len(seen) == 2)
    assert clock.now == 2.0
    clock.run(until=lambda: False)
    assert seen == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_the_past_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        EventQueue().after(seconds, lambda: None)
