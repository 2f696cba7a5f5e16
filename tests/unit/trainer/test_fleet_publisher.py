"""New weights reach the engines that answer, whichever fail: who is joined, who is told, how often all is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from megatron_empg.trainer.fleet_publisher import (
    MOST_PASSES,
    FleetPublisher,
    NoEngineAnswers,
    Senses,
    SyncBrokeOff,
)
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.held_version import NEVER_TOLD

A, B, C = "http://a", "http://b", "http://c"


@dataclass
class Engines:
    """Processes at addresses. A group holds those that joined it; `deaf` ones fail whatever they are sent."""

    held: dict[str, str | None]
    """What each says of its weights; None of one that does not answer."""
    deaf: set[str] = field(default_factory=set)
    unjoinable: set[str] = field(default_factory=set)
    now: float = 0.0
    happens: dict[float, tuple[str, str | None]] = field(default_factory=dict)
    groups: list[Sequence[str]] = field(default_factory=list)
    open: int = 0
    gathered: int = 0
    told: list[tuple[tuple[str, ...], int]] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in [when for when in self.happens if when <= self.now]:
            url, held = self.happens.pop(when)
            self.held[url] = held

    def publisher(self, patience: float = 60.0) -> FleetPublisher:
        senses = Senses(lambda url: self.held[url], lambda: self.now, self.sleep)
        make = lambda urls: Group(self, tuple(urls))  # noqa: E731
        tell = lambda urls, version: self.told.append((tuple(urls), version))  # noqa: E731
        return FleetPublisher(list(self.held), make, tell, senses, patience)

    def __iter__(self) -> Iterator[None]:
        """A pass over the source."""
        self.gathered += 1
        return iter(())


@dataclass
class Group:
    engines: Engines
    urls: tuple[str, ...]
    processes: dict[str, str | None] = field(default_factory=dict)

    def connect(self, source: Any) -> None:
        self.engines.groups.append(self.urls)
        self.engines.open += 1
        assert self.engines.open == 1, "one group at a time: they meet at one port"
        failed = [url for url in self.urls if url in self.engines.unjoinable or self.engines.held[url] is None]
        if failed:
            raise WeightTransferError("connect", dict.fromkeys(failed, "gone"))

    def publish(self, source: Any, version: int) -> None:
        self.engines.gathered += 1
        failed = [url for url in self.urls if url in self.engines.deaf or self.engines.held[url] is None]
        if failed:
            raise WeightTransferError("transfer", dict.fromkeys(failed, "gone"))
        for url in self.urls:
            self.engines.held[url] = str(version)

    def close(self) -> None:
        self.engines.open -= 1


def fresh(*urls: str) -> Engines:
    return Engines(dict.fromkeys(urls, NEVER_TOLD))


def test_a_group_is_made_once_while_its_engines_live() -> None:
    engines = fresh(A, B)
    publisher = engines.publisher()
    for version in range(3):
        publisher.publish(engines, version)  # type: ignore[arg-type]
    assert engines.groups == [(A, B)]
    assert engines.told == [((A, B), version) for version in range(3)]
    assert engines.gathered == 3


def test_one_that_does_not_answer_is_left_out_and_joined_once_it_does() -> None:
    engines = fresh(A, B)
    publisher = engines.publisher()
    publisher.publish(engines, 0)  # type: ignore[arg-type]
    engines.held[B] = None
    publisher.publish(engines, 1)  # type: ignore[arg-type]
    engines.held[B] = NEVER_TOLD
    publisher.publish(engines, 2)  # type: ignore[arg-type]
    assert engines.groups == [(A, B), (A,), (A, B)]
    assert engines.told == [((A, B), 0), ((A,), 1), ((A, B), 2)]


def test_one_that_was_started_again_unseen_is_joined_anew() -> None:
    """Its new process knows nothing of the group."""
    engines = fresh(A, B)
    publisher = engines.publisher()
    publisher.publish(engines, 0)  # type: ignore[arg-type]
    engines.held[B] = NEVER_TOLD
    publisher.publish(engines, 1)  # type: ignore[arg-type]
    assert engines.groups == [(A, B), (A, B)]
    assert engines.gathered == 2


def test_one_that_fails_in_the_middle_costs_another_pass_by_all_ranks() -> None:
    engines = fresh(A, B)
    publisher = engines.publisher()
    publisher.publish(engines, 0)  # type: ignore[arg-type]
    engines.deaf = {B}
    with pytest.raises(SyncBrokeOff, match="http://b: gone"):
        publisher.publish(engines, 1)  # type: ignore[arg-type]
    engines.deaf, engines.held[B] = set(), None
    publisher.publish(engines, 1)  # type: ignore[arg-type]
    assert engines.told[1:] == [((A,), 1)]
    assert engines.gathered == 3


def test_one_that_answers_and_fails_again_and_again_is_left_out() -> None:
    engines = fresh(A, B)
    engines.deaf = {B}
    publisher = engines.publisher()
    for _ in range(2):
        with pytest.raises(SyncBrokeOff):
            publisher.publish(engines, 0)  # type: ignore[arg-type]
    publisher.publish(engines, 0)  # type: ignore[arg-type]
    assert engines.told == [((A,), 0)]
    engines.deaf = set()
    publisher.publish(engines, 1)  # type: ignore[arg-type]
    assert engines.told[-1] == ((A, B), 1), "with the next version it has another chance"


def test_where_all_fail_the_run_ends_by_the_last_failure() -> None:
    engines = fresh(A, B, C)
    publisher = engines.publisher()
    for number in range(MOST_PASSES):
        engines.deaf = {(A, B, C)[number % 3]}
        with pytest.raises(SyncBrokeOff if number < MOST_PASSES - 1 else WeightTransferError) as raised:
            publisher.publish(engines, 0)  # type: ignore[arg-type]
    assert raised.type is WeightTransferError
    assert engines.told == []
    assert engines.open == 0


def test_without_any_engine_it_waits_for_one_to_be_started_again() -> None:
    engines = fresh(A)
    publisher = engines.publisher()
    publisher.publish(engines, 0)  # type: ignore[arg-type]
    engines.held[A] = None
    engines.happens = {20.0: (A, NEVER_TOLD)}
    publisher.publish(engines, 1)  # type: ignore[arg-type]
    assert engines.told[-1] == ((A,), 1)
    assert 20 <= engines.now < 25


def test_it_waits_no_longer_than_it_may() -> None:
    engines = fresh(A)
    engines.held[A] = None
    with pytest.raises(NoEngineAnswers, match=r"no engine of http://a .* within 60 s") as raised:
        engines.publisher(60).publish(engines, 0)  # type: ignore[arg-type]
    assert raised.value.accident
    assert 60 <= engines.now < 65


def test_an_engine_that_cannot_be_joined_keeps_the_others_from_nothing() -> None:
    engines = fresh(A, B)
    engines.unjoinable = {B}
    engines.publisher().publish(engines, 0)  # type: ignore[arg-type]
    assert engines.told == [((A,), 0)]
    assert engines.gathered == 1


def test_engines_that_came_back_are_refitted_alone_and_the_others_are_not_sent_to() -> None:
    engines = fresh(A, B)
    publisher = engines.publisher()
    publisher.publish(engines, 4)  # type: ignore[arg-type]
    engines.held[B] = NEVER_TOLD
    publisher.refit(engines, 4, [B])  # type: ignore[arg-type]
    assert engines.groups == [(A, B), (B,)]
    assert engines.told == [((A, B), 4), ((B,), 4)]
    publisher.publish(engines, 5)  # type: ignore[arg-type]
    assert engines.groups[-1] == (A, B)


@pytest.mark.parametrize("fault", ["gone", "unjoinable", "deaf"])
def test_a_refit_that_fails_is_gathered_once_by_all_ranks_and_left_for_another_time(fault: str) -> None:
    engines = fresh(A, B)
    publisher = engines.publisher()
    publisher.publish(engines, 4)  # type: ignore[arg-type]
    engines.held[B] = None if fault == "gone" else NEVER_TOLD
    engines.deaf = {B} if fault == "deaf" else set()
    engines.unjoinable = {B} if fault == "unjoinable" else set()
    publisher.refit(engines, 4, [B])  # type: ignore[arg-type]
    assert engines.gathered == 2
    assert engines.told == [((A, B), 4)]
    assert engines.now == 0, "it does not wait, the others go on"


def test_an_address_that_was_not_given_can_be_refitted() -> None:
    engines = fresh(A)
    publisher = engines.publisher()
    publisher.publish(engines, 4)  # type: ignore[arg-type]
    engines.held[C] = NEVER_TOLD
    publisher.refit(engines, 4, [C])  # type: ignore[arg-type]
    publisher.publish(engines, 5)  # type: ignore[arg-type]
    assert engines.told == [((A,), 4), ((C,), 4), ((A, C), 5)]
