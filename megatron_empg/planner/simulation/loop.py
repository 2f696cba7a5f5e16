"""The trainer's loop over a stage of episodes: rounds of whole batches at lag 0, a stream of groups above it.

How many groups the stream holds, and which of them are too old, is decided by the rollout service's own `Slots`.
"""

import math
import random
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence

from megatron_empg.planner.simulation.events import EventQueue
from megatron_empg.planner.simulation.result import EpisodeAccounts, MeterReading, SimulatedStep, SimulationResult
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.planner.simulation.stage import RolloutStage, SimulatedGroup
from megatron_empg.rollout.service.slots import Slots


def simulate(
    setting: SimulationSetting, *, steps: int, seed: int = 0, warm_up: int | None = None
) -> SimulationResult:
    """A run of so many steps, of which the first `warm_up` are not counted (twice the lag and one unless given).

    The last ones, as many as the lag, are not counted either: no group enters any more that they have no use for.
    The same setting and seed give the same outcome. Raises ValueError where no step is left to count.
    """
    if warm_up is None:
        skipped = _warm_up(setting)
    else:
        skipped = warm_up
    counted = steps - skipped - setting.max_lag
    if counted < 1:
        raise ValueError(
            f"{steps} steps are simulated and the first {skipped} and last {setting.max_lag} not counted; ask for "
            "more steps"
        )
    rng = random.Random(seed)
    if setting.max_lag:
        return SimulatedStream(setting, rng, steps).run(skipped, counted)
    return SimulatedRounds(setting, rng, steps).run(skipped, counted)


def steps_to_count(counted: int, setting: SimulationSetting) -> int:
    """Steps of a run of which `simulate` counts so many."""
    return _warm_up(setting) + counted + setting.max_lag


def _warm_up(setting: SimulationSetting) -> int:
    return 2 * setting.max_lag + 1


class SimulatedLoop(ABC):
    """What both kinds share: groups are made, batches trained on, weights published."""

    def __init__(self, setting: SimulationSetting, numbers: random.Random, steps: int) -> None:
        self.setting, self.numbers = setting, numbers
        self.clock = EventQueue()
        self.stage = RolloutStage(self.clock, setting)
        self.accounts = EpisodeAccounts()
        self.run_steps = steps
        self.steps: list[SimulatedStep] = []
        self._step_began = 0.0

    def run(self, skipped: int, counted: int) -> SimulationResult:
        """The whole run; its outcome is that of the steps that count."""
        self.begin()
        first = self._read_after(skipped)
        last = self._read_after(skipped + counted)
        self._read_after(self.run_steps)
        self.accounts.started, self.accounts.left = self.stage.started, self.left()
        steps = tuple(self.steps[skipped : skipped + counted])
        return SimulationResult.between(first, last, self.setting, steps, self.accounts)

    @abstractmethod
    def begin(self) -> None:
        """Fill the stage for the first time."""

    @abstractmethod
    def published(self) -> None:
        """New weights are in force."""

    @abstractmethod
    def left(self) -> int:
        """Episodes that have entered and of which nothing has become yet."""

    @abstractmethod
    def began(self, group: SimulatedGroup) -> None:
        """The first episode of a group begins to play."""

    @abstractmethod
    def over(self, group: SimulatedGroup) -> None:
        """All episodes of a group are over."""

    def _read_after(self, steps: int) -> MeterReading:
        """Go on until so many steps are done."""
        self.clock.run(until=lambda: len(self.steps) >= steps)
        self.stage.meter.settle()
        busy = sum(engine.busy_seconds for engine in self.stage.engines)
        return MeterReading(self.clock.now, busy, dict(self.stage.meter.seconds))

    def new_group(self, number: int) -> SimulatedGroup:
        """Drawn from the workload."""
        setting, numbers = self.setting, self.numbers
        plans = setting.workload.draw_group(numbers, setting.group_size)
        keeps = numbers.random() < setting.kept_share
        self.accounts.drawn_tokens += sum(plan.tokens for plan in plans)
        return SimulatedGroup(number, plans, keeps, self.began, self.over)

    def train(self, batch: Sequence[SimulatedGroup]) -> None:
        """Score and update, then publish; `published` is told."""
        setting, clock = self.setting, self.clock
        began, tokens = clock.now, sum(group.tokens for group in batch)
        trained = setting.train_fixed_seconds + setting.train_token_seconds * tokens

        def sync() -> None:
            self.stage.pause()
            clock.after(setting.sync_seconds, publish)

        def publish() -> None:
            self._note(batch, began)
            self.stage.resume()
            self.published()

        clock.after(trained, sync)

    def _note(self, batch: Sequence[SimulatedGroup], began: float) -> None:
        """Write the step down, before its weights are published."""
        now, version = self.clock.now, self.stage.version
        by_episode: Counter[int] = Counter()
        by_token: Counter[int] = Counter()
        seconds = []
        for group in batch:
            assert group.version is not None, "only groups that have begun are trained on"
            for episode in group.episodes:
                assert episode.ended is not None, "only groups that are over are trained on"
                by_episode[version - group.version] += 1
                for at, turn in zip(episode.versions, episode.plan.turns, strict=True):
                    by_token[version - at] += turn.own
                seconds.append(episode.ended - episode.began)
        self.accounts.trained += len(seconds)
        self.accounts.trained_tokens += sum(group.tokens for group in batch)
        self.steps.append(SimulatedStep(began - self._step_began, now - began, by_episode, by_token, seconds))
        self._step_began = now


class SimulatedRounds(SimulatedLoop):
    """Lag 0: rounds of questions, each played to its last episode, then the update."""

    def begin(self) -> None:
        self._kept: list[SimulatedGroup] = []
        self._round_number = 0
        self._play_round()

    def published(self) -> None:
        self.begin()

    def left(self) -> int:
        return self.setting.group_size * len(self._round)

    def began(self, group: SimulatedGroup) -> None:
        """Nothing is asked of it: a round's groups are all trained on by the weights that they were played by."""

    def over(self, group: SimulatedGroup) -> None:
        self._left -= 1
        if self._left:
            return
        kept = [each for each in self._round if each.keeps]
        missing = self.setting.groups - len(self._kept)
        size = self.setting.group_size
        self.accounts.dropped += size * (len(self._round) - len(kept))
        self.accounts.surplus += size * max(0, len(kept) - missing)
        self._kept += kept[:missing]
        if len(self._kept) < self.setting.groups and self._round_number < self.setting.rounds:
            self._play_round()
        else:
            self.train(self._kept)

    def _play_round(self) -> None:
        self._round_number += 1
        missing = self.setting.groups - len(self._kept)
        asked = math.ceil(missing * self.setting.asked_by_wanted)
        self._left = asked
        self._round = [self.new_group(number) for number in range(asked)]
        for group in self._round:
            self.stage.play(group)


class SimulatedStream(SimulatedLoop):
    """Lag N of at least 1: groups are played beside the trainer, as `rollout.service.stream` lets them.

    A batch is the first groups that were done, in the order in which they were. A group ages from the beginning of
    its first episode; one that no batch may be trained on any more is dropped, wherever it is. Another enters for
    each that is dropped, until `rounds` batches of groups that the algorithm had no use for were dropped since the
    last batch.
    """

    def begin(self) -> None:
        setting = self.setting
        self._slots = Slots(setting.groups, setting.max_lag, self.run_steps)
        self._most_dropped = setting.rounds * setting.groups
        self._dropped = 0
        """Since the last batch, by the algorithm."""
        self._playing: dict[int, SimulatedGroup] = {}
        self._ready: deque[SimulatedGroup] = deque()
        self._trainer_waits = True
        self._admit()

    def published(self) -> None:
        self._slots.publish(self.stage.version)
        self._trainer_waits = self._slots.taken < self.run_steps
        self._admit()
        self._take_if_enough()

    def left(self) -> int:
        return self.setting.group_size * self._slots.outstanding

    def began(self, group: SimulatedGroup) -> None:
        self._slots.began(group.number)

    def over(self, group: SimulatedGroup) -> None:
        del self._playing[group.number]
        if group.keeps:
            self._ready.append(group)
        else:
            self._slots.drop(group.number, "equal")
            self._dropped += 1
            self.accounts.dropped += self.setting.group_size
        self._admit()
        self._take_if_enough()

    @property
    def _has_dropped_enough(self) -> bool:
        return self._dropped >= self._most_dropped

    def _admit(self) -> None:
        while self._slots.free > 0 and not self._has_dropped_enough:
            group = self.new_group(self._slots.enter())
            self._playing[group.number] = group
            self.stage.play(group)

    def _take_if_enough(self) -> None:
        """Train on the next batch if the trainer waits for it; a short one where it would be no use to look on."""
        enough = len(self._ready) >= self.setting.groups
        given_up = self._has_dropped_enough and not self._playing
        if not self._trainer_waits or not (enough or given_up):
            return
        size = min(len(self._ready), self.setting.groups)
        batch = [self._ready.popleft() for _ in range(size)]
        self._slots.take([group.number for group in batch])
        self._trainer_waits = False
        self._dropped = 0
        self._drop_too_old()
        self._admit()
        self.train(batch)

    def _drop_too_old(self) -> None:
        """Those that are done and those that still play."""
        numbers = set(self._slots.too_old())
        for group in [group for group in self._ready if group.number in numbers]:
            self._ready.remove(group)
        playing = [group for group in self._playing.values() if group.number in numbers]
        for number in numbers:
            self._slots.drop(number, "stale")
            self._playing.pop(number, None)
        self.accounts.stale += self.setting.group_size * len(numbers)
        for group in playing:
            self.stage.give_up(group)
