"""The slots of a stream: whatever order groups end in, none is trained on later than the lag allows or twice."""

import random
from collections import Counter

import pytest

from megatron_empg.rollout.service.slots import Slots, StreamAccount


class Schedule:
    """A trainer and its groups, whose every next event is drawn."""

    def __init__(self, seed: int, *, in_order: bool = False) -> None:
        self.draw = random.Random(seed)
        self.groups, self.max_lag, self.steps = self.draw.randint(1, 5), self.draw.randint(0, 4), 12
        self.slots = Slots(self.groups, self.max_lag, self.steps)
        self.in_order = in_order
        self.playing: list[int] = []
        self.ready: list[int] = []
        self.began: dict[int, int] = {}
        self.trained: list[int] = []
        self.ages: list[int] = []
        self.dropped: Counter[str] = Counter()

    def run(self) -> StreamAccount:
        account = StreamAccount()
        while self.slots.taken < self.steps:
            for _ in range(self.draw.randint(0, 4 * self.groups)):
                self.one_event()
            while len(self.ready) < self.groups:
                self.one_event()
            account = self.take()
            for _ in range(self.draw.randint(0, 4 * self.groups)):  # the trainer's update
                self.one_event()
            self.slots.publish(self.slots.taken)
        return account

    def one_event(self) -> None:
        """A group enters, or one that plays is done."""
        if self.slots.free > 0 and (not self.playing or self.draw.random() < 0.6):
            number = self.slots.enter()
            self.slots.began(number)
            self.began[number] = self.slots.version
            self.playing.append(number)
        elif self.playing:
            number = self.playing.pop(0 if self.in_order else self.draw.randrange(len(self.playing)))
            if self.draw.random() < 0.3:
                self.drop(number, self.draw.choice(("equal", "errors")))
            else:
                self.ready.append(number)

    def drop(self, number: int, reason: str) -> None:
        self.slots.drop(number, reason)  # type: ignore[arg-type]
        self.dropped[reason] += 1

    def take(self) -> StreamAccount:
        step = self.slots.taken
        chosen, self.ready = self.ready[: self.groups], self.ready[self.groups :]
        self.ages += [step - self.began[number] for number in chosen]
        self.trained += chosen
        account = self.slots.take(chosen)
        for number in self.slots.too_old():
            self.drop(number, "stale")
            for where in (self.playing, self.ready):
                if number in where:
                    where.remove(number)
        return account


@pytest.mark.parametrize("seed", range(200))
def test_no_group_is_trained_on_later_than_the_lag_allows(seed: int) -> None:
    schedule = Schedule(seed)
    schedule.run()
    assert max(schedule.ages) <= schedule.max_lag
    assert len(schedule.trained) == schedule.steps * schedule.groups


@pytest.mark.parametrize("seed", range(100))
def test_every_group_that_started_is_trained_on_once_or_dropped_once_or_unfinished(seed: int) -> None:
    schedule = Schedule(seed)
    account = schedule.run()
    assert max(Counter(schedule.trained).values()) == 1
    assert account.trained == len(schedule.trained)
    assert account.started == account.trained + sum(account.dropped.values()) + len(account.unfinished)
    assert not set(account.unfinished) & set(schedule.trained)
    assert set(range(account.started)) >= set(schedule.trained) | set(account.unfinished)


@pytest.mark.parametrize("seed", range(100))
def test_groups_that_are_done_in_the_order_in_which_they_entered_never_become_too_old(seed: int) -> None:
    schedule = Schedule(seed, in_order=True)
    schedule.run()
    assert schedule.dropped["stale"] == 0


def test_some_that_play_for_long_do_become_too_old() -> None:
    dropped = Counter[str]()
    for seed in range(50):
        schedule = Schedule(seed)
        schedule.run()
        dropped += schedule.dropped
    assert dropped["stale"] > 0


def test_without_lag_a_batch_waits_for_the_weights_before_it() -> None:
    slots = Slots(groups=2, max_lag=0, steps=5)
    numbers = [slots.enter(), slots.enter()]
    assert slots.free == 0
    slots.take(numbers)
    assert slots.free == 0, "nothing may play while the batch is trained on"
    slots.publish(1)
    assert slots.free == 2


def test_with_a_lag_of_one_the_next_batch_plays_meanwhile() -> None:
    slots = Slots(groups=2, max_lag=1, steps=5)
    numbers = [slots.enter() for _ in range(slots.free)]
    assert numbers == [0, 1, 2, 3]
    slots.take([2, 0])
    assert slots.free == 0
    slots.drop(1, "equal")
    assert slots.free == 1, "what is dropped gives its slot back"
    slots.publish(1)
    assert slots.free == 3


def test_no_more_groups_enter_than_the_run_trains_on() -> None:
    slots = Slots(groups=3, max_lag=4, steps=2)
    assert slots.free == 6
    slots.take([slots.enter() for _ in range(3)])
    assert slots.free == 3


def test_a_resumed_stream_first_plays_what_was_unfinished() -> None:
    slots = Slots(groups=2, max_lag=1, steps=9)
    for _ in range(4):
        slots.enter()
    account = slots.take([3, 1])
    assert (account.unfinished, account.numbers, account.batches) == ([0, 2], [3, 1], 1)
    again = Slots(groups=2, max_lag=1, steps=9, version=0, account=StreamAccount.from_json(account.to_json()))
    assert [again.enter() for _ in range(again.free)] == [0, 2]
    again.publish(1)
    assert [again.enter() for _ in range(again.free)] == [4, 5]


def test_a_resumed_stream_waits_while_its_batches_are_trained_on_again() -> None:
    account = StreamAccount(batches=3, started=6, trained=6)
    slots = Slots(groups=2, max_lag=1, steps=9, version=0, account=account)
    for version, free in ((0, -2), (1, 0), (2, 2), (3, 4)):
        slots.publish(version)
        assert slots.free == free


@pytest.mark.parametrize(
    ("account", "says"),
    [({"started": 3, "trained": 1}, "3 groups started, 1 were trained on"), ({"trained": 1}, "does not balance")],
)
def test_an_account_that_does_not_balance_is_refused(account: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StreamAccount(**account)  # type: ignore[arg-type]


def test_slots_refuse_what_cannot_be() -> None:
    slots = Slots(groups=1, max_lag=0, steps=1, version=3)
    with pytest.raises(ValueError, match="version 2 was published after version 3"):
        slots.publish(2)
    slots.enter()
    with pytest.raises(ValueError, match="no slot is free: 1 groups are outstanding"):
        slots.enter()


def test_an_episode_of_a_group_that_was_dropped_gives_it_no_slot() -> None:
    slots = Slots(groups=1, max_lag=1, steps=9)
    number = slots.enter()
    slots.drop(number, "stale")
    slots.began(number)
    assert (slots.outstanding, slots.too_old()) == (0, [])
