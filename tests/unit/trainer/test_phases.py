"""What a rank is doing reaches the watchdog, and its seconds the metrics of the right step."""

from typing import Any

import pytest

from megatron_empg.trainer import phases as module
from megatron_empg.trainer.phases import Phases


class Told:
    """A heartbeat that remembers."""

    def __init__(self) -> None:
        self.step, self.entered = 0, list[str]()

    def enter(self, phase: str) -> None:
        self.entered.append(phase)


class Time:
    """A clock that goes on when told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def test_seconds_are_summed_by_phase_and_the_rest_is_other(clock: Time) -> None:
    heartbeat: Any = Told()
    phases = Phases(heartbeat)
    phases.begin(3)
    for phase, seconds in (("rollout", 4.0), ("score", 1.0), ("score", 2.0)):
        with phases.clock(phase):
            clock.now += seconds
    clock.now += 0.5
    assert phases.metrics(trained=15) == {
        "time/rollout": 4.0,
        "time/score": 3.0,
        "trainer/idle_share": pytest.approx(4.0 / 7.5),
        "tokens_per_second": 2.0,
        "time/other": 0.5,
        "time/step": 7.5,
    }
    assert heartbeat.step == 3
    assert heartbeat.entered == ["rollout", "score", "score"]


def test_a_checkpoint_counts_once_with_the_step_after_it_and_not_as_its_time(clock: Time) -> None:
    heartbeat: Any = Told()
    phases = Phases(heartbeat)
    with phases.checkpoint():
        clock.now += 5.0
    phases.begin(1)
    assert phases.metrics(trained=0) == {"time/checkpoint": 5.0, "time/other": 0.0, "time/step": 0.0}
    phases.begin(2)
    assert phases.metrics(trained=0) == {"time/other": 0.0, "time/step": 0.0}
    assert heartbeat.entered == ["checkpoint"]


def test_without_a_heartbeat_seconds_are_taken_all_the_same(clock: Time) -> None:
    phases = Phases(None)
    phases.enter("sync")
    phases.begin(1)
    with phases.clock("sync"):
        clock.now += 2.0
    assert phases.metrics(trained=0)["time/sync"] == 2.0
