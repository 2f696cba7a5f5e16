"""An interrupt at any moment of a run's start: a plain end, one line, no process left. With stand-in processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_empg.evaluate import launch as evaluation
from megatron_empg.launch import attempt, local_parts, local_runner
from megatron_empg.launch import local as launch
from megatron_empg.launch.attempt import RunAttempt, Senses
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.interrupts import Interrupted, Interrupts
from megatron_empg.launch.local_runner import LaunchError, processes_of
from megatron_empg.launch.parts import RunPart
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.heartbeat import Beat

RECIPE = Path("recipes/quickstart.yaml")
Started = list["subprocess.Popen[bytes]"]
STUBBORN = ["sh", "-c", "trap '' TERM; sleep 600 & wait; wait"]
"""It does not end when it is asked to, nor does what it has started."""
FORGETFUL = ["sh", "-c", "(trap '' TERM; exec sleep 600) & wait"]
"""It ends when it is asked to, what it has started does not."""
SLEEPING = ["sleep", "600"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Stand-ins in place of engines, driver and trainer; all processes that were started."""
    found: Started = []
    real = subprocess.Popen

    def popen(*arguments: Any, **settings: Any) -> "subprocess.Popen[bytes]":
        process = real(*arguments, **settings)
        if settings.get("start_new_session"):  # not a git that tells versions
            found.append(process)
        return process

    monkeypatch.setattr(local_runner.subprocess, "Popen", popen)
    monkeypatch.setattr(launch, "check_recipe", lambda recipe: None)
    monkeypatch.setattr(local_parts, "first_engine_gpu", lambda recipe, trains=True: None)
    monkeypatch.setattr(local_parts.commands, "engine", lambda *_: STUBBORN)
    monkeypatch.setattr(local_parts.commands, "driver", lambda *_: SLEEPING)
    monkeypatch.setattr(local_parts.commands, "trainer", lambda *_: SLEEPING)
    monkeypatch.setattr(local_runner, "GRACE_SECONDS", 0.5)
    yield found
    for number in alive(found, within=0):
        os.kill(number, signal.SIGKILL)


def engine(number: int, command: list[str]) -> RunPart:
    return RunPart(f"engine_{number}", command, ExitCode.ENGINES)


def alive(started: Started, within: float = 5.0) -> list[int]:
    """Processes of the stand-ins' groups that have not ended within so many seconds."""
    deadline = time.monotonic() + within
    while (found := members({process.pid for process in started})) and time.monotonic() < deadline:
        time.sleep(0.05)  # a kill takes a moment
    return found


def members(groups: set[int]) -> list[int]:
    """Living processes of the process groups."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def before(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function, with a signal just before it."""

    def signalled(*arguments: Any, **settings: Any) -> Any:
        signal.raise_signal(number)
        return function(*arguments, **settings)

    return signalled


def after(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function, with a signal before its result is handed over."""

    def signalled(*arguments: Any, **settings: Any) -> Any:
        result = function(*arguments, **settings)
        signal.raise_signal(number)
        return result

    return signalled


def train(folder: Path) -> None:
    launch.launch_training(RECIPE, [f"run.folder={folder}", "engines.count=2"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("moment", "where", "name", "processes"),
    [
        (after, local_runner.subprocess, "Popen", 1),  # the engine is there and nobody has it in a list
        (before, RunAttempt, "start", 2),  # of the driver, after two engines
        (after, RunAttempt, "start", 4),  # of the trainer
        (before, RunAttempt, "look", 4),
    ],
)
def test_while_engines_start_an_interrupt_ends_the_run_at_once(
    moment: Any, where: Any, name: str, processes: int, number: int, started: Started, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    real = getattr(where, name)
    once = moment(real, number)

    def called(*arguments: Any, **settings: Any) -> Any:
        of_the_run = name != "Popen" or "start_new_session" in settings  # not a git that tells versions
        due = of_the_run and len(started) == (processes if moment is before else processes - 1)
        return (once if due else real)(*arguments, **settings)

    monkeypatch.setattr(where, name, called)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run")
    assert ended.value.code == 128 + number
    assert len(started) == processes
    assert alive(started) == []
    printed = capsys.readouterr()
    assert printed.err == "interrupted: all processes have ended; the same command goes on after step 0\n"
    assert "report" not in printed.out
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    RunFolder(tmp_path / "run").open("a: 1").close()  # the folder is free
    assert not (tmp_path / "run/STOP").exists()


@pytest.mark.parametrize("moment", [before, after])
def test_an_interrupt_while_processes_end_leaves_none(
    moment: Any, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Impatient users press Ctrl-C again, here before or after each signal that ends a process."""
    monkeypatch.setattr(local_runner, "_signal_group", moment(local_runner._signal_group, signal.SIGTERM))
    monkeypatch.setattr(RunAttempt, "look", before(RunAttempt.look, signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run")
    assert ended.value.code == 130
    assert alive(started) == []


def test_what_a_process_leaves_behind_ends_too(started: Started, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").open("a: 1")
    with processes_of(folder) as runner:
        runner.start(engine(0, FORGETFUL))
        while len(members({process.pid for process in started})) < 2:
            time.sleep(0.05)
    assert alive(started) == []


def says(folder: Path, phase: str, step: int) -> None:
    """What the trainer's first rank would write."""
    heartbeat = RunFolder(folder).heartbeat(0)
    heartbeat.parent.mkdir(exist_ok=True)
    heartbeat.write_text(json.dumps(asdict(Beat(0, "node", 1, 1, step, phase, 0, "x", 900.0))), encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["start", "sync", "rollout", "evaluate"])
def test_before_the_first_step_an_interrupt_ends_the_run_at_once_though_all_serve(
    phase: str, number: int, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The first questions and the first evaluation take minutes, and the trainer looks for STOP after them."""
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        says(tmp_path / "run", phase, 0)
        if len(polls) == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(launch, "Senses", lambda: Senses(time.monotonic, sleep, lambda *_: True))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run")
    assert ended.value.code == 128 + number
    assert len(polls) == 3
    assert alive(started) == []
    assert not (tmp_path / "run/STOP").exists()
    printed = capsys.readouterr()
    assert "ending after this step" not in printed.out
    assert printed.err == "interrupted: all processes have ended; the same command goes on after step 0\n"


def test_in_a_step_the_first_interrupt_waits_for_its_end_and_the_second_does_not(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    polls: list[bool] = []

    def sleep(_: float) -> None:
        says(tmp_path / "run", "rollout", 1)
        polls.append((tmp_path / "run/STOP").exists())
        if len(polls) > 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(launch, "Senses", lambda: Senses(time.monotonic, sleep, lambda *_: True))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run")
    assert ended.value.code == 130
    assert polls == [False, False, True]
    assert alive(started) == []
    printed = capsys.readouterr()
    assert "ending after this step, with a checkpoint; interrupt again to end now" in printed.out
    assert printed.err == "interrupted: all processes have ended; the same command goes on after step 0\n"
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("moment", ["as its processes end", "as they start again"])
def test_in_a_restart_the_first_interrupt_ends_the_run(
    moment: str, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Though before it the first one would have waited for the running step."""
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 1:  # all serve
            says(tmp_path / "run", "rollout", 1)
        elif len(sleeps) == 2:
            started[-1].kill()
            started[-1].wait()
        elif len(started) > 4:
            signal.raise_signal(signal.SIGINT)

    if moment == "as its processes end":
        interrupted = before(local_runner._signal_group, signal.SIGINT)
        plain = local_runner._signal_group

        def signal_group(process: Any, number: int) -> None:
            # What the dead process left behind is killed earlier, while the others are still looked at.
            act = interrupted if number == signal.SIGTERM else plain
            act(process, number)

        monkeypatch.setattr(local_runner, "_signal_group", signal_group)

    def answers_in_the_first_start(*_: object) -> bool:
        return len(started) <= 4

    monkeypatch.setattr(attempt, "LOOK_FOR_CAUSE_SECONDS", 0.0)
    monkeypatch.setattr(launch, "Senses", lambda: Senses(time.monotonic, sleep, answers_in_the_first_start))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run")
    assert ended.value.code == 130
    assert len(started) == (4 if moment == "as its processes end" else 8)
    assert alive(started) == []
    assert not (tmp_path / "run/STOP").exists()
    printed = capsys.readouterr()
    assert printed.err == "interrupted: all processes have ended; the same command goes on after step 0\n"
    assert (tmp_path / "run/report.html").exists()


def test_an_evaluation_ends_by_an_interrupt_inside_of_the_event_loop(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(evaluation, "wait_until_healthy", lambda *_, **__: None)
    monkeypatch.setattr(evaluation, "_play", play)
    with pytest.raises(SystemExit) as ended:
        evaluation.launch_evaluation(RECIPE, [], None)
    assert ended.value.code == 130
    assert alive(started) == []
    assert capsys.readouterr().err == "interrupted: all processes have ended\n"


def test_a_failure_is_told_though_interrupts_come_too(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run").open("a: 1")
    monkeypatch.setattr(local_runner, "_signal_group", before(local_runner._signal_group, signal.SIGTERM))

    def fail() -> None:
        with processes_of(folder) as runner:
            runner.start(engine(1, STUBBORN))
            raise LaunchError("engine_0 ended with status 1")

    with pytest.raises(LaunchError, match="engine_0 ended"):
        fail()
    assert alive(started) == []


def test_what_is_held_back_comes_at_the_end_of_the_section() -> None:
    interrupts, reached = Interrupts(), []

    def section() -> None:
        with interrupts.held_back():
            signal.raise_signal(signal.SIGTERM)
            reached.append("its end")

    with interrupts.handled():
        with pytest.raises(Interrupted) as raised:
            section()
        signal.raise_signal(signal.SIGINT)  # the run is ending already
    assert (reached, raised.value.code) == (["its end"], 143)


def test_what_an_interrupt_could_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_runner, "_signal_group", lambda process, number: None)
    monkeypatch.setattr(local_runner, "GRACE_SECONDS", 0.2)
    folder = RunFolder(tmp_path / "run").open("a: 1")

    def run() -> None:
        with processes_of(folder, goes_on=False) as runner:
            runner.start(RunPart("engine_0", ("sleep", "5"), ExitCode.ENGINES))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit):
        run()
    assert capsys.readouterr().err.endswith("interrupted: all processes but engine_0 have ended\n")


def test_the_command_ends_without_a_traceback(tmp_path: Path) -> None:
    """`empg train` as a process, interrupted while it waits for an engine that never answers."""
    script = f"""
import sys
from megatron_empg.launch import commands, local, local_parts
from megatron_empg.launch.local_runner import LocalRunner
from megatron_empg.cli.app import main

start = LocalRunner.start

def tell(runner, part):
    start(runner, part)
    print(part.name, runner._children[-1].process.pid, flush=True)

LocalRunner.start = tell
local.check_recipe = lambda recipe: None
local_parts.first_engine_gpu = lambda recipe, trains=True: None
for name in ("engine", "driver", "trainer"):
    setattr(commands, name, lambda *_: ["sleep", "600"])
sys.argv = ["empg", "train", "{RECIPE}", "run.folder={tmp_path / "run"}"]
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline().startswith("run folder")
        started = dict(command.stdout.readline().split() for _ in range(3))
        assert list(started) == ["engine_0", "driver", "trainer"]
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert out == ""
    assert err == "interrupted: all processes have ended; the same command goes on after step 0\n"
    assert not any(psutil.pid_exists(int(pid)) for pid in started.values())
