"""Weights go to the engines that answer: which they are is known to rank 0 alone, and all ranks do the same."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from megatron_empg.trainer.fleet_publisher import MOST_PASSES, EngineSenses, FleetPublisher, NoEngineAnswers
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.held_version import NEVER_TOLD
from megatron_empg.weights.sync.together import SingleProcess
from tests.support.thread_ranks import ThreadRanks, on_ranks

SOURCE: Any = None
BOTH = ("a", "b")


class Engines:
    """What engines say of their weights, None of a dead one; which passes to them fail, and a clock."""

    def __init__(self, *urls: str) -> None:
        self.held: dict[str, str | None] = dict.fromkeys(urls, NEVER_TOLD)
        self.faults: list[WeightTransferError] = []
        """Of the next passes, the first one first."""
        self.unjoinable: set[str] = set()
        self.takes: list[float] = []
        """Shares of their time that the next passes take."""
        self.given: list[float] = []
        """Seconds that passes were given."""
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None
        self.on_fault: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


class Group:
    """A rank's end of a group of engines; all ends do what rank 0's does, as `WeightPublisher`'s do."""

    def __init__(
        self, engines: Engines, rank: ThreadRanks | SingleProcess, urls: Sequence[str], log: list[str]
    ) -> None:
        self.engines, self.rank, self.urls, self.log = engines, rank, tuple(urls), log

    def connect(self, source: Any, seconds: float) -> None:
        self.log.append(f"connect {' '.join(self.urls)}")
        failed = self.engines.unjoinable & set(self.urls)
        if failed:
            raise failure(*failed)

    def publish(self, source: Any, version: int, seconds: float) -> None:
        self.log.append(f"send {version}")
        fault = None
        if self.rank.rank == 0:
            fault = self._fault(seconds)
        fault = self.rank.gathered(fault)[0]
        if fault is not None:
            raise fault
        if self.rank.rank == 0:
            self.engines.held.update(dict.fromkeys(self.urls, str(version)))

    def _fault(self, seconds: float) -> WeightTransferError | None:
        self.engines.given.append(seconds)
        if self.engines.takes:
            self.engines.now += seconds * self.engines.takes.pop(0)
        if self.engines.faults:
            fault = self.engines.faults.pop(0)
            self.engines.on_fault()
            return fault
        return None

    def close(self) -> None:
        self.log.append("close")


class Fleet:
    """A publisher with what it did and told."""

    def __init__(
        self, engines: Engines, ranks: ThreadRanks | None = None, *, patience: float = 10.0, limit: float = 10.0
    ) -> None:
        self.log: list[str] = []
        rank = ranks or SingleProcess()
        self.publisher = FleetPublisher(
            list(engines.held),
            make=lambda urls: Group(engines, rank, urls, self.log),
            tell=lambda urls, version: self.log.append(f"tell {' '.join(urls)}: {version}"),
            senses=EngineSenses(lambda url: engines.held[url], clock=lambda: engines.now, sleep=engines.sleep),
            patience=patience,
            limit=limit,
            ranks=rank,
        )

    def publish(self, version: int) -> list[str]:
        """What it did meanwhile."""
        before = len(self.log)
        self.publisher.publish(SOURCE, version)
        return self.log[before:]

    def refit(self, version: int, *urls: str) -> list[str]:
        before = len(self.log)
        self.publisher.refit(SOURCE, version, urls)
        return self.log[before:]


def failure(*urls: str, passing: bool = True) -> WeightTransferError:
    return WeightTransferError("transfer", dict.fromkeys(urls, "it is gone"), passing=passing)


def test_one_group_serves_as_long_as_the_same_engines_answer() -> None:
    fleet = Fleet(Engines(*BOTH))
    assert fleet.publish(1) == ["connect a b", "send 1", "tell a b: 1"]
    assert fleet.publish(2) == ["send 2", "tell a b: 2"]


def test_a_dead_engine_is_left_out_and_back_in_a_new_group_when_it_answers() -> None:
    engines = Engines(*BOTH)
    fleet = Fleet(engines)
    fleet.publish(1)
    engines.held["b"] = None
    assert fleet.publish(2) == ["close", "connect a", "send 2", "tell a: 2"]
    engines.held["b"] = NEVER_TOLD
    assert fleet.publish(3) == ["close", "connect a b", "send 3", "tell a b: 3"]


def test_an_engine_that_was_started_again_between_two_versions_gets_a_new_group() -> None:
    """It is at the same address, but its process knows nothing of the group."""
    engines = Engines(*BOTH)
    fleet = Fleet(engines)
    fleet.publish(1)
    engines.held["b"] = NEVER_TOLD
    assert fleet.publish(2) == ["close", "connect a b", "send 2", "tell a b: 2"]


def test_those_that_came_back_are_refitted_alone() -> None:
    engines = Engines(*BOTH)
    fleet = Fleet(engines)
    fleet.publish(1)
    engines.held["b"] = NEVER_TOLD
    assert fleet.refit(1, "b") == ["close", "connect b", "send 1", "tell b: 1"]
    assert fleet.publish(2) == ["close", "connect a b", "send 2", "tell a b: 2"]


def test_a_refit_of_engines_that_are_gone_or_fail_is_for_another_time() -> None:
    engines = Engines(*BOTH)
    fleet = Fleet(engines)
    fleet.publish(1)
    engines.held["b"] = None
    assert fleet.refit(1, "b") == []
    engines.held["b"] = NEVER_TOLD
    engines.faults = [failure("b")]
    assert fleet.refit(1, "b") == ["close", "connect b", "send 1", "close"]
    assert fleet.refit(1, "b") == ["connect b", "send 1", "tell b: 1"]


def test_an_engine_that_cannot_be_joined_keeps_the_others_from_nothing() -> None:
    engines = Engines(*BOTH)
    engines.unjoinable = {"b"}
    again = ["connect a b", "close"]
    assert Fleet(engines).publish(1) == [*again, *again, "connect a", "send 1", "tell a: 1"]


def test_an_engine_at_an_address_that_was_not_given_comes_to_the_run_by_a_refit() -> None:
    engines = Engines("a")
    fleet = Fleet(engines)
    fleet.publish(1)
    engines.held["c"] = NEVER_TOLD
    assert fleet.refit(1, "c") == ["close", "connect c", "send 1", "tell c: 1"]
    assert fleet.publish(2) == ["close", "connect a c", "send 2", "tell a c: 2"]


def test_a_pass_that_breaks_off_is_made_again_and_an_engine_that_fails_twice_is_left_out() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("b"), failure("b")]
    fleet = Fleet(engines)
    again = ["connect a b", "send 1", "close"]
    assert fleet.publish(1) == [*again, *again, "connect a", "send 1", "tell a: 1", "close"]
    assert fleet.publish(2) == ["connect a b", "send 2", "tell a b: 2"], "another version, another try"


def test_where_all_engines_failed_twice_all_are_tried_again() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure(*BOTH)] * 2
    fleet = Fleet(engines, patience=3600.0)
    again = ["connect a b", "send 1", "close"]
    assert fleet.publish(1) == [*again, *again, "connect a b", "send 1", "tell a b: 1", "close"]
    assert engines.now == 0.0, "nobody waits for engines that answer"


def test_one_that_failed_twice_is_tried_where_the_others_are_gone() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("b"), failure("b")]
    engines.on_fault = lambda: engines.held.update(a=None if not engines.faults else "0")
    fleet = Fleet(engines, patience=3600.0)
    assert fleet.publish(1)[-4:] == ["connect b", "send 1", "tell b: 1", "close"]
    assert engines.now == 0.0


def test_an_engine_that_is_named_again_is_refitted_however_often_it_failed() -> None:
    engines = Engines(*BOTH)
    fleet = Fleet(engines)
    fleet.publish(1)
    engines.held["b"] = NEVER_TOLD
    engines.faults = [failure("b"), failure("b"), failure("b")]
    for _ in range(3):
        fleet.refit(1, "b")
    assert fleet.refit(1, "b") == ["connect b", "send 1", "tell b: 1"]


def test_blame_ends_with_the_version() -> None:
    engines = Engines(*BOTH)
    engines.unjoinable = {"b"}
    fleet = Fleet(engines)
    fleet.publish(1)
    fleet.refit(1, "b")
    engines.unjoinable = set()
    assert fleet.publish(2) == ["connect a b", "send 2", "tell a b: 2"]


def test_a_group_that_cannot_be_joined_is_tried_again_after_a_pause() -> None:
    """As where the port of the rendezvous is not free."""
    engines = Engines("a")
    engines.unjoinable = {"a"}
    fleet = Fleet(engines, patience=5.0)
    with pytest.raises(NoEngineAnswers):
        fleet.publish(1)
    assert fleet.log.count("connect a") == 6
    assert engines.now == 5.0


def test_a_refit_that_cannot_be_joined_is_not_tried_again() -> None:
    engines = Engines("a")
    engines.unjoinable = {"a"}
    assert Fleet(engines).refit(1, "a") == ["connect a", "close"]
    assert engines.now == 0.0


def test_all_passes_for_a_version_share_the_time_for_which_engines_are_paused() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("(engine unknown)")] * 3
    engines.takes = [1.0, 1.0, 0.2]
    fleet = Fleet(engines, limit=80.0)
    fleet.publish(1)
    assert engines.given == [40.0, 20.0, 10.0, 9.0]
    assert engines.now < 80.0
    fleet.publish(2)
    assert engines.given[4:] == [40.0], "the next version has its own"


def test_passes_end_when_engines_have_been_paused_for_long() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("(engine unknown)")] * MOST_PASSES
    engines.takes = [1.0, 2.5, 1.0, 1.0]
    fleet = Fleet(engines, limit=80.0, patience=3600.0)
    with pytest.raises(NoEngineAnswers, match=r"paused for 80 s \(limits.sync_timeout\)"):
        fleet.publish(1)
    assert engines.given == [40.0, 20.0]


def test_an_engine_that_fell_silent_in_a_pass_is_not_tried_twice() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("b")]
    engines.takes = [0.5]
    fleet = Fleet(engines)
    assert fleet.publish(1) == [
        "connect a b", "send 1", "close", "connect a", "send 1", "tell a: 1", "close",
    ]  # fmt: skip


def test_nobody_is_paused_while_no_engine_is_there() -> None:
    """An engine that died in a pass is waited for, longer than a pass may take."""
    engines = Engines("a")
    engines.faults = [failure("a")]

    def start_again() -> None:
        engines.held["a"] = None if engines.now < 200.0 else NEVER_TOLD

    engines.on_sleep = engines.on_fault = start_again
    fleet = Fleet(engines, limit=80.0, patience=3600.0)
    assert fleet.publish(1)[-2:] == ["tell a: 1", "close"]
    assert engines.given == [40.0, 40.0]


def test_too_many_passes_end_the_run_with_the_last_failure() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("(engine unknown)")] * MOST_PASSES
    fleet = Fleet(engines)
    with pytest.raises(WeightTransferError, match="engine unknown"):
        fleet.publish(1)
    assert fleet.log.count("send 1") == MOST_PASSES


def test_what_would_come_again_is_not_tried_again() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("trainer rank 1", passing=False)]
    fleet = Fleet(engines)
    with pytest.raises(WeightTransferError, match="trainer rank 1"):
        fleet.publish(1)
    assert fleet.log.count("send 1") == 1


def test_where_none_answers_it_waits_for_one_to_come_back_and_not_for_ever() -> None:
    engines = Engines("a")
    fleet = Fleet(engines, patience=30.0)
    engines.held["a"] = None

    def start_again() -> None:
        if engines.now > 20.0:
            engines.held["a"] = NEVER_TOLD

    engines.on_sleep = start_again
    assert fleet.publish(1)[-1] == "tell a: 1"
    engines.on_sleep = lambda: None
    engines.held["a"] = None
    with pytest.raises(NoEngineAnswers, match=r"no engine of a .* within 30 s \(limits.rollout_timeout\)"):
        fleet.publish(2)


def test_all_ranks_do_the_same_and_rank_0_alone_asks_and_tells() -> None:
    engines = Engines(*BOTH)
    engines.faults = [failure("b"), failure("b")]

    def work(ranks: ThreadRanks) -> list[str]:
        fleet = Fleet(engines, ranks)
        if ranks.rank:
            fleet.publisher.senses = EngineSenses(held=None)  # type: ignore[arg-type]
        fleet.publish(1)
        fleet.refit(1, *("b",)[ranks.rank :])
        return fleet.log

    first, second = on_ranks(work, 2)
    assert [line for line in first if not line.startswith("tell")] == second
    assert second[-3:] == ["close", "connect b", "send 1"]
    assert [line for line in first if line.startswith("tell")] == ["tell a: 1", "tell b: 1"]


def test_no_engine_is_an_error_on_every_rank() -> None:
    engines = Engines("a")
    engines.held["a"] = None
    found = on_ranks(lambda ranks: Fleet(engines, ranks).publish(1), 2)
    assert [type(error) for error in found] == [NoEngineAnswers, NoEngineAnswers]
