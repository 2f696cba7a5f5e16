"""Groups that are played one after another, beside score, update and weight sync, within a bounded lag.

`slots.py` says how many may be outstanding. New weights come while episodes run, which go on under them; each
token carries its version. A batch is the first groups that were done, in the order in which they were.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from megatron_empg.environments.base import Task, TaskSource
from megatron_empg.rollout.busy_clock import BusyClock
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Group, Rollout
from megatron_empg.rollout.service.collect import reason_to_drop
from megatron_empg.rollout.service.config import ServiceConfig
from megatron_empg.rollout.service.failures import RolloutServiceError
from megatron_empg.rollout.service.question_stream import QuestionStream
from megatron_empg.rollout.service.slots import REASONS, Reason, Slots, StreamAccount


@dataclass(frozen=True)
class PlayedGroup:
    """A group that has been played; one that nobody is trained on says why."""

    number: int
    task: Task
    episodes: Sequence[Episode]
    dropped: Reason | None = None


@dataclass(frozen=True)
class StepHandover:
    """What was handed over for a step."""

    step: int
    groups: Sequence[PlayedGroup]
    """To be trained on, in the order in which they were done."""
    dropped: Sequence[PlayedGroup]
    """Those that were played and dropped since the batch before."""
    account: StreamAccount
    metrics: dict[str, float]


class GroupStream:
    """Plays from its making until `close`. Of an event loop that runs; begins where the `account` ends."""

    def __init__(
        self,
        config: ServiceConfig,
        source: TaskSource,
        rollout: Rollout,
        *,
        version: int,
        account: StreamAccount | None = None,
    ) -> None:
        played = config.rollout
        self._size, self._keeps = played.group_size, config.algorithm.keeps
        self._rollout = rollout
        account = account or StreamAccount()
        self._slots = Slots(played.groups, played.max_lag, config.steps, version=version, account=account)
        again = account.unfinished
        self._questions = QuestionStream(source, config.seed, first=account.started, again=again)
        self._most_dropped = config.algorithm.generation_rounds * played.groups
        self._holds = 0
        self._unheld = asyncio.Event()
        self._unheld.set()
        self._change = asyncio.Event()
        """Set, and replaced, whenever something happens that somebody may wait for."""
        self._playing: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._episodes = 0
        """Those that play now."""
        self._ready: deque[PlayedGroup] = deque()
        self._dropped: list[PlayedGroup] = []
        """Since the last batch."""
        self._stale = 0
        """Groups that became too old since the last batch, those that still played among them."""
        self._last: StepHandover | None = None
        self._failure: BaseException | None = None
        self._trainer_waits = False
        self._idle = BusyClock(self._is_idle)
        self._admission = asyncio.create_task(self._admit())

    @property
    def ready(self) -> int:
        """Groups that are done and wait for a batch."""
        return len(self._ready)

    @property
    def at_rest(self) -> bool:
        """Whether no episode plays at this moment."""
        return self._episodes == 0

    def published(self, version: int) -> None:
        """The engines hold these weights now. Raises RolloutServiceError for older ones than they held."""
        self._idle.note()
        try:
            self._slots.publish(version)
        except ValueError as error:
            raise RolloutServiceError(str(error)) from None
        self._happened()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No episode begins meanwhile; those that run go on."""
        self._idle.note()
        self._holds += 1
        self._unheld.clear()
        try:
            yield
        finally:
            self._idle.note()
            self._holds -= 1
            if not self._holds:
                self._unheld.set()

    async def take(self, step: int, seconds: float) -> StepHandover:
        """The groups of a training step, as many as a batch has; fewer where so many were dropped as the
        algorithm's rounds would have asked for, or the time is over. Asked for the same step again, the same.

        Raises RolloutServiceError for another step than the next, and when the stream has broken off.
        """
        if self._last is not None and self._last.step == step:
            return self._last
        if step != self._slots.taken:
            raise RolloutServiceError(
                f"the stream's next batch is that of step {self._slots.taken}, not of step {step}"
            )
        began = time.monotonic()
        # The TimeoutError is that of the limit: a failure of the stream is a RolloutServiceError.
        with self._waiting(), suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until_enough()
        self._last = self._hand_over(step, waited=time.monotonic() - began)
        return self._last

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """The trainer waits for groups: what engines do not do meanwhile is no fault of the slots."""
        self._idle.note()
        self._trainer_waits = True
        try:
            yield
        finally:
            self._idle.note()
            self._trainer_waits = False

    async def close(self) -> None:
        """End every episode, and wait until they have ended."""
        tasks = [self._admission, *self._playing.values(), *self._ending]
        self._playing.clear()  # they are ended, and do not fail
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_enough(self) -> None:
        while True:
            if self._failure is not None:
                kind = type(self._failure).__name__
                raise RolloutServiceError(
                    f"the stream of groups broke off: {kind}: {self._failure}"
                ) from self._failure
            all_done = self._slots.outstanding == len(self._ready)  # no task is being drawn either
            given_up = self._has_dropped_enough and all_done
            if len(self._ready) >= self._slots.groups or given_up:
                return
            await self._change.wait()

    @property
    def _has_dropped_enough(self) -> bool:
        """Whether it would be no use to go on looking for groups before the next batch."""
        useless = [done for done in self._dropped if done.dropped != "stale"]
        return len(useless) >= self._most_dropped

    def _hand_over(self, step: int, *, waited: float) -> StepHandover:
        self._idle.note()
        chosen = [self._ready.popleft() for _ in range(min(len(self._ready), self._slots.groups))]
        account = self._slots.take([done.number for done in chosen])
        metrics = self._metrics(account, waited)
        taken = StepHandover(step, chosen, self._dropped, account, metrics)
        self._dropped, self._stale = [], 0
        self._idle.restart()
        self._drop_too_old()
        self._happened()
        return taken

    def _metrics(self, account: StreamAccount, waited: float) -> dict[str, float]:
        """Of the stream as it stands behind a batch."""
        counted = {
            "stream/started": account.started,
            "stream/trained": account.trained,
            "stream/in_flight": len(account.unfinished) - len(self._ready),
            "stream/ready": len(self._ready),
            "train/groups_dropped_stale": self._stale,
        }
        for reason in REASONS:
            counted[f"stream/dropped_{reason}"] = account.dropped.get(reason, 0)
        measured = {"stream/wait_seconds": waited, "stream/idle_seconds": self._idle.seconds}
        return {name: float(count) for name, count in counted.items()} | measured

    def _drop_too_old(self) -> None:
        """Those that are done and those that still play: no batch may be trained on them any more."""
        numbers = set(self._slots.too_old())
        self._stale += len(numbers)
        for number in numbers:
            self._slots.drop(number, "stale")
            self._end(number)
        for done in [done for done in self._ready if done.number in numbers]:
            self._ready.remove(done)
            self._dropped.append(replace(done, dropped="stale"))

    def _end(self, number: int) -> None:
        """Cancel a group that still plays, with all of its requests; how it ends is of no more interest."""
        task = self._playing.pop(number, None)
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _admit(self) -> None:
        """Let groups enter whenever there are slots."""
        try:
            while True:
                while self._may_enter:
                    self._idle.note()
                    number = self._slots.enter()
                    task = await asyncio.to_thread(self._questions.task, number)
                    playing = asyncio.create_task(self._play(number, task))
                    playing.add_done_callback(partial(self._ended, number))
                    self._playing[number] = playing
                await self._change.wait()
        except Exception as error:
            self._fail(error)

    @property
    def _may_enter(self) -> bool:
        return self._failure is None and self._slots.free > 0 and not self._has_dropped_enough

    async def _play(self, number: int, task: Task) -> None:
        """All episodes of a group, each as soon as there is a place for it."""
        group = Group(task, 0, range(self._size))
        async with asyncio.TaskGroup() as players:
            played = [players.create_task(self._episode(number, group, sample)) for sample in group.samples]
        self._finish(number, task, [player.result() for player in played])

    def _ended(self, number: int, playing: asyncio.Task[None]) -> None:
        """Of a group's task, however it ended: one that neither finished nor was ended has failed."""
        error = asyncio.CancelledError("a group was cancelled") if playing.cancelled() else playing.exception()
        if self._playing.get(number) is not playing:
            return
        del self._playing[number]
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is not None:
            self._fail(error)

    async def _episode(self, number: int, group: Group, sample: int) -> Episode:
        while True:
            await self._unheld.wait()
            async with self._rollout.places:
                if self._holds:
                    continue  # its place is for what the stream is held for
                self._idle.note()
                self._slots.began(number)
                self._episodes += 1
                try:
                    return await self._rollout.play(group, sample, number)
                finally:
                    self._idle.note()
                    self._episodes -= 1

    def _finish(self, number: int, task: Task, episodes: Sequence[Episode]) -> None:
        self._idle.note()
        reason = reason_to_drop(episodes, self._keeps)
        done = PlayedGroup(number, task, episodes, reason)
        if reason is None:
            self._ready.append(done)
        else:
            self._slots.drop(number, reason)
            self._dropped.append(done)
        del self._playing[number]  # last: a failure before it is seen by its task's end
        self._happened()

    def _is_idle(self) -> bool:
        """Whether an episode could play while the trainer is busy, and no group may enter since all slots are
        taken.
        """
        room = self._episodes < self._rollout.concurrency
        return room and self._slots.free <= 0 and not self._holds and not self._trainer_waits

    def _fail(self, error: BaseException) -> None:
        """Nothing of the stream is worth anything any more: whoever asks for a batch is told why."""
        self._failure = self._failure or error
        self._happened()

    def _happened(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
