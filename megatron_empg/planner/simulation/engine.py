"""An engine with finite slots: sequences that share its passes, and prompts that hold them up.

There is no event for a token. All running sequences advance together, one token per pass, and a pass lasts as long
as their number and their context make it, which grows by each token; so the end of each is known as a count of
passes, and what so many passes take has a closed form. Prompts are read in the order of their arrival, while
decoding stands still: in the end that is the same as sharing passes with them, which is what vLLM does.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from megatron_empg.planner.simulation.events import EventQueue


@dataclass(frozen=True)
class EngineRates:
    """How fast an engine is. A pass of n sequences with C tokens of context in all takes
    ``max(weights_seconds + context_seconds·C, sequence_seconds·n) + fixed_seconds``."""

    weights_seconds: float = 0.0
    """Reading the weights once."""
    context_seconds: float = 0.0
    """Reading the cache of one token of context."""
    sequence_seconds: float = 0.0
    """Arithmetic of one sequence's token."""
    fixed_seconds: float = 0.0
    """What every pass costs, however little it does."""
    read_seconds: float = 0.0
    """Reading one token of a prompt or an observation."""
    request_seconds: float = 0.0
    """What every request costs the engine beside its tokens."""
    block_tokens: int = 1
    """The prefix cache holds whole blocks of so many tokens; what lies in a part of one is read again."""

    def pass_seconds(self, sequences: int, context: float) -> float:
        """One token of each of so many sequences, with so much context in all."""
        memory = self.weights_seconds + self.context_seconds * context
        return max(memory, self.sequence_seconds * sequences) + self.fixed_seconds

    def passes_seconds(self, sequences: int, context: float, passes: float) -> float:
        """So many passes, whose first has so much context in all; each sequence grows by one token per pass.

        With n sequences and context C, passes bound by memory have C + n·(passes - 1)/2 in the mean.
        """
        bound = min(passes, self._bound_by_arithmetic(sequences, context))
        rest = passes - bound
        growing = self.weights_seconds + self.context_seconds * (context + sequences * (bound + (rest - 1) / 2))
        return bound * self.sequence_seconds * sequences + rest * growing + passes * self.fixed_seconds

    def passes_within(self, sequences: int, context: float, seconds: float) -> float:
        """The inverse of `passes_seconds`: how many passes so many seconds hold."""
        bound = self._bound_by_arithmetic(sequences, context)
        flat = self.sequence_seconds * sequences + self.fixed_seconds
        if bound == math.inf or seconds <= bound * flat:
            if not flat:
                return 0.0
            return seconds / flat
        rest = seconds - bound * flat
        # rest = first·passes + growth/2·passes², which is solved without a difference of nearly equal numbers.
        growth = self.context_seconds * sequences
        first = self.weights_seconds + self.fixed_seconds + self.context_seconds * context + growth * (bound - 0.5)
        root = math.sqrt(max(0.0, first * first + 2 * growth * rest))
        return bound + 2 * rest / (first + root)

    def _bound_by_arithmetic(self, sequences: int, context: float) -> float:
        """Passes until reading the cache takes longer than arithmetic."""
        spare = self.sequence_seconds * sequences - self.weights_seconds - self.context_seconds * context
        growth = self.context_seconds * sequences
        if growth == 0:
            if spare < 0:
                return 0.0
            return math.inf
        return max(0.0, spare / growth + 0.5)


@dataclass(eq=False)
class TurnRequest:
    """One turn of an episode. `context`: tokens before it, of which the engine must read `read` anew."""

    context: int
    read: int
    own: int
    """Tokens that will be sampled, at least one."""
    done: Callable[[], None]
    """Called once, as the last token is there; must not submit a request at once."""


class SimulatedEngine:
    """`slots`: sequences at once; `cache_tokens`: context that the running ones may have in all.

    A request waits for a slot and for room in the cache, first come first served. One that is larger than the
    whole cache runs alone.
    """

    def __init__(
        self, clock: EventQueue, rates: EngineRates, slots: int, cache_tokens: float, watch: Callable[[int], None]
    ) -> None:
        self.clock, self.rates, self.slots, self.cache_tokens = clock, rates, slots, cache_tokens
        self.watch = watch
        """Told by how much the number of running sequences changed."""
        self.load = 0
        """Episodes that were assigned to it and go on."""
        self.weights = 0
        """Counts the weights it was given: what its cache held before them is gone."""
        self.busy_seconds = 0.0
        self.running = 0
        self._context = 0.0
        self._reserved = 0.0
        self._passes = 0.0
        self._decoding: list[tuple[float, int, TurnRequest]] = []
        self._reading: deque[tuple[float, TurnRequest | None]] = deque()
        self._waiting: deque[TurnRequest] = deque()
        self._paused = False
        self._since = 0.0
        self._number = 0
        self._plans = 0

    def submit(self, request: TurnRequest) -> None:
        """Take a request, now or as soon as there is room."""
        self._advance()
        self._waiting.append(request)
        self._admit()
        self._plan()

    def pause(self) -> None:
        """Stand still; nothing is lost."""
        self._advance()
        self._paused = True
        self._plans += 1

    def resume(self) -> None:
        """Go on under new weights: the cache was cleared, so what runs is read again first."""
        self._since = self.clock.now
        self._paused = False
        self.weights += 1
        for request in self._waiting:
            request.read = request.context
        prompts = [request for _, request in self._reading if request is not None]
        self._reading = deque((self._reading_seconds(each, each.context), each) for each in prompts)
        lost = 0.0
        for end, _, request in self._decoding:
            lost += request.context + request.own - (end - self._passes)
        if lost:
            self._reading.appendleft((lost * self.rates.read_seconds, None))
        self._admit()
        self._plan()

    def cancel(self, request: TurnRequest) -> None:
        """Give up a request that is not done, wherever it is."""
        self._advance()
        if request in self._waiting:
            self._waiting.remove(request)
            return
        reading = deque(each for each in self._reading if each[1] is not request)
        decoding = [each for each in self._decoding if each[2] is not request]
        if len(decoding) < len(self._decoding):
            sampled = request.own - (self._end_of(request) - self._passes)
            self._context = max(0.0, self._context - request.context - sampled)
            heapq.heapify(decoding)
        elif len(reading) == len(self._reading):
            return
        self._decoding, self._reading = decoding, reading
        self._leave(request)
        self._admit()
        self._plan()

    def _end_of(self, request: TurnRequest) -> float:
        return next(end for end, _, each in self._decoding if each is request)

    def _leave(self, request: TurnRequest) -> None:
        """Its slot and its room are free."""
        self.running -= 1
        self.watch(-1)
        self._reserved -= request.context + request.own

    def _admit(self) -> None:
        """Give slots to those that wait, as far as there are slots and cache."""
        while self._waiting and self.running < self.slots and not self._paused:
            request = self._waiting[0]
            wanted = request.context + request.own
            if self.running and self._reserved + wanted > self.cache_tokens:
                return
            self._waiting.popleft()
            self.running += 1
            self.watch(1)
            self._reserved += wanted
            self._reading.append((self._reading_seconds(request, request.read), request))

    def _reading_seconds(self, request: TurnRequest, tokens: int) -> float:
        return tokens * self.rates.read_seconds + self.rates.request_seconds

    def _advance(self) -> None:
        """Do what was possible since the last time."""
        now = self.clock.now
        seconds, self._since = now - self._since, now
        if self._paused or not self.running:
            return
        self.busy_seconds += seconds
        if self._reading:
            left, request = self._reading[0]
            self._reading[0] = (left - seconds, request)
        elif self._decoding:
            passes = self.rates.passes_within(len(self._decoding), self._context, seconds)
            self._passes += passes
            self._context += passes * len(self._decoding)

    def _plan(self) -> None:
        """Ask to be called at the next change; what was asked before no longer counts."""
        self._plans += 1
        if self._paused:
            return
        if self._reading:
            seconds = max(0.0, self._reading[0][0])
        elif self._decoding:
            passes = max(0.0, self._decoding[0][0] - self._passes)
            seconds = max(0.0, self.rates.passes_seconds(len(self._decoding), self._context, passes))
        else:
            return
        plan = self._plans
        self.clock.after(seconds, lambda: self._change(plan))

    def _change(self, plan: int) -> None:
        if plan != self._plans:
            return
        self._advance()
        if self._reading:
            _, request = self._reading.popleft()
            if request is not None:
                self._begin(request)
        else:
            self._end()
        self._admit()
        self._plan()

    def _begin(self, request: TurnRequest) -> None:
        """Its prompt is read: it decodes from now on."""
        self._number += 1
        self._context += request.context
        heapq.heappush(self._decoding, (self._passes + request.own, self._number, request))

    def _end(self) -> None:
        """The sequence that is nearest to its end has come to it."""
        self._passes, _, request = heapq.heappop(self._decoding)
        self._leave(request)
        self._context = max(0.0, self._context - request.context - request.own) if self._decoding else 0.0
        request.done()
