"""The model of an engine against closed forms."""

import random
from dataclasses import replace

import pytest

from megatron_empg.planner.simulation.engine import EngineRates, SimulatedEngine, TurnRequest
from megatron_empg.planner.simulation.events import EventQueue

RATES = EngineRates(fixed_seconds=0.01, sequence_seconds=0.002, read_seconds=0.001, request_seconds=0.05)


def engine(
    clock: EventQueue, rates: EngineRates = RATES, slots: int = 8, cache: float = float("inf")
) -> SimulatedEngine:
    return SimulatedEngine(clock, rates, slots, cache, lambda change: None)


def finish_times(
    requests: list[tuple[float, int, int]], **settings: object
) -> tuple[list[float], SimulatedEngine]:
    """Seconds at which requests (arrival, read, own) are done, and the engine."""
    clock = EventQueue()
    made = engine(clock, **settings)  # type: ignore[arg-type]
    done = [0.0] * len(requests)

    def arrive(number: int, read: int, own: int) -> None:
        made.submit(TurnRequest(read, read, own, lambda: done.__setitem__(number, clock.now)))

    for number, (arrival, read, own) in enumerate(requests):
        clock.after(arrival, lambda number=number, read=read, own=own: arrive(number, read, own))  # type: ignore[misc]
    clock.run(until=lambda: False)
    return done, made


def test_one_request_takes_its_reading_and_a_pass_for_each_token() -> None:
    (done,), made = finish_times([(0.0, 100, 40)])
    assert done == pytest.approx(0.05 + 100 * 0.001 + 40 * 0.012)
    assert made.busy_seconds == pytest.approx(done)
    assert made.running == 0


def test_a_pass_is_bound_by_memory_or_by_arithmetic() -> None:
    rates = EngineRates(weights_seconds=1.0, context_seconds=0.01, sequence_seconds=0.5, fixed_seconds=0.25)
    assert rates.pass_seconds(1, 0) == pytest.approx(1.25)
    assert rates.pass_seconds(1, 100) == pytest.approx(2.25)
    assert rates.pass_seconds(8, 100) == pytest.approx(4.25)


def summed(rates: EngineRates, sequences: int, context: float, passes: int) -> float:
    """Pass by pass, each of which finds one token more of each sequence."""
    return sum(rates.pass_seconds(sequences, context + sequences * number) for number in range(passes))


MEMORY = EngineRates(weights_seconds=0.004, context_seconds=5e-7, fixed_seconds=0.001)
BOTH = EngineRates(weights_seconds=0.004, context_seconds=5e-7, sequence_seconds=0.0004, fixed_seconds=0.001)


def test_context_grows_by_each_token_that_is_sampled() -> None:
    done, made = finish_times([(0.0, 300, 512)] * 32, rates=MEMORY)
    assert done[:8] == [pytest.approx(summed(MEMORY, 8, 8 * 300, 512))] * 8, "slots are 8"
    assert done[-1] == pytest.approx(4 * done[0])
    assert made.busy_seconds == pytest.approx(done[-1])


def test_context_that_grew_is_kept_while_prompts_are_read_and_sequences_end() -> None:
    rates = replace(MEMORY, read_seconds=0.001)
    done, _ = finish_times([(0.0, 0, 400), (0.0, 0, 1000), (1.0, 200, 300)], rates=rates)
    # The third is read for 0.2 s in the middle; so many passes of the first two are over by then.
    before = rates.passes_within(2, 0, 1.0)
    left = 400 - before
    first = 1.2 + rates.passes_seconds(3, 2 * before + 200, left)
    assert done[0] == pytest.approx(first)
    third = first + rates.passes_seconds(2, 400 + 200 + left, 300 - left)
    assert done[2] == pytest.approx(third)
    assert done[1] == pytest.approx(third + rates.passes_seconds(1, 400 + 300 - left, 600 - 300 + left))


@pytest.mark.parametrize(("rates", "sequences", "context"), [(MEMORY, 3, 900), (BOTH, 32, 3000), (BOTH, 200, 9e4)])
def test_many_passes_take_as_long_as_one_after_another(rates: EngineRates, sequences: int, context: float) -> None:
    """Where arithmetic gives way to memory on the way, within a pass's growth."""
    for passes in (1, 7, 500):
        seconds = rates.passes_seconds(sequences, context, passes)
        assert seconds == pytest.approx(summed(rates, sequences, context, passes), rel=1e-4)
        assert rates.passes_within(sequences, context, seconds) == pytest.approx(passes)
        # In two parts, in the middle of a pass, it is the same.
        part = passes * 0.37
        first = rates.passes_seconds(sequences, context, part)
        second = rates.passes_seconds(sequences, context + sequences * part, passes - part)
        assert first + second == pytest.approx(seconds)


def test_requests_that_come_together_share_passes() -> None:
    rates = EngineRates(fixed_seconds=0.01, sequence_seconds=0.002)
    done, _ = finish_times([(0.0, 1, 10), (0.0, 1, 30)], rates=rates)
    assert done[0] == pytest.approx(10 * 0.014)
    assert done[1] == pytest.approx(10 * 0.014 + 20 * 0.012)


def test_reading_holds_up_decoding() -> None:
    rates = EngineRates(fixed_seconds=0.01, read_seconds=0.001)
    done, _ = finish_times([(0.0, 0, 100), (0.5, 200, 1)], rates=rates)
    assert done[1] == pytest.approx(0.5 + 0.2 + 0.01)
    assert done[0] == pytest.approx(1.0 + 0.2)


def test_what_has_no_slot_waits_for_one() -> None:
    rates = EngineRates(fixed_seconds=0.01)
    done, _ = finish_times([(0.0, 0, 10), (0.0, 0, 20), (0.0, 0, 10)], rates=rates, slots=2)
    assert done == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.2)]


def test_what_has_no_room_in_the_cache_waits_and_what_is_larger_than_it_runs_alone() -> None:
    rates = EngineRates(fixed_seconds=0.01)
    done, _ = finish_times([(0.0, 40, 10), (0.0, 60, 10), (0.0, 500, 10)], rates=rates, cache=100)
    assert done == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)]


def test_one_slot_with_random_arrivals_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/D/1: the mean wait is load·service / (2·(1 - load))."""
    service, load, count = 1.0, 0.7, 40_000
    numbers, now, arrivals = random.Random(1), 0.0, []
    for _ in range(count):
        now += numbers.expovariate(load / service)
        arrivals.append((now, 0, 1))
    done, made = finish_times(arrivals, rates=EngineRates(fixed_seconds=service), slots=1)
    waits = [end - arrival - service for end, (arrival, _, _) in zip(done, arrivals, strict=True)]
    assert sum(waits) / count == pytest.approx(load * service / (2 * (1 - load)), rel=0.06)
    assert made.busy_seconds == pytest.approx(count * service)


def test_a_pause_stands_still_and_what_runs_is_read_again() -> None:
    clock = EventQueue()
    made = engine(clock, EngineRates(fixed_seconds=0.01, read_seconds=0.001))
    done: list[float] = []
    made.submit(TurnRequest(300, 300, 100, lambda: done.append(clock.now)))
    clock.after(0.3 + 0.5, made.pause)  # after 50 tokens
    clock.after(0.3 + 0.5 + 7.0, made.resume)
    clock.run(until=lambda: False)
    assert done == [pytest.approx(0.3 + 0.5 + 7.0 + 0.350 + 0.5)]
    assert made.weights == 1
    assert made.busy_seconds == pytest.approx(done[0] - 7.0)


def test_a_cleared_cache_makes_waiting_and_half_read_requests_read_everything() -> None:
    clock = EventQueue()
    made = engine(clock, EngineRates(fixed_seconds=0.01, read_seconds=0.001), slots=1)
    done: list[float] = []
    for _ in range(2):
        made.submit(TurnRequest(1000, 100, 10, lambda: done.append(clock.now)))
    clock.after(0.05, made.pause)
    clock.after(1.0, made.resume)
    clock.run(until=lambda: False)
    assert done == [pytest.approx(1.0 + 1.1), pytest.approx(1.0 + 1.1 + 1.1)]


def test_a_request_can_be_given_up_wherever_it_is() -> None:
    clock = EventQueue()
    made = engine(clock, EngineRates(fixed_seconds=0.01, read_seconds=0.001), slots=2)
    done: list[str] = []
    decoding, waiting = (TurnRequest(0, 0, own, lambda: done.append("given up")) for own in (100, 100))
    reading = TurnRequest(500, 500, 10, lambda: done.append("given up"))
    last = TurnRequest(0, 0, 10, lambda: done.append(f"{clock.now:.2f}"))
    for request in (decoding, reading, waiting, last):
        made.submit(request)
    clock.after(0.25, lambda: made.cancel(reading))
    clock.after(0.25, lambda: made.cancel(decoding))
    clock.after(0.25, lambda: made.cancel(waiting))
    clock.run(until=lambda: False)
    assert done == ["0.35"]
    assert made.running == 0
    made.cancel(last)
    assert made.running == 0, "what is done has left already"
