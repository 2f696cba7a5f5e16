"""One attempt at a run: its parts, which of them are healthy, and why the first one that ends has ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.common.http import answered_status, healthy
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.health import has_begun
from megatron_empg.launch.liveness import LivenessProbe
from megatron_empg.launch.parts import EndedPart, Runner, RunPart
from megatron_empg.launch.restart import ALONE, AttemptEnd, EndCause

LIKELIER_CAUSES = (ExitCode.SERVICE, ExitCode.ENGINES, ExitCode.DRIVER, ExitCode.WATCHDOG, ExitCode.TRAINER)
"""When several parts end, the first of these is why the others did."""
FOLLOW_OTHERS = (ExitCode.DRIVER, ExitCode.TRAINER)
"""They may fail of the death of a part that is not seen yet."""
LOOK_FOR_CAUSE_SECONDS = 2.0
LOOK_FOR_NODES_SECONDS = 15.0
ASK_AGAIN_SECONDS = 5.0
"""Between two questions to one that has been healthy."""
ANSWER_SECONDS = 3.0
"""For its answer; nobody looks at the other parts meanwhile."""
MOST_AT_ONCE = 32
FEWEST_SILENCES = 3
"""Questions in a row without an answer, at least, until a part counts as frozen."""
NEVER_AGAIN = (ExitCode.PREFLIGHT, ExitCode.CONVERSION)
"""Parts whose failure ends the run, whatever their status."""


def _answers_soon(url: str, token: str, probe: LivenessProbe) -> bool:
    return probe.is_answered(answered_status(url, token, ANSWER_SECONDS, probe.path))


@dataclass(frozen=True)
class Senses:
    """How an attempt sees the world; a test has its own. `is_healthy` is asked with a URL and the run's token."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    is_healthy: Callable[[str, str], bool] = healthy
    has_begun: Callable[[str], bool] = has_begun
    answers: Callable[[str, str, LivenessProbe], bool] = _answers_soon
    """Whether one that was healthy answers at once, asked with a URL, the run's token and a probe."""


@dataclass
class Silence:
    """How long a part has left a probe unanswered. `since`: when it was first asked in vain."""

    since: float
    questions: int = 0


@dataclass
class RunAttempt:
    """What is known of the parts that were started. `token` is the run's; `watchdog_verdict` as a Site has it."""

    runner: Runner
    token: str
    watchdog_verdict: Callable[[], AttemptEnd | None]
    senses: Senses
    worked_before: frozenset[str] = frozenset()
    """Names of those that worked in an earlier attempt at the run. One of them that does not come up now met an
    accident, such as a port that another process took first: its settings are as they were."""
    parts: dict[str, RunPart] = field(default_factory=dict)
    """Those that were started, by name."""
    healthy: set[str] = field(default_factory=set)
    """Names of those that have answered; one without an address counts at once."""
    done: set[str] = field(default_factory=set)
    """Names of those that were to end, and did so with status 0."""
    begun: set[str] = field(default_factory=set)
    """Names of those whose heartbeat was once past the start; a rank that ends takes its heartbeat away."""
    worked: set[str] = field(default_factory=set)
    """Names of those that were healthy once, whatever became of them."""
    restarts: dict[str, list[int]] = field(default_factory=dict)
    """The newest checkpoint whenever a part alone was started again, by name."""
    _started: dict[str, float] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    """When parts that wait for it are started again."""
    _undecided: list[EndedPart] = field(default_factory=list)
    """Parts that have ended beside one that was told before them."""
    _silences: dict[str, dict[LivenessProbe, Silence]] = field(default_factory=dict)
    """By the part's name, of those of its probes that were not answered the last time."""
    _probed: dict[tuple[str, LivenessProbe], float] = field(default_factory=dict)
    """When a part's probe was sent the last time."""
    _asked_again: float = -1.0
    _nodes_asked: float = -1.0

    def start(self, part: RunPart) -> None:
        """Start a part. What an earlier attempt's ranks said of themselves is taken away, as they may have been
        killed."""
        if part.heartbeat:
            _remove(part.heartbeat)
            self.begun.discard(part.name)
        self.parts[part.name] = part
        self._started[part.name] = self.senses.clock()
        self.runner.start(part)

    def restart(self, name: str, checkpoint: int, wait: float) -> None:
        """Start that part alone once more, after `wait` seconds; what is left of it is ended now."""
        self.restarts.setdefault(name, []).append(checkpoint)
        self.runner.stop_part(self.parts[name])
        self.healthy.discard(name)
        self._silences.pop(name, None)
        self._due[name] = self._started[name] = self.senses.clock() + wait

    def restarts_of(self, name: str) -> Sequence[int]:
        """The newest checkpoint at each of its restarts."""
        return self.restarts.get(name, [])

    def _start_those_that_are_due(self) -> None:
        now = self.senses.clock()
        for name in [name for name, when in self._due.items() if when <= now]:
            del self._due[name]
            self.start(self.parts[name])

    def is_over(self, stage: Sequence[RunPart]) -> bool:
        """Whether those of the stage that end have ended well, or, where none ends, all are healthy."""
        ending = [part for part in stage if part.ends]
        if ending:
            return all(part.name in self.done for part in ending)
        return all(part.name in self.healthy for part in stage)

    def names_of_workers(self) -> frozenset[str]:
        """Those that have worked, in this attempt or an earlier one: they answered, or their ranks have begun.

        Of a part that has neither address nor heartbeat nobody knows."""
        answered = {name for name in self.worked if self.parts[name].addresses}
        return self.worked_before | answered | self.begun

    def has_ended_well(self, stage: Sequence[RunPart]) -> bool:
        """Whether those of the stage that end, of which there are some, have ended with status 0."""
        ending = [part for part in stage if part.ends]
        return bool(ending) and all(part.name in self.done for part in ending)

    def all_healthy(self) -> bool:
        """Whether every part that was started has been healthy."""
        return len(self.healthy) == len(self.parts)

    def look(self) -> AttemptEnd | None:
        """How the attempt ends now; None while it goes on."""
        self._note_begun()
        self._start_those_that_are_due()
        ended = [*self._undecided, *self._new_ends()]
        self._undecided = []
        if ended:
            return self._explain(ended)
        self._ask_health()
        for part in self.parts.values():
            if part.name not in self.healthy and self._seconds(part) > part.start_seconds:
                return self._late(part)
        frozen = self._frozen()
        if frozen:
            return self._explain(frozen)
        if self._is_time_for_nodes():
            lost = self.runner.lost_nodes()
            if lost:
                return _lost(lost)
        return None

    # --- what has ended, and why -------------------------------------------------------------------------------

    def _new_ends(self) -> list[EndedPart]:
        """Those that have ended since the last look, but for those that were to end and did so well."""
        found = []
        ended = self.runner.ended()
        while ended:
            if ended.part.ends and ended.status == 0:
                self.done.add(ended.part.name)
            else:
                found.append(ended)
            ended = self.runner.ended()
        return found

    def _explain(self, ended: list[EndedPart]) -> AttemptEnd:
        """Why the attempt ends: a lost node before anything else, the watchdog's word before the first death."""
        lost = self.runner.lost_nodes(ask_each=True)
        if lost:
            return _lost(lost)
        ended = ended + self._causes_behind(ended)
        if any(one.part.code is ExitCode.WATCHDOG for one in ended):
            verdict = self.watchdog_verdict()
            if verdict:
                return verdict
        # Nothing fails of the watchdog's death, so that of any other part counts before it.
        others = [one for one in ended if one.part.code is not ExitCode.WATCHDOG]
        first = min(others or ended, key=_likelihood)
        if others and all(self._may_come_back(one) for one in ended):
            self._undecided = [one for one in ended if one is not first]
            return self._end(EndCause.DIED, first.part, str(first), alone=True)
        cause = EndCause.FAULT if self._would_come_again(first) else EndCause.DIED
        return self._end(cause, first.part, str(first))

    def _may_come_back(self, ended: EndedPart) -> bool:
        """Whether that part alone could be started again, as it served before; so could a killed watchdog."""
        if ended.part.code is ExitCode.WATCHDOG:
            return ended.by_signal
        serves = ended.part.code in ALONE and not ended.part.ends
        return serves and ended.part.name in self.worked and not self._would_come_again(ended)

    def _late(self, part: RunPart) -> AttemptEnd:
        """It was not healthy in time: a fault, but for one that was healthy before, in this attempt or an earlier
        one."""
        says = f"{part.name} was not healthy after {part.start_seconds:.0f} s"
        if part.name in self.worked and part.code in ALONE:
            return self._end(EndCause.DIED, part, says, alone=True)
        cause = EndCause.DIED if part.name in self.worked_before else EndCause.FAULT
        return self._end(cause, part, says)

    def _causes_behind(self, ended: list[EndedPart]) -> list[EndedPart]:
        """Parts whose death may be why these have ended, and is seen only now."""
        found: list[EndedPart] = []
        until = self.senses.clock() + LOOK_FOR_CAUSE_SECONDS
        while all(one.part.code in FOLLOW_OTHERS for one in [*ended, *found]):
            if self.senses.clock() >= until:
                follows = any(one.part.code is ExitCode.TRAINER for one in [*ended, *found])
                return [*found, *self._silent()] if follows else found
            self.senses.sleep(0.2)
            found += self._new_ends()
        return found

    def _silent(self) -> list[EndedPart]:
        """Engines and services that were healthy and do not answer now: their processes live as if killed, or they
        are being started again."""
        found = []
        for part in self.parts.values():
            serves = part.code in (ExitCode.ENGINES, ExitCode.SERVICE) and part.name in self.worked
            if serves and not all(self.senses.is_healthy(url, self.token) for url in part.addresses):
                found.append(EndedPart(part, 0, unanswered="/health"))
        return found

    def _would_come_again(self, ended: EndedPart) -> bool:
        """Whether the same would happen after a restart."""
        if ended.part.code in NEVER_AGAIN or ended.status == LASTING_FAULT:
            return True
        if ended.by_signal or ended.status == 0 or ended.part.name in self.worked_before:
            return False
        return ended.part.code is ExitCode.WATCHDOG or not self._has_worked(ended.part)

    def _has_worked(self, part: RunPart) -> bool:
        if part.heartbeat:
            return part.name in self.begun or self.senses.has_begun(part.heartbeat)
        return part.name in self.worked

    def _end(self, cause: EndCause, part: RunPart, says: str, *, alone: bool = False) -> AttemptEnd:
        restarts = len(self.restarts_of(part.name))
        return AttemptEnd(cause, part.name, part.code, says=says, part_restarts=restarts, alone=alone)

    # --- what the parts are at ---------------------------------------------------------------------------------

    def _ask_health(self) -> None:
        """Of those that were not healthy yet; afterwards `_frozen` asks, and their end tells."""
        for part in self.parts.values():
            if part.name in self.healthy or part.name in self._due:
                continue
            if self._answers(part):
                self.healthy.add(part.name)
                self.worked.add(part.name)

    def _frozen(self) -> list[EndedPart]:
        """Those that were healthy and have not answered for longer than they may, though their processes live.

        Time counts from the first question that stayed without an answer, so that a supervisor which was held up
        itself takes nobody for frozen.
        """
        now = self.senses.clock()
        if now - self._asked_again < ASK_AGAIN_SECONDS:
            return []
        self._asked_again = now
        parts = [self.parts[name] for name in sorted(self.healthy)]
        asked = [(part, probe) for part in parts for probe in part.probes if self._is_due(part, probe, now)]
        if not asked:
            return []
        for part, probe in asked:
            self._probed[part.name, probe] = now
        with ThreadPoolExecutor(min(len(asked), MOST_AT_ONCE)) as pool:
            answers = list(pool.map(self._answers_at_once, asked))
        found: dict[str, EndedPart] = {}
        for (part, probe), answered in zip(asked, answers):  # noqa: B905 (Python 3.9)
            if answered:
                self._silences.get(part.name, {}).pop(probe, None)
            elif unanswered := self._note_silence(part, probe, now):
                found[part.name] = EndedPart(part, 0, unanswered=unanswered)
        return list(found.values())

    def _is_due(self, part: RunPart, probe: LivenessProbe, now: float) -> bool:
        """Whether the probe is to be sent at `now`."""
        if probe.silent_seconds == math.inf:
            return False
        return now - self._probed.get((part.name, probe), -math.inf) >= probe.every_seconds

    def _note_silence(self, part: RunPart, probe: LivenessProbe, now: float) -> str:
        """Count a question, asked at `now`, that was not answered. Returns what to say of it where the part counts
        as frozen by now, else an empty text."""
        silence = self._silences.setdefault(part.name, {}).setdefault(probe, Silence(now))
        silence.questions += 1
        seconds = self.senses.clock() - silence.since
        if seconds < probe.silent_seconds or silence.questions < FEWEST_SILENCES:
            return ""
        return f"{probe.path} for {seconds:.0f} s"

    def _answers_at_once(self, asked: tuple[RunPart, LivenessProbe]) -> bool:
        part, probe = asked
        return all(self.senses.answers(url, self.token, probe) for url in part.addresses)

    def _note_begun(self) -> None:
        """Of those that have a heartbeat, while it is there."""
        for part in self.parts.values():
            if part.heartbeat and part.name not in self.begun and self.senses.has_begun(part.heartbeat):
                self.begun.add(part.name)

    def _answers(self, part: RunPart) -> bool:
        return all(self.senses.is_healthy(url, self.token) for url in part.addresses)

    def _seconds(self, part: RunPart) -> float:
        """Since it was started."""
        return self.senses.clock() - self._started[part.name]

    def _is_time_for_nodes(self) -> bool:
        """Every LOOK_FOR_NODES_SECONDS."""
        now = self.senses.clock()
        if now - self._nodes_asked < LOOK_FOR_NODES_SECONDS:
            return False
        self._nodes_asked = now
        return True


def _lost(nodes: Sequence[str]) -> AttemptEnd:
    return AttemptEnd(EndCause.LOST_NODE, code=ExitCode.NODE, says=f"lost {' '.join(nodes)}")


def _likelihood(ended: EndedPart) -> tuple[int, int]:
    """Sorts the likeliest cause first."""
    code = ended.part.code
    if code is ExitCode.TRAINER and ended.status == LASTING_FAULT:
        # What it says of itself counts before a driver that crashed, though not before one that was killed.
        return LIKELIER_CAUSES.index(ExitCode.DRIVER), 1
    if code is ExitCode.DRIVER and not ended.by_signal and ended.status != LASTING_FAULT:
        return LIKELIER_CAUSES.index(ExitCode.DRIVER), 2
    return (LIKELIER_CAUSES.index(code), 0) if code in LIKELIER_CAUSES else (-1, 0)


def _remove(path: str) -> None:
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return
