"""The trainer's loop over a stage of episodes: rounds of whole batches at lag 0, a stream of groups above it.

At lag N a group takes a slot as it enters and frees it when weights are published that were trained on it, or when
it is dropped; there are N + 1 batches of slots. So no group is trained by weights that are more than N versions
newer than those it entered under, as long as those that would become too old are waited for or given up.
"""

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

from megatron_empg.planner.simulation.events import Clock
from megatron_empg.planner.simulation.result import Accounts, Mark, Outcome, Step
from megatron_empg.planner.simulation.setting import Setting
from megatron_empg.planner.simulation.stage import Group, Stage


def simulate(setting: Setting, *, steps: int, seed: int = 0, warm_up: int | None = None) -> Outcome:
    """Train so many steps, of which the first `warm_up` are not counted (twice the lag and one unless given).

    The same setting and seed give the same outcome. Raises ValueError where no step is left to count.
    """
    skipped = 2 * setting.max_lag + 1 if warm_up is None else warm_up
    if steps <= skipped:
        raise ValueError(f"{steps} steps are simulated and the first {skipped} not counted; ask for more steps")
    kind = Stream if setting.max_lag else Rounds
    return kind(setting, random.Random(seed)).run(steps, skipped)


class Loop(ABC):
    """What both kinds share: groups are made, batches trained on, weights published."""

    def __init__(self, setting: Setting, numbers: random.Random) -> None:
        self.setting, self.numbers = setting, numbers
        self.clock = Clock()
        self.stage = Stage(self.clock, setting)
        self.accounts = Accounts()
        self.steps: list[Step] = []
        self._entered = 0
        self._step_began = 0.0

    def run(self, steps: int, skipped: int) -> Outcome:
        """Until so many steps are done."""
        self.begin()
        first, last = self._mark_after(skipped), self._mark_after(steps)
        self.accounts.started, self.accounts.left = self.stage.started, self.left()
        return Outcome.between(first, last, self.setting, tuple(self.steps[skipped:]), self.accounts)

    @abstractmethod
    def begin(self) -> None:
        """Fill the stage for the first time."""

    @abstractmethod
    def published(self) -> None:
        """New weights are in force."""

    @abstractmethod
    def left(self) -> int:
        """Episodes that have entered and of which nothing has become yet."""

    def _mark_after(self, steps: int) -> Mark:
        """Go on until so many steps are done."""
        self.clock.run(until=lambda: len(self.steps) >= steps)
        self.stage.meter.settle()
        busy = tuple(engine.busy_seconds for engine in self.stage.engines)
        return Mark(self.clock.now, busy, dict(self.stage.meter.seconds))

    def enter(self, count: int) -> list[Group]:
        """So many new groups, under the weights in force."""
        return [self._group() for _ in range(count)]

    def _group(self) -> Group:
        setting, numbers = self.setting, self.numbers
        plans = [setting.workload.draw(numbers) for _ in range(setting.group_size)]
        keeps = numbers.random() < setting.kept_share
        self._entered += 1
        self.accounts.drawn_tokens += sum(plan.tokens for plan in plans)
        return Group(self._entered, self.stage.version, plans, keeps)

    def train(self, batch: Sequence[Group]) -> None:
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

    def _note(self, batch: Sequence[Group], began: float) -> None:
        """Write the step down, before its weights are published."""
        now, version = self.clock.now, self.stage.version
        by_episode: Counter[int] = Counter()
        by_token: Counter[int] = Counter()
        seconds = []
        for episode in (episode for group in batch for episode in group.episodes):
            assert episode.ended is not None, "only groups that are over are trained on"
            by_episode[version - episode.group.version] += 1
            for at, turn in zip(episode.versions, episode.plan.turns, strict=True):
                by_token[version - at] += turn.own
            seconds.append(episode.ended - episode.began)
        self.accounts.trained += len(seconds)
        self.accounts.trained_tokens += sum(group.tokens for group in batch)
        self.steps.append(Step(began - self._step_began, now - began, by_episode, by_token, seconds))
        self._step_began = now


class Rounds(Loop):
    """Lag 0, the loop of today: rounds of questions, each played to its last episode, then the update."""

    def begin(self) -> None:
        self._kept: list[Group] = []
        self._number = 0
        self._play_round()

    def published(self) -> None:
        self.begin()

    def left(self) -> int:
        return self.setting.group_size * len(self._round)

    def _play_round(self) -> None:
        self._number += 1
        missing = self.setting.groups - len(self._kept)
        groups = self.enter(math.ceil(missing * self.setting.asked_by_wanted))
        self._left = len(groups)
        self._round = groups
        for group in groups:
            self.stage.play(group, self._over)

    def _over(self, group: Group) -> None:
        self._left -= 1
        if self._left:
            return
        kept = [each for each in self._round if each.keeps]
        missing = self.setting.groups - len(self._kept)
        size = self.setting.group_size
        self.accounts.dropped += size * (len(self._round) - len(kept))
        self.accounts.surplus += size * max(0, len(kept) - missing)
        self._kept += kept[:missing]
        if len(self._kept) < self.setting.groups and self._number < self.setting.rounds:
            self._play_round()
        else:
            self.train(self._kept)


class Stream(Loop):
    """Lag N of at least 1: groups enter as slots are free, while the trainer works."""

    def begin(self) -> None:
        self._held: dict[int, Group] = {}
        """By number: entered, neither dropped nor covered by published weights."""
        self._ready: dict[int, Group] = {}
        self._training: list[Group] = []
        self._fill()

    def published(self) -> None:
        for group in self._training:
            del self._held[group.number]
        self._training = []
        self._fill()
        self._train_if_possible()

    def left(self) -> int:
        return self.setting.group_size * len(self._held)

    def _fill(self) -> None:
        for group in self.enter(self.setting.slots_of_groups - len(self._held)):
            self._held[group.number] = group
            self.stage.play(group, self._over)

    def _over(self, group: Group) -> None:
        if group.keeps:
            self._ready[group.number] = group
            self._train_if_possible()
        else:
            self.accounts.dropped += self.setting.group_size
            del self._held[group.number]
            self._fill()
            self._train_if_possible()  # the group that entered for it may be younger than the batch waited for

    def _train_if_possible(self) -> None:
        size = self.setting.groups
        if self._training or len(self._ready) < size:
            return
        chosen = [self._ready[number] for number in sorted(self._ready)[:size]]
        if self.setting.late == "wait" and not self._in_time(chosen):
            return
        for group in chosen:
            del self._ready[group.number]
        self._training = chosen
        if self.setting.late == "end":
            self._end_late(group for group in list(self._held.values()) if group not in chosen)
        self.train(chosen)

    def _in_time(self, chosen: Sequence[Group]) -> bool:
        """Whether all groups that are not chosen can still be trained on before they are too old.

        Of those that must be trained within k more batches, no more than k batches may be left over.
        """
        setting, version = self.setting, self.stage.version
        held = Counter(group.version for group in self._held.values())
        taken = Counter(group.version for group in chosen)
        left = 0
        for entered in sorted(held):
            left += held[entered] - taken[entered]
            batches = entered + setting.max_lag - version
            if left > batches * setting.groups:
                return False
        return True

    def _end_late(self, others: Iterable[Group]) -> None:
        """Give up what the next weights would make too old."""
        late = [group for group in others if self.stage.version + 1 - group.version > self.setting.max_lag]
        for group in late:
            del self._held[group.number]
            self._ready.pop(group.number, None)
            self.accounts.given_up += self.setting.group_size
            self.stage.give_up(group)
        if late:
            self._fill()
