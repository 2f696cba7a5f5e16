"""The driver: no GPU; plays the episodes of a step and hands over a batch.

Without a stream (`rollout.max_lag` 0) it has no state of its own: what a step's batch is follows from (seed, step,
weights) alone, so a driver can die and come back, or be asked twice. With one, each batch says where the stream
goes on behind it.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress

from megatron_empg.environments.base import Split, Task, TaskSource
from megatron_empg.environments.blocking import CALLS
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import Sampling
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Group, Rollout
from megatron_empg.rollout.fleet import Fleet
from megatron_empg.rollout.seeds import derive_seed
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.collect import Collection
from megatron_empg.rollout.service.config import ServiceConfig
from megatron_empg.rollout.service.engine_keeper import EngineKeeper
from megatron_empg.rollout.service.engine_watch import EngineWatch
from megatron_empg.rollout.service.episode_source import open_episode_source
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.failures import RolloutServiceError, Untold, refuse_errors, refuse_malformed
from megatron_empg.rollout.service.readable_episodes import texts_of, worth_reading
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.rollout.service.stale_engines import StaleEngines, TrainerNews
from megatron_empg.rollout.service.stream import GroupStream, StepHandover
from megatron_empg.run.episode_log import write_played
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.playing import FIRST_QUESTIONS, evaluation_pass, told_while_playing
from megatron_empg.run.timeline import Span

_log = logging.getLogger(__name__)
EVALUATION_STEP = -1
"""Stands for the training step in the seeds of an evaluation: it draws the same each time."""
PROBE_STEP = -2
"""Stands for the training step in the seeds of the episodes before the first one."""
PROBE_EPISODES = 8
LOOK_AGAIN_SECONDS = 1.0
HAND_OVER_SHARE = 0.05
"""Share of a batch's time that is kept for packing it and carrying it to the trainer."""


class RolloutService:
    """Plays whole batches and evaluations over open connections to the engines."""

    def __init__(
        self,
        config: ServiceConfig,
        source: TaskSource,
        rollout: Rollout,
        source_metrics: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.config, self.source, self.rollout = config, source, rollout
        self._source_metrics = source_metrics
        self.watch = EngineWatch(rollout.clients)
        self.keeper = EngineKeeper(rollout.fleet, rollout.clients)
        self.stream: GroupStream | None = None
        """With `rollout.max_lag`, from the first published weights on."""

    @property
    def knows_weights(self) -> bool:
        """Whether it was told which engines may generate, if anybody tells."""
        fleet = self.rollout.fleet
        return not fleet.told or fleet.version is not None

    async def hold(self, urls: Sequence[str], version: int) -> None:
        """These engines hold the weights of `version`; one that was not known joins.

        Raises RolloutServiceError.
        """
        for url in urls:
            await self.rollout.know(url)
        try:
            self.rollout.fleet.refitted(urls, version)
        except ValueError as error:
            raise RolloutServiceError(str(error)) from None
        self.keeper.refitted()

    async def add(self, urls: Sequence[str]) -> None:
        """These engines come to the run; the trainer is asked to bring them the policy's weights."""
        for url in urls:
            await self.rollout.know(url)
            self.rollout.fleet.add(url)

    async def wanting(self) -> StaleEngines:
        """Wait until there are engines that only the trainer can bring back."""
        while True:
            urls = self.keeper.wanting()
            if urls:
                return StaleEngines(tuple(urls))
            with suppress(TimeoutError):  # one that was named in vain is named again
                await asyncio.wait_for(self.rollout.wait_for_change(), LOOK_AGAIN_SECONDS)

    async def published(self, version: int, account: StreamAccount | None) -> None:
        """The engines hold these weights. With the first the stream begins, where the `account` ends; with later
        ones it goes on. Raises RolloutServiceError.
        """
        if not self.config.rollout.max_lag:
            raise RolloutServiceError(
                "rollout.max_lag is 0: nothing is streamed, so nobody asks which weights there are"
            )
        if self.stream is None:
            self.stream = GroupStream(self.config, self.source, self.rollout, version=version, account=account)
            await self.watch.batch_begins(self.rollout.fleet.healthy())
        else:
            self.stream.published(version)

    @property
    def at_rest(self) -> bool:
        """Whether no episode plays but for those of the work in hand."""
        return self.stream is None or self.stream.at_rest

    async def close(self) -> None:
        """End what still plays."""
        if self.stream is not None:
            await self.stream.close()

    async def collect(self, step: int) -> bytes:
        """The batch of a training step, within `limits.rollout_timeout`.

        Raises RolloutServiceError, and Untold.
        """
        return await (self._collect_streamed(step) if self.config.rollout.max_lag else self._collect_anew(step))

    async def _collect_streamed(self, step: int) -> bytes:
        """What the stream has done since the batch before."""
        if self.stream is None:
            raise Untold(
                TrainerNews.STREAM, f"step {step}: no weights were published yet, so the stream has not begun"
            )
        config, texts = self.config, self.config.episodes_per_step
        taken = await self.stream.take(step, self._time_to_play)
        collection = Collection(config.rollout.groups, config.algorithm.keeps, texts, self.rollout.prompt_of)
        for done in [*taken.groups, *taken.dropped]:
            collection.add_played(done.task, done.episodes, done.dropped)
        collection.timed = config.timeline_episodes
        collection.whole = _span_of(collection.played)
        await self._refuse_errors(collection, step)
        await self._measure(collection)
        await self.watch.batch_begins(self.rollout.fleet.healthy())
        return await asyncio.to_thread(lambda: _streamed_batch(collection, taken).to_bytes(texts))

    async def _collect_anew(self, step: int) -> bytes:
        """A batch that follows from the seed, the step and the engines' weights.

        Rounds of new questions go on until there are enough groups, the algorithm's number of rounds is over, or
        the time left is less than the last round took.
        """
        config = self.config
        texts = config.episodes_per_step
        collection = Collection(config.rollout.groups, config.algorithm.keeps, texts, self.rollout.prompt_of)
        collection.timed = config.timeline_episodes
        drawn: Counter[str] = Counter()
        ends = time.monotonic() + self._time_to_play
        await self.watch.batch_begins(self.rollout.fleet.healthy())
        first_began = time.monotonic()
        for number in range(config.algorithm.generation_rounds):
            began = time.monotonic()
            await self._play_round(collection, step, number, drawn, time_left=ends - began)
            await self._refuse_errors(collection, step)
            took = time.monotonic() - began
            if not collection.missing or ends - time.monotonic() < took:
                break
        collection.whole = Span(first_began, time.monotonic())
        await self._measure(collection)
        return await asyncio.to_thread(lambda: collection.batch().to_bytes(texts))

    async def _refuse_errors(self, collection: Collection, step: int) -> None:
        """Raises RolloutServiceError if too many episodes ended in an error, of which some are written down."""
        try:
            refuse_errors(collection.played, self.config.limits.max_error_share, f"step {step}")
        except RolloutServiceError:
            name, title = f"refused_{step + 1:06d}", f"Step {step + 1}, which was not trained"
            await self._write(name, title, collection.tasks.values(), collection.played)
            raise

    async def _measure(self, collection: Collection) -> None:
        """What a batch says of engines and environments, at its end."""
        fleet, moves = self.rollout.fleet, self.rollout.moves
        measured = await self.watch.batch_ends(fleet.healthy())
        collection.engine_metrics = measured | fleet.metrics() | {"rollout/episodes_moved": moves}
        collection.hanging = CALLS.left_behind
        collection.source_metrics = self._source_metrics()

    @asynccontextmanager
    async def _aside(self) -> AsyncIterator[None]:
        """While questions are asked that no step trains on: no episode of the stream begins, and what engines do
        belongs to no batch."""
        with self.stream.held() if self.stream is not None else nullcontext(), self.watch.aside():
            yield
        if self.stream is not None:
            await self.watch.batch_begins(self.rollout.fleet.healthy())

    async def evaluate(self, split: Split, greedy: bool) -> Evaluation:
        """Success on the split's fixed questions, sampled or greedily, within `limits.rollout_timeout`.

        An episode that ended in an error is a question not answered. Raises RolloutServiceError.
        """
        settings = self.config.evaluation
        started = time.monotonic()
        tasks = await asyncio.to_thread(self.source.fixed, split, settings.questions)
        groups = [Group(task, number, [0]) for number, task in enumerate(tasks)]
        sampling = Sampling(temperature=0.0 if greedy else settings.temperature)
        what = evaluation_pass(split, greedy=greedy)
        with told_while_playing(self.config.folder, what, len(groups)) as playing:
            async with self._aside():
                episodes = await self.rollout.run_group_batch(
                    groups,
                    EVALUATION_STEP,
                    sampling=sampling,
                    timeout=self._time_to_play,
                    on_episode=playing.one_more,
                )
        refuse_errors(episodes, self.config.limits.max_error_share, f"evaluation of {split}")
        solved = [episode.outcome == "success" for episode in episodes]
        by_kind: dict[str, list[bool]] = {}
        for task, success in zip(tasks, solved, strict=True):
            by_kind.setdefault(task.kind, []).append(success)
        outcomes = Counter(episode.outcome for episode in episodes)
        return Evaluation(
            split,
            greedy,
            success=outcomes["success"] / len(episodes),
            questions=len(episodes),
            errors=outcomes["error"],
            seconds=time.monotonic() - started,
            by_kind={kind: sum(wins) / len(wins) for kind, wins in sorted(by_kind.items())},
            answered="".join("01"[success] for success in solved),
        )

    async def probe(self) -> int:
        """Play a few training questions, to see that there is something to learn from; returns how many.

        Some of them are written to ``episodes/probe.jsonl`` of the run folder, whatever they are worth. Raises
        RolloutServiceError with one of the episodes when too many fail or no turn can be read.
        """
        seed = derive_seed(self.config.seed, PROBE_STEP, "questions", 0, 0)
        tasks = await asyncio.to_thread(self.source.sample, "train", PROBE_EPISODES, seed)
        groups = _groups(tasks, 1, Counter())
        with told_while_playing(self.config.folder, FIRST_QUESTIONS, len(groups)) as playing:
            async with self._aside():
                episodes = await self.rollout.run_group_batch(
                    groups, PROBE_STEP, timeout=self.config.waits.round, on_episode=playing.one_more
                )
        await self._write("probe", "Before the first step", tasks, episodes)
        refuse_errors(episodes, self.config.limits.max_error_share, "before the first step")
        refuse_malformed(episodes, "before the first step")
        return len(episodes)

    async def _write(self, name: str, title: str, tasks: Iterable[Task], episodes: Sequence[Episode]) -> None:
        """Some episodes that no step trains on, where people look for them; a fault of the disk is only told."""
        count, folder = self.config.episodes_per_step, RunFolder(self.config.folder)
        by_id = {task.id: task for task in tasks}

        def write() -> None:
            if not folder.episodes.is_dir():
                return  # it belongs to no run
            chosen = worth_reading(episodes, count, errors=count)
            write_played(folder, name, title, texts_of(by_id, chosen, self.rollout.prompt_of))

        try:
            await asyncio.to_thread(write)
        except OSError as error:
            _log.warning("%s: its episodes could not be written to %s: %s", title, folder.episodes, error)

    @property
    def _time_to_play(self) -> float:
        return (1 - HAND_OVER_SHARE) * self.config.waits.batch

    async def _play_round(
        self, collection: Collection, step: int, number: int, drawn: Counter[str], *, time_left: float
    ) -> None:
        """The first round asks for a whole batch, later ones for what the filter took, each for more where the
        algorithm oversamples."""
        config = self.config
        seed = derive_seed(config.seed, step, "questions", number, 0)
        questions = math.ceil(collection.missing * config.algorithm.asked_by_wanted)
        tasks = await asyncio.to_thread(self._draw, questions, seed, drawn)
        groups = _groups(tasks, config.rollout.group_size, drawn)
        timeout = min(config.waits.round, time_left)
        episodes = await self.rollout.run_group_batch(groups, step, timeout=timeout)
        shuffle = seed if config.algorithm.shuffle_rewards else None
        await asyncio.to_thread(collection.add, tasks, episodes, shuffle)

    def _draw(self, count: int, seed: int, drawn: Counter[str]) -> list[Task]:
        """Questions that were not `drawn` in this step, and some again only where the source has no more."""
        tasks = self.source.sample("train", count + len(drawn), seed)
        fresh = [task for task in tasks if task.id not in drawn]
        again = [task for task in tasks if task.id in drawn]
        return (fresh + again)[:count]


def _span_of(played: Sequence[Episode]) -> Span:
    """From the beginning of the first of the episodes until now."""
    now = time.monotonic()
    begins = [episode.whole.start for episode in played if episode.whole is not None]
    return Span(min(begins, default=now), now)


def _streamed_batch(collection: Collection, taken: StepHandover) -> Batch:
    """The batch of groups that were taken from the stream, with where it stands behind them."""
    batch = collection.batch()
    batch.metrics |= taken.metrics
    batch.account = taken.account
    return batch


def _groups(tasks: Sequence[Task], size: int, drawn: Counter[str]) -> list[Group]:
    """A group of each task. One that was `drawn` before gets the next numbers of samples, so other seeds."""
    groups = []
    for index, task in enumerate(tasks):
        first = drawn[task.id] * size
        groups.append(Group(task, index, range(first, first + size)))
        drawn[task.id] += 1
    return groups


@asynccontextmanager
async def open_rollout_service(
    config: ServiceConfig, engine_urls: list[str], token: str, *, told: bool = False
) -> AsyncIterator[RolloutService]:
    """A driver connected to the engines. `told`: by a trainer, as `Fleet` has it."""
    chat = ChatTokens.from_pretrained(config.model, history=config.rollout.history)
    async with open_episode_source(config) as episodes:
        at_once = episodes.at_once(config.rollout.concurrency)
        rollout = Rollout(
            Fleet(engine_urls, told=told),
            token,
            chat,
            episodes.make,
            config.rollout.model_copy(update={"concurrency": at_once}),
            config.waits,
            max_turns=config.environment.max_turns,
            seed=config.seed,
        )
        async with rollout as connected:
            driver = RolloutService(config, episodes.tasks, connected, episodes.metrics)
            keeping = asyncio.create_task(driver.keeper.run())
            try:
                yield driver
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
                await driver.close()
