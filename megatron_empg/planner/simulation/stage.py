"""Episodes at play: each on one engine, turn by turn, as far as the rollout service lets so many begin."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_empg.planner.simulation.engine import SimulatedEngine, TurnRequest
from megatron_empg.planner.simulation.events import EventQueue
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.planner.simulation.workload import EpisodePlan


@dataclass(eq=False)
class SimulatedGroup:
    """Episodes of one question."""

    number: int
    plans: list[EpisodePlan]
    keeps: bool
    """Whether the algorithm will train on it."""
    began: Callable[["SimulatedGroup"], None]
    """Told as its first episode begins to play."""
    over: Callable[["SimulatedGroup"], None]
    """Told when none of its episodes is left."""
    version: int | None = None
    """Of the weights in force as its first episode began; None before."""
    left: int = 0
    """Episodes that are not over."""
    given_up: bool = False
    episodes: list["SimulatedEpisode"] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(plan.tokens for plan in self.plans)


@dataclass
class SequenceMeter:
    """Measures over time how many sequences run in all, and for how long."""

    clock: EventQueue
    running: int = 0
    seconds: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """By the number of running sequences."""
    since: float = 0.0

    def change(self, by: int) -> None:
        self.settle()
        self.running += by

    def settle(self) -> None:
        """Count up to now."""
        now = self.clock.now
        self.seconds[self.running] += now - self.since
        self.since = now


class RolloutStage:
    """Engines, the service between them and the environments, and the episodes that wait to begin."""

    def __init__(self, clock: EventQueue, setting: SimulationSetting) -> None:
        self.clock, self.setting = clock, setting
        self.meter = SequenceMeter(clock)
        self.engines = [
            SimulatedEngine(clock, setting.rates, setting.slots, setting.cache_tokens, self.meter.change)
            for _ in range(setting.engines)
        ]
        self.version = 0
        """Of the weights that the engines hold."""
        self.under_way = 0
        self.started = 0
        self._waiting: deque[SimulatedEpisode] = deque()
        self._service_free = 0.0

    def play(self, group: SimulatedGroup) -> None:
        """Begin a group's episodes as there is room."""
        group.left = len(group.plans)
        group.episodes = [SimulatedEpisode(self, group, plan) for plan in group.plans]
        self.started += len(group.plans)
        self._waiting.extend(group.episodes)
        self.begin()

    def begin(self) -> None:
        """Let episodes begin that wait for others to end."""
        while self._waiting and self.under_way < self.setting.concurrency:
            episode = self._waiting.popleft()
            if not episode.group.given_up:
                self._begin(episode)

    def _begin(self, episode: "SimulatedEpisode") -> None:
        group = episode.group
        if group.version is None:
            group.version = self.version
            group.began(group)
        self.under_way += 1
        episode.begin()

    def give_up(self, group: SimulatedGroup) -> None:
        """End a group's episodes where they are."""
        group.given_up = True
        for episode in group.episodes:
            episode.give_up()
        self.begin()

    def serve(self, call: Callable[[], None]) -> None:
        """Have the service do its work on a turn, behind what it has to do already."""
        if not self.setting.service_seconds:
            call()
            return
        now = self.clock.now
        self._service_free = max(now, self._service_free) + self.setting.service_seconds
        self.clock.after(self._service_free - now, call)

    def pause(self) -> None:
        for engine in self.engines:
            engine.pause()

    def resume(self) -> None:
        """Go on with the next version of the weights."""
        self.version += 1
        for engine in self.engines:
            engine.resume()


class SimulatedEpisode:
    """One under way: service, engine, environment, turn after turn."""

    def __init__(self, stage: RolloutStage, group: SimulatedGroup, plan: EpisodePlan) -> None:
        self.stage, self.group, self.plan = stage, group, plan
        self.versions: list[int] = []
        """Of the weights in force as each turn ended."""
        self.began = 0.0
        self.ended: float | None = None
        self.engine: SimulatedEngine | None = None
        self._context = 0
        self._weights = 0
        self._request: TurnRequest | None = None

    def begin(self) -> None:
        """Begin on the engine with the fewest episodes."""
        self.began = self.stage.clock.now
        self.engine = min(self.stage.engines, key=lambda engine: engine.load)
        self.engine.load += 1
        self._weights = self.engine.weights
        self._next()

    def give_up(self) -> None:
        """Leave the engine, if it has begun and goes on."""
        if self.engine is None or self.ended is not None:
            return
        if self._request is not None:
            self.engine.cancel(self._request)
        self._leave()

    def _next(self) -> None:
        self.stage.serve(self._ask)

    def _ask(self) -> None:
        if self.ended is not None:
            return
        assert self.engine is not None, "it has begun"
        turn = self.plan.turns[len(self.versions)]
        kept = 0
        if not self.plan.anew:
            kept = self._context
        context = kept + turn.read
        cached = 0
        if self._weights == self.engine.weights:
            cached = kept - kept % self.engine.rates.block_tokens
        self._weights = self.engine.weights
        self._context = context + turn.own
        self._request = TurnRequest(context, context - cached, turn.own, self._sampled)
        self.engine.submit(self._request)

    def _sampled(self) -> None:
        if self.ended is not None:
            return
        assert self.engine is not None, "it has begun"
        self._request = None
        self._weights = self.engine.weights
        seconds = self.plan.turns[len(self.versions)].tool_seconds
        self.versions.append(self.stage.version)
        self.stage.clock.after(seconds, self._answered)

    def _answered(self) -> None:
        if self.ended is not None:
            return
        if len(self.versions) < len(self.plan.turns):
            self._next()
            return
        self._leave()
        self.group.left -= 1
        self.stage.begin()
        if self.group.left == 0:
            self.group.over(self.group)

    def _leave(self) -> None:
        assert self.engine is not None, "it has begun"
        self.ended = self.stage.clock.now
        self.engine.load -= 1
        self.stage.under_way -= 1
