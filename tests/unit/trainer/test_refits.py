"""What the trainer does when the service names engines in the place of an answer."""

from typing import Any

import pytest

from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.stale_engines import StaleEngines
from megatron_empg.trainer.loop import Training
from megatron_empg.trainer.phases import Phases

STALE = StaleEngines(("http://b",))


class Service:
    """Gives these answers one after the other, whatever it is asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), 0

    def rollout(self, step: int) -> Any:
        self.asked += 1
        return self.answers.pop(0)

    def probe(self) -> Any:
        return self.rollout(0)

    def evaluate(self, split: str, greedy: bool) -> Any:
        return self.rollout(0)


class Publisher:
    """Notes what was sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, tuple[str, ...]]] = []

    def refit(self, source: Any, version: int, engines: Any) -> None:
        self.sent.append((version, tuple(engines)))


class Heart:
    def __init__(self) -> None:
        self.phases: list[str] = []

    def enter(self, phase: str) -> None:
        self.phases.append(phase)


class Actor:
    def weights(self) -> str:
        return "weights"


def training(service: Service, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[bool]]:
    """Rank 0, and what it told the other ranks."""
    agreed: list[bool] = []

    def agree(_: Any, flag: bool) -> bool:
        agreed.append(flag)
        return flag

    monkeypatch.setattr(Training, "_agree", agree)
    made: Any = object.__new__(Training)
    made.driver, made.publisher, made.actor, made.version = service, publisher, Actor(), 7
    made.heart = Heart()
    made.phases = Phases(made.heart)
    return made, agreed


def test_engines_that_are_named_get_the_newest_weights_and_the_service_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, publisher = Service(STALE, STALE, b"batch"), Publisher()
    made, agreed = training(service, publisher, monkeypatch)
    assert made._asked(lambda driver: driver.rollout(7), "rollout") == b"batch"
    assert publisher.sent == [(7, ("http://b",))] * 2
    assert made.heart.phases == ["sync", "rollout"] * 2
    assert agreed == [True, True] * 2 + [False], "named, and some of them; at last an answer"


def test_a_service_that_was_started_again_is_asked_again_and_nobody_is_refitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, publisher = Service(StaleEngines(()), 8), Publisher()
    made, agreed = training(service, publisher, monkeypatch)
    made._probe()
    assert (service.asked, publisher.sent) == (2, [])
    assert agreed == [True, False, False]


def test_a_service_is_asked_again_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Evaluation("dev", False, success=0.5, questions=2, errors=0, seconds=1.0)
    service, publisher = Service(STALE, STALE, measured), Publisher()
    made, _ = training(service, publisher, monkeypatch)
    assert made._asked(lambda driver: driver.evaluate("dev", False), "evaluate") is measured
    assert publisher.sent == [(7, ("http://b",))] * 2
