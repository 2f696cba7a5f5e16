"""The supervisor over parts that are only names: in which order they start, why an attempt ends, what follows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.launch.attempt import Senses
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.liveness import LivenessProbe, engine_probes
from megatron_empg.launch.parts import EndedPart, RunPart, status_of
from megatron_empg.launch.restart import (
    MOST_PART_RESTARTS,
    AttemptEnd,
    EndCause,
    RestartAction,
    RestartDecision,
    RestartOptions,
)
from megatron_empg.launch.supervisor import Stage, StartRefused, Supervisor

KILLED = -9
ENGINES = RunPart("engines", ("engine",), ExitCode.ENGINES, addresses=("http://e:1", "http://e:2"))
DRIVER = RunPart("driver", ("driver",), ExitCode.DRIVER, addresses=("http://d:1",))
TRAINER = RunPart("trainer", ("torchrun",), ExitCode.TRAINER, ends=True, heartbeat="rank_0.json")
WATCHDOG = RunPart("watchdog", ("watchdog",), ExitCode.WATCHDOG)
SEARCH = RunPart("search", ("search",), ExitCode.SERVICE, addresses=("http://s:1",), start_seconds=300)
PREFLIGHT = RunPart("preflight", ("preflight",), ExitCode.PREFLIGHT, ends=True)
CONVERSION = RunPart("conversion", ("convert",), ExitCode.CONVERSION, ends=True)
RUN = [[CONVERSION], [PREFLIGHT], [SEARCH], [ENGINES, DRIVER, TRAINER, WATCHDOG]]

World = Callable[["Stand"], None]


@dataclass
class Stand:
    """Site, runner, clock and network of a run in which nothing happens but what `script` does at each look."""

    folder: Path
    script: Sequence[tuple[float, World]] = ()
    """What happens, and at which second of the run."""
    stages_of_run: Sequence[Stage] = field(default_factory=lambda: RUN)
    job: str = "7"
    most_restarts: int = 20
    nodes_left: bool = True
    queue: bool = True
    now: float = 0.0
    newest: int = 0
    done: bool = False
    asked: bool = False
    verdict: AttemptEnd | None = None
    lost: tuple[str, ...] = ()
    unhealthy: set[str] = field(default_factory=set)
    begun: bool = False
    """What rank 0's heartbeat says, which it takes away when it ends."""
    while_stopping: World | None = None
    while_choosing: World | None = None
    log: list[str] = field(default_factory=list)
    """What was started, stopped and said, in order."""
    running: dict[str, RunPart] = field(default_factory=dict)
    ends: list[EndedPart] = field(default_factory=list)
    probed: list[tuple[float, str]] = field(default_factory=list)
    """When which path was asked."""

    # the site

    @property
    def run_folder(self) -> Path:
        return self.folder

    def stages(self, number: int) -> Sequence[Stage]:
        self.log.append(f"attempt {number}")
        self.begun, self.lost = False, ()
        return self.stages_of_run

    def checkpoint(self) -> int:
        return self.newest

    def finished(self) -> bool:
        return self.done

    def asked_to_end(self) -> bool:
        return self.asked

    def watchdog_verdict(self) -> AttemptEnd | None:
        return self.verdict

    def means(self, end: AttemptEnd) -> RestartOptions:
        assert end.of_watchdog_alone or not self.running, "nodes are looked for when nothing runs on them"
        if self.while_choosing:
            self.while_choosing(self)
        return RestartOptions(self.nodes_left, self.queue, self.most_restarts)

    def serving(self) -> None:
        self.log.append("serving")

    def look(self) -> None:
        return

    def say(self, line: str) -> None:
        self.log.append(f"says: {line}")

    # the runner

    def start(self, part: RunPart) -> None:
        self.log.append(part.name)
        self.running[part.name] = part
        if part in (CONVERSION, PREFLIGHT) and "fails" not in part.command:
            self.end(part.name, 0)

    def ended(self) -> EndedPart | None:
        return self.ends.pop(0) if self.ends else None

    def lost_nodes(self, *, ask_each: bool = False) -> Sequence[str]:
        return self.lost

    def logs_kept_of(self, part: RunPart) -> str:
        return f"logs/{part.name}.1.log"

    def end_of_logs(self, part: RunPart) -> str:
        return f"the end of {part.name}'s logs"

    def stop_part(self, part: RunPart) -> None:
        if self.running.pop(part.name, None):
            self.log.append(f"stop {part.name}")

    def stop(self) -> None:
        if self.running and self.while_stopping:
            self.while_stopping(self)
        if self.running:
            self.log.append("stop")
        self.running, self.ends = {}, []

    # what happens

    def end(self, name: str, status: int) -> None:
        part = self.running.pop(name)
        self.ends.append(EndedPart(part, status))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [what for when, what in self.script if self.now - seconds < when <= self.now]
        for what in due:
            what(self)
        assert self.now < 10_000, "the run goes on for ever"

    def is_healthy(self, url: str, token: str) -> bool:
        assert token == "secret"
        return url not in self.unhealthy

    def answers(self, url: str, token: str, probe: LivenessProbe) -> bool:
        self.probed.append((self.now, probe.path))
        return self.is_healthy(url, token) and f"{url}{probe.path}" not in self.unhealthy

    def run(self) -> RestartDecision:
        senses = Senses(lambda: self.now, self.sleep, self.is_healthy, lambda heartbeat: self.begun, self.answers)
        decision = Supervisor(self, self, "secret", 1.0, senses).run()
        assert not self.running, "no part outlives the supervisor"
        return decision

    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text(encoding="utf-8").splitlines()


def ends(name: str, status: int, *, begun: bool = True) -> World:
    def happen(stand: Stand) -> None:
        stand.begun = begun
        if name in stand.running:
            stand.end(name, status)

    return happen


def finishes(stand: Stand) -> None:
    stand.done = True
    stand.end("trainer", 0)


def saves(step: int) -> World:
    def happen(stand: Stand) -> None:
        stand.newest = step

    return happen


def test_parts_start_in_order_each_stage_when_the_one_before_is_over(tmp_path: Path) -> None:
    stand = Stand(tmp_path, [(50, finishes), (10, lambda stand: stand.unhealthy.clear())])
    stand.unhealthy = {"http://s:1"}
    assert stand.run() == RestartDecision(RestartAction.DONE, "all steps are done")
    parts = ["conversion", "preflight", "search", "engines", "driver", "trainer", "watchdog"]
    assert stand.log == ["attempt 1", *parts, "serving", "stop"]
    assert stand.starts() == ["7 0"]


def test_all_serve_once_every_address_has_answered(tmp_path: Path) -> None:
    seen: list[bool] = []
    script = [
        (20, lambda stand: seen.append("serving" in stand.log)),
        (21, lambda stand: stand.unhealthy.clear()),
        (25, lambda stand: seen.append("serving" in stand.log)),
        (30, finishes),
    ]
    stand = Stand(tmp_path, script, unhealthy={"http://e:2"})
    stand.run()
    assert seen == [False, True]


@pytest.mark.parametrize("name", ["search", "engines", "driver"])
@pytest.mark.parametrize("status", [KILLED, -15, 1, 3, 0])
def test_one_that_serves_and_dies_once_all_work_is_started_again_alone(
    tmp_path: Path, name: str, status: int
) -> None:
    stand = Stand(tmp_path, [(20, saves(4)), (30, ends(name, status)), (60, finishes)])
    assert stand.run().action is RestartAction.DONE
    assert stand.starts() == ["7 0"]
    assert stand.log.count("trainer") == stand.log.count("stop") == 1
    assert stand.log.count(name) == 2
    (said,) = [line for line in stand.log if line.startswith("says")]
    assert said.startswith(f"says: {name} ")
    assert said.endswith(
        f"; it alone is started again in 1 s (restart 1 of it), the run goes on; logs in logs/{name}.1.log"
    )


def test_parts_that_die_together_are_each_started_again(tmp_path: Path) -> None:
    def both(stand: Stand) -> None:
        ends("engines", KILLED)(stand)
        ends("search", KILLED)(stand)

    stand = Stand(tmp_path, [(30, both), (60, finishes)])
    assert stand.run().action is RestartAction.DONE
    assert stand.starts() == ["7 0"]
    assert (stand.log.count("engines"), stand.log.count("search"), stand.log.count("trainer")) == (2, 2, 1)


def test_a_part_is_started_again_later_every_time_it_was_in_vain(tmp_path: Path) -> None:
    died: list[float] = []
    born: list[float] = []

    class Fragile(Stand):
        def start(self, part: RunPart) -> None:
            super().start(part)
            if part is ENGINES:
                born.append(self.now)

    def dies(stand: Stand) -> None:
        if "engines" in stand.running:
            died.append(stand.now)
            stand.end("engines", KILLED)

    stand = Fragile(tmp_path, [(second, dies) for second in range(20, 200, 20)])
    stand.script = [*stand.script, (110, saves(5)), (230, finishes)]
    assert stand.run().action is RestartAction.DONE
    waits = [after - before for before, after in zip(died, born[1:], strict=False)]
    assert waits[:5] == [1, 2, 4, 8, 16], "from one checkpoint"
    assert 1 <= waits[5] <= 2, "behind a new one"
    assert stand.starts() == ["7 0"]


def test_a_part_that_dies_again_and_again_gives_way_to_a_new_start(tmp_path: Path) -> None:
    stand = Stand(tmp_path, [(second, ends("engines", KILLED)) for second in range(20, 2000, 40)])
    decision = stand.run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, 19)
    assert len(stand.starts()) == 3
    assert stand.log.count("engines") == 3 * (1 + MOST_PART_RESTARTS)


def test_a_part_that_is_not_healthy_again_in_time_is_started_once_more(tmp_path: Path) -> None:
    slow = replace(ENGINES, start_seconds=60)

    def dies_for_long(stand: Stand) -> None:
        stand.unhealthy = {"http://e:1"}
        stand.end("engines", KILLED)

    script = [(30, dies_for_long), (110, lambda stand: stand.unhealthy.clear()), (150, finishes)]
    stand = Stand(tmp_path, script, stages_of_run=[[slow, DRIVER, TRAINER]])
    assert stand.run().action is RestartAction.DONE
    assert stand.log.count("engines") == 3
    assert "stop engines" in stand.log, "the second one lived"
    assert any("engines was not healthy after 60 s; it alone" in line for line in stand.log)
    assert stand.starts() == ["7 0"]


CORE_SILENCE = 100
"""Seconds; longer than a server may be silent."""


def frozen_run(folder: Path, *script: tuple[float, World], seconds: float = 30) -> Stand:
    watched = replace(ENGINES, probes=engine_probes(seconds, CORE_SILENCE))
    return Stand(folder, script, stages_of_run=[[watched, DRIVER, TRAINER]])


def freezes(stand: Stand) -> None:
    stand.unhealthy = {"http://e:2"}


def core_freezes(stand: Stand) -> None:
    """The server answers its own health, and nothing for which it asks the core."""
    stand.unhealthy = {"http://e:2/weight_info"}


def test_a_part_that_answers_no_more_is_ended_hard_and_started_again_alone(tmp_path: Path) -> None:
    thaws = (70, lambda stand: stand.unhealthy.clear())
    stand = frozen_run(tmp_path, (30, freezes), thaws, (100, finishes))
    assert stand.run().action is RestartAction.DONE
    assert stand.log.count("engines") == 2
    assert stand.log.index("stop engines") < len(stand.log) - 1 - stand.log[::-1].index("engines")
    (said,) = [line for line in stand.log if "answers no more" in line]
    found = re.search(r"engines answers no more \(no answer to /health for (\d+) s\); it alone is started", said)
    assert found is not None, said
    assert 30 <= int(found[1]) <= 40
    assert stand.starts() == ["7 0"]


def test_an_engine_whose_core_alone_is_frozen_is_started_again_after_the_core_s_own_time(tmp_path: Path) -> None:
    engines_started: list[int] = []

    def counts(stand: Stand) -> None:
        engines_started.append(stand.log.count("engines"))

    early, late = 30 + CORE_SILENCE - 5, 30 + CORE_SILENCE + 45
    thaws = (late + 1, lambda stand: stand.unhealthy.clear())
    script = [(30, core_freezes), (early, counts), (late, counts), thaws, (300, finishes)]
    stand = frozen_run(tmp_path, *script)
    assert stand.run().action is RestartAction.DONE
    assert engines_started == [1, 2], "not before the longest weight transfer is over"
    assert any("(no answer to /weight_info for 1" in line for line in stand.log)
    assert stand.starts() == ["7 0"]


def test_a_core_is_asked_less_often_than_its_server(tmp_path: Path) -> None:
    stand = frozen_run(tmp_path, (100, finishes))
    assert stand.run().action is RestartAction.DONE
    server = sorted({when for when, path in stand.probed if path == "/health"})
    core = sorted({when for when, path in stand.probed if path == "/weight_info"})
    assert all(later - earlier >= 20 for earlier, later in pairwise(core))
    assert 4 <= len(core) <= len(server) / 3


def test_another_status_than_200_is_an_answer_of_a_core_and_none_of_a_server() -> None:
    health, core = engine_probes(60, 660)
    assert [core.is_answered(status) for status in (200, 404, 500, None)] == [True, True, True, False]
    assert [health.is_answered(status) for status in (200, 404, 500, None)] == [True, False, False, False]


def test_a_core_that_answers_again_after_a_weight_transfer_is_left_alone(tmp_path: Path) -> None:
    script = []
    for second in range(30, 600, CORE_SILENCE + 20):
        script += [(second, core_freezes), (second + CORE_SILENCE - 10, lambda stand: stand.unhealthy.clear())]
    stand = frozen_run(tmp_path, *script, (800, finishes))
    assert stand.run().action is RestartAction.DONE
    assert stand.log.count("engines") == 1


def test_a_part_that_is_silent_for_less_than_its_time_is_left_alone(tmp_path: Path) -> None:
    script = []
    for second in range(30, 300, 40):
        script += [(second, freezes), (second + 20, lambda stand: stand.unhealthy.clear())]
    stand = frozen_run(tmp_path, *script, (400, finishes))
    assert stand.run().action is RestartAction.DONE
    assert stand.log.count("engines") == 1


def test_a_supervisor_that_was_held_up_takes_nobody_for_frozen(tmp_path: Path) -> None:
    """Time passes between two of its looks; one question without an answer is not enough."""

    def sleeps(stand: Stand) -> None:
        stand.now += 500
        freezes(stand)

    stand = frozen_run(tmp_path, (30, sleeps), (536, lambda stand: stand.unhealthy.clear()), (600, finishes))
    assert stand.run().action is RestartAction.DONE
    assert stand.log.count("engines") == 1


@pytest.mark.parametrize("name", ["trainer"])
@pytest.mark.parametrize("status", [KILLED, -15, 1, 3])
def test_a_part_that_dies_once_all_work_restarts_the_run(tmp_path: Path, name: str, status: int) -> None:
    stand = Stand(tmp_path, [(20, saves(4)), (30, ends(name, status)), (60, finishes)])
    assert stand.run().action is RestartAction.DONE
    assert stand.starts() == ["7 0", "7 4"]
    (said,) = [line for line in stand.log if line.startswith("says")]
    assert said.startswith(f"says: {name} ")
    assert "going on from step 4 (restart 1 of at most 20)" in said
    assert said.endswith(f"; logs in logs/{name}.1.log")
    assert stand.log.index("stop") < stand.log.index(said) < stand.log.index("attempt 2")


@pytest.mark.parametrize(("part", "code"), [("search", 13), ("engines", 14), ("driver", 15), ("trainer", 16)])
def test_an_error_of_the_project_s_own_is_never_retried(tmp_path: Path, part: str, code: int) -> None:
    decision = Stand(tmp_path, [(30, ends(part, LASTING_FAULT))]).run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, code)
    assert decision.why == f"{part} ended by its own error"
    assert decision.logs == f"the end of {part}'s logs"


@pytest.mark.parametrize(("part", "url", "code"), [("engines", "http://e:2", 14), ("driver", "http://d:1", 15)])
def test_one_that_ends_by_itself_before_it_was_healthy_is_set_up_wrongly(
    tmp_path: Path, part: str, url: str, code: int
) -> None:
    stand = Stand(tmp_path, [(30, ends(part, 1))], unhealthy={url})
    assert stand.run().code == code


SERVED = {"http://e:1", "http://e:2", "http://d:1"}


@pytest.mark.parametrize("part", ["engines", "driver", "trainer"])
def test_one_that_worked_before_and_does_not_come_up_met_an_accident(tmp_path: Path, part: str) -> None:
    """Such as a port that another process took first."""

    def goes_down(stand: Stand) -> None:
        if part != "trainer":
            stand.unhealthy |= SERVED

    def fails_to_start(stand: Stand) -> None:
        ends(part, 1, begun=False)(stand)
        stand.unhealthy.clear()
        stand.while_choosing = None

    script = [(20, saves(4)), (30, ends("trainer", KILLED)), (60, fails_to_start), (90, finishes)]
    stand = Stand(tmp_path, script, while_choosing=goes_down)
    assert stand.run().action is RestartAction.DONE
    assert stand.starts() == ["7 0", "7 4", "7 4"]


@pytest.mark.parametrize("part", ["engines", "driver", "trainer"])
def test_one_that_worked_before_and_never_comes_up_ends_the_run_with_its_logs(tmp_path: Path, part: str) -> None:
    def goes_down(stand: Stand) -> None:
        if part != "trainer":
            stand.unhealthy |= SERVED

    fails = ends(part, 1, begun=False)
    script = [(20, saves(4)), (30, ends("trainer", KILLED)), (60, fails), (90, fails), (120, fails)]
    decision = Stand(tmp_path, script, while_choosing=goes_down).run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, ExitCode.RESTARTS)
    assert decision.why.endswith("; two restarts brought no checkpoint after step 4: giving up")
    assert decision.logs == f"the end of {part}'s logs"


def test_a_trainer_that_ends_by_itself_before_it_began_is_set_up_wrongly(tmp_path: Path) -> None:
    decision = Stand(tmp_path, [(30, ends("trainer", 1, begun=False))]).run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, 16)


@pytest.mark.parametrize("status", [1, 3])
def test_a_trainer_that_began_and_took_its_heartbeat_away_as_it_crashed_is_restarted(
    tmp_path: Path, status: int
) -> None:
    def begins(stand: Stand) -> None:
        stand.begun = True

    stand = Stand(tmp_path, [(20, begins), (30, ends("trainer", status, begun=False)), (60, finishes)])
    assert stand.run().action is RestartAction.DONE
    assert stand.starts() == ["7 0", "7 0"]


def test_a_trainer_that_never_began_is_set_up_wrongly_after_a_restart_too(tmp_path: Path) -> None:
    script = [(30, ends("engines", KILLED, begun=False)), (60, ends("trainer", 1, begun=False))]
    stand = Stand(tmp_path, script, unhealthy=set(SERVED), while_choosing=lambda stand: stand.unhealthy.clear())
    decision = stand.run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, ExitCode.TRAINER)
    assert len(stand.starts()) == 2


def test_a_watchdog_that_fails_by_itself_ends_the_run_after_a_restart_too(tmp_path: Path) -> None:
    script = [(20, saves(4)), (30, ends("trainer", KILLED)), (60, ends("watchdog", 1))]
    decision = Stand(tmp_path, script).run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, ExitCode.WATCHDOG)


@pytest.mark.parametrize("part", ["engines", "driver", "trainer"])
def test_one_that_is_killed_while_it_starts_is_restarted(tmp_path: Path, part: str) -> None:
    everything = {"http://e:1", "http://e:2", "http://d:1"}
    script = [(30, ends(part, KILLED, begun=False)), (35, lambda stand: stand.unhealthy.clear()), (60, finishes)]
    stand = Stand(tmp_path, script, unhealthy=everything)
    assert stand.run().action is RestartAction.DONE
    assert len(stand.starts()) == 2


def test_one_that_is_killed_in_every_start_is_given_up_after_the_third(tmp_path: Path) -> None:
    script = [(second, ends("trainer", KILLED)) for second in (10, 30, 50, 70)]
    stand = Stand(tmp_path, script)
    decision = stand.run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, 19)
    assert decision.logs == "the end of trainer's logs"
    assert stand.starts() == ["7 0"] * 3


@pytest.mark.parametrize(
    ("part", "code", "status"),
    [(PREFLIGHT, 11, 1), (PREFLIGHT, 11, KILLED), (CONVERSION, 12, 1), (CONVERSION, 12, KILLED)],
)
def test_checks_and_conversion_that_fail_end_the_run(
    tmp_path: Path, part: RunPart, code: int, status: int
) -> None:
    failing = RunPart(part.name, ("fails",), part.code, ends=True)
    stages = [[failing], [ENGINES, DRIVER, TRAINER]]
    stand = Stand(tmp_path, [(5, ends(part.name, status))], stages_of_run=stages)
    decision = stand.run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, code)
    assert "engines" not in stand.log


def test_a_service_that_does_not_become_healthy_in_time_ends_the_run(tmp_path: Path) -> None:
    stand = Stand(tmp_path, unhealthy={"http://s:1"})
    decision = stand.run()
    assert (decision.code, decision.why) == (13, "search was not healthy after 300 s")
    assert 300 < stand.now < 310


@pytest.mark.parametrize("part", ["search", "engines", "driver"])
@pytest.mark.parametrize("follower", ["trainer", "driver"])
@pytest.mark.parametrize("seconds", [0, 1.5])
def test_who_died_first_is_named_not_who_failed_of_it(
    tmp_path: Path, part: str, follower: str, seconds: float
) -> None:
    """Even when the one that failed of it is seen first, with an error of the project's own."""
    script = [(30, ends(follower, LASTING_FAULT)), (30 + seconds, ends(part, KILLED)), (60, finishes)]
    stand = Stand(tmp_path, script)
    if part == follower:
        return
    assert stand.run().action is RestartAction.DONE
    assert any(line.startswith(f"says: {part} was ended by SIGKILL") for line in stand.log)


def test_of_driver_and_trainer_the_one_that_names_a_lasting_fault_is_the_cause(tmp_path: Path) -> None:
    def both_end(stand: Stand) -> None:
        stand.end("driver", 1)
        stand.end("trainer", LASTING_FAULT)

    decision = Stand(tmp_path, [(10, both_end)], begun=True).run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, ExitCode.TRAINER)


def test_an_engine_that_answers_no_more_is_why_the_trainer_failed(tmp_path: Path) -> None:
    """Its core died, and its server has not ended yet."""

    def breaks(stand: Stand) -> None:
        stand.unhealthy = {"http://e:2"}
        stand.end("trainer", LASTING_FAULT)

    stand = Stand(tmp_path, [(30, breaks), (35, lambda stand: stand.unhealthy.clear()), (60, finishes)])
    assert stand.run().action is RestartAction.DONE
    assert any(line.startswith("says: engines answers no more") for line in stand.log)


def test_an_engine_that_is_being_started_again_is_why_the_trainer_failed(tmp_path: Path) -> None:
    """It loads for minutes, and the trainer's own time is over before."""

    def dies_for_long(stand: Stand) -> None:
        stand.unhealthy = {"http://e:1"}
        stand.end("engines", KILLED)

    def fails(stand: Stand) -> None:
        stand.end("trainer", LASTING_FAULT)

    script = [(20, saves(4)), (30, dies_for_long), (200, fails)]
    script += [(210, lambda stand: stand.unhealthy.clear()), (400, finishes)]
    stand = Stand(tmp_path, script, begun=True)
    assert stand.run().action is RestartAction.DONE
    assert stand.starts() == ["7 0", "7 4"]
    why = "says: engines answers no more (no answer to /health); going on from step 4"
    assert any(line.startswith(why) for line in stand.log)


def test_a_watchdog_that_is_killed_comes_back_beside_a_run_that_goes_on(tmp_path: Path) -> None:
    stand = Stand(tmp_path, [(30, ends("watchdog", KILLED)), (60, finishes)])
    assert stand.run().action is RestartAction.DONE
    assert stand.log.count("watchdog") == 2
    assert stand.log.count("trainer") == stand.log.count("stop") == 1
    assert stand.starts() == ["7 0"]


@pytest.mark.parametrize("part", ["trainer", "engines", "driver", "search"])
@pytest.mark.parametrize("seconds", [0, 1.5])
def test_a_part_that_dies_with_the_watchdog_is_started_again_as_it_is(
    tmp_path: Path, part: str, seconds: float
) -> None:
    script = [(30, ends(part, KILLED)), (30 + seconds, ends("watchdog", KILLED)), (60, finishes)]
    stand = Stand(tmp_path, script)
    assert stand.run().action is RestartAction.DONE
    assert any(line.startswith(f"says: {part} was ended by SIGKILL; ") for line in stand.log)
    assert stand.starts() == (["7 0", "7 0"] if part == "trainer" else ["7 0"])
    assert stand.log.count(part) == stand.log.count("watchdog") == 2


def test_a_watchdog_that_fails_of_itself_ends_the_run(tmp_path: Path) -> None:
    assert Stand(tmp_path, [(30, ends("watchdog", 1))]).run().code is ExitCode.WATCHDOG


@pytest.mark.parametrize(
    ("cause", "nodes", "action"),
    [
        (EndCause.HUNG, True, RestartAction.REQUEUE),
        (EndCause.UNFIT_NODE, True, RestartAction.DONE),
        (EndCause.UNFIT_NODE, False, RestartAction.REQUEUE),
    ],
)
@pytest.mark.parametrize("status", [17, KILLED])
def test_what_the_watchdog_says_counts_whatever_its_status(
    tmp_path: Path, cause: EndCause, nodes: bool, action: RestartAction, status: int
) -> None:
    """Slurm may tell that of a task which was killed when the one with the verdict ended."""
    verdict = AttemptEnd(cause, code=ExitCode.WATCHDOG, says="watchdog: so it is")
    stand = Stand(tmp_path, [(30, ends("watchdog", status)), (60, finishes)], nodes_left=nodes, verdict=verdict)
    decision = stand.run()
    assert decision.action is action
    assert any("watchdog: so it is" in line for line in [*stand.log, decision.why])


def test_a_rank_that_ends_for_a_gpu_that_fails_gives_way_to_the_watchdog_s_word(tmp_path: Path) -> None:
    verdict = AttemptEnd(EndCause.UNFIT_NODE, code=ExitCode.WATCHDOG, says="watchdog: unfit")
    script = [(30, ends("trainer", LASTING_FAULT)), (31.5, ends("watchdog", 17))]
    assert Stand(tmp_path, script, nodes_left=False, verdict=verdict).run().action is RestartAction.REQUEUE


def loses(*nodes: str) -> World:
    def happen(stand: Stand) -> None:
        stand.lost = nodes

    return happen


@pytest.mark.parametrize("nodes_left", [True, False])
@pytest.mark.parametrize("seen_by", [None, "trainer", "engines", "watchdog"])
def test_a_lost_node_is_the_cause_of_whatever_ends(tmp_path: Path, nodes_left: bool, seen_by: str | None) -> None:
    script = [(30, loses("node2")), (90, finishes)]
    if seen_by:
        script.append((31, ends(seen_by, LASTING_FAULT)))
    stand = Stand(tmp_path, script, nodes_left=nodes_left)
    decision = stand.run()
    assert decision.action is (RestartAction.DONE if nodes_left else RestartAction.REQUEUE)
    assert any("lost node2" in line for line in [*stand.log, decision.why])


@pytest.mark.parametrize(("queue", "action"), [(True, RestartAction.REQUEUE), (False, RestartAction.DONE)])
def test_a_run_that_a_signal_stopped_goes_on_at_its_next_turn(
    tmp_path: Path, queue: bool, action: RestartAction
) -> None:
    def stops(stand: Stand) -> None:
        stand.newest = 3
        stand.end("trainer", 0)

    assert Stand(tmp_path, [(20, asks), (30, stops)], queue=queue).run().action is action


def asks(stand: Stand) -> None:
    """A signal comes, as a job's does."""
    stand.asked = True
    makes_stop(stand)


def makes_stop(stand: Stand) -> None:
    (stand.folder / "STOP").touch()


@pytest.mark.parametrize("moment", ["while_stopping", "while_choosing"])
def test_a_signal_before_a_new_start_is_seen(tmp_path: Path, moment: str) -> None:
    stand = Stand(tmp_path, [(30, ends("trainer", KILLED))])
    setattr(stand, moment, asks)
    assert stand.run().action is RestartAction.REQUEUE
    assert stand.starts() == ["7 0"]


@pytest.mark.parametrize("moment", [None, "while_stopping", "while_choosing"])
def test_the_file_stop_ends_a_run_in_the_place_of_a_new_start(tmp_path: Path, moment: str | None) -> None:
    """Not even a queue starts it again."""
    script = [(30, ends("trainer", KILLED))]
    if moment is None:
        script.append((20, makes_stop))
    stand = Stand(tmp_path, script, newest=4)
    if moment:
        setattr(stand, moment, makes_stop)
    decision = stand.run()
    assert (decision.action, decision.in_order) == (RestartAction.DONE, False)
    assert decision.why.startswith("trainer was ended by SIGKILL; not started again, as its end was asked for")
    assert decision.why.endswith("newest checkpoint: step 4")
    assert decision.logs == "the end of trainer's logs"
    assert stand.starts() == ["7 4"]


@pytest.mark.parametrize("name", ["engines", "driver", "search"])
def test_one_that_serves_comes_back_alone_until_the_step_before_the_file_stop_is_done(
    tmp_path: Path, name: str
) -> None:
    def stops(stand: Stand) -> None:
        stand.newest = 5
        stand.end("trainer", 0)

    stand = Stand(tmp_path, [(20, makes_stop), (30, ends(name, KILLED)), (60, stops)], newest=4)
    assert stand.run() == RestartDecision(RestartAction.DONE, "stopped after step 5")
    assert stand.starts() == ["7 4"]
    assert (stand.log.count(name), stand.log.count("trainer")) == (2, 1)


@pytest.mark.parametrize("part", ["engines", "driver", "search", "watchdog"])
@pytest.mark.parametrize("status", [KILLED, LASTING_FAULT])
def test_a_part_that_ends_as_the_trainer_has_done_all_steps_changes_nothing(
    tmp_path: Path, part: str, status: int
) -> None:
    def both(stand: Stand) -> None:
        ends(part, status)(stand)
        finishes(stand)

    stand = Stand(tmp_path, [(30, both)])
    assert stand.run() == RestartDecision(RestartAction.DONE, "all steps are done")
    assert stand.starts() == ["7 0"]


def test_engines_that_do_not_become_healthy_in_time_end_the_run_with_their_code(tmp_path: Path) -> None:
    slow = replace(ENGINES, start_seconds=600)
    stand = Stand(tmp_path, stages_of_run=[[slow, DRIVER, TRAINER]], unhealthy={"http://e:2"})
    decision = stand.run()
    assert (decision.code, decision.why) == (14, "engines was not healthy after 600 s")


def test_a_run_that_the_file_stop_ended_is_done(tmp_path: Path) -> None:
    assert Stand(tmp_path, [(30, ends("trainer", 0))]).run() == RestartDecision(
        RestartAction.DONE, "stopped after step 0"
    )


def test_what_cannot_be_prepared_ends_the_run(tmp_path: Path) -> None:
    class Refusing(Stand):
        def stages(self, number: int) -> Sequence[Stage]:
            raise StartRefused(ExitCode.CONFIGURATION, "another process trains here")

    decision = Refusing(tmp_path).run()
    assert (decision.action, decision.code) == (RestartAction.GIVE_UP, 10)
    assert decision.why == "another process trains here"


def test_a_requeued_job_whose_restarts_are_used_up_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("6 0\n7 4\n7 4\n7 4\n", encoding="utf-8")
    stand = Stand(tmp_path, newest=4)
    decision = stand.run()
    assert (decision.action, decision.code, stand.log) == (RestartAction.GIVE_UP, 19, [])
    assert len(stand.starts()) == 4


def test_the_starts_of_other_jobs_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("6 0\n6 0\n6 0\ntorn", encoding="utf-8")
    assert Stand(tmp_path, [(50, finishes)]).run().action is RestartAction.DONE


def test_parts_are_ended_whatever_goes_wrong(tmp_path: Path) -> None:
    def fails(stand: Stand) -> None:
        raise KeyboardInterrupt

    stand = Stand(tmp_path, [(30, fails)])
    with pytest.raises(KeyboardInterrupt):
        stand.run()
    assert stand.running == {}


@pytest.mark.parametrize(
    ("code", "status"), [(0, 0), (1, 1), (78, 78), (137, -9), (143, -15), (255, 255), (-9, -9)]
)
def test_a_status_above_128_is_a_signal(code: int, status: int) -> None:
    assert status_of(code) == status


@pytest.mark.parametrize(
    ("status", "said"),
    [(-9, "x was ended by SIGKILL"), (3, "x ended with status 3"), (78, "x ended by its own error")],
)
def test_an_end_says_what_it_was(status: int, said: str) -> None:
    assert str(EndedPart(RunPart("x", (), ExitCode.DRIVER), status)) == said
