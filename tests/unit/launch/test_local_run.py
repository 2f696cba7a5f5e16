"""`empg train` with stand-ins for its processes: whichever is killed, it goes on and ends as if none had been."""

import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_empg.common.errors import LASTING_FAULT, EmpgError
from megatron_empg.common.jsonl import read_lines
from megatron_empg.launch import attempt, local_parts, local_runner
from megatron_empg.launch import local as launch
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.interrupts import Interrupted
from megatron_empg.launch.local_runner import LaunchError, LocalRunner
from megatron_empg.launch.parts import RunPart
from megatron_empg.run.folder import RunFolder

STEPS = 6
SERVER = """
import http.server, sys

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        return

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
TRAINER = """
import atexit, json, pathlib, socket, sys, time

run, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])

def wait_for_the_others():
    for url in sys.argv[3:]:
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(url.split(":")[-1]))).close()
                break
            except OSError:
                time.sleep(0.05)

wait_for_the_others()
done = max([int(path.name[5:]) for path in run.glob("checkpoints/step_*")], default=0)
(run / "heartbeats").mkdir(exist_ok=True)
atexit.register((run / "heartbeats/rank_0.json").unlink)

def wait_until_shown(step):
    shown = run / "shown"
    while not shown.exists() or int(shown.read_text() or 0) < step:
        time.sleep(0.02)

def say(step, phase):
    place = {"rank": 0, "node": "here", "pid": 1, "beat": 1, "step": step, "phase": phase, "collectives": 0}
    (run / "heartbeats/rank_0.json").write_text(json.dumps({**place, "where": "x", "limit": 900.0}))

say(done, "sync")
path = run / "metrics.jsonl"
lines = path.read_text().splitlines()[:done] if path.exists() else []
path.write_text("".join(line + chr(10) for line in lines))
for step in range(done + 1, steps + 1):
    say(step, "rollout")
    wait_for_the_others()
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "train/reward": 1 / step}) + chr(10))
    (run / "writing").mkdir(exist_ok=True)
    (run / "writing").rename(run / f"checkpoints/step_{step:06d}")
    wait_until_shown(step)
    if (run / "STOP").exists():
        sys.exit()
(run / "policy").mkdir(exist_ok=True)
(run / "exported.json").write_text(json.dumps({"step": steps}))
"""
PATIENT_TRAINER = TRAINER.replace("socket.create_connection", "answered").replace(
    "def wait_for_the_others",
    """def answered(address):
    with socket.create_connection(address) as connection:
        connection.settimeout(0.5)
        connection.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
        if not connection.recv(1):
            raise OSError
    return connection

def wait_for_the_others""",
)
"""Waits for an answer, which a frozen server does not give."""
SHOW = launch.StepsDisplay.show
Happening = Callable[[], None]


def trainer(script: str) -> Callable[..., list[str]]:
    """A trainer's command that runs this script."""

    def command(python: str, plan: Any, place: Any, driver: str, engines: list[str]) -> list[str]:
        return [python, "-S", "-c", script, plan.run_folder, str(plan.steps), driver, *engines]

    return command


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Processes that start at once and train nothing; none of them may be left when a test has ended."""
    # multiprocessing's resource tracker, begun by another test of this process, lives as long as the process.
    others = set(psutil.Process().children())

    def serve(python: str, first: Any, host_or_plan: Any, *rest: Any) -> list[str]:
        port = next(word for word in (host_or_plan, *rest) if isinstance(word, int))
        return [python, "-S", "-c", SERVER, str(port)]

    monkeypatch.setattr(local_parts.commands, "engine", serve)
    monkeypatch.setattr(local_parts.commands, "driver", serve)
    monkeypatch.setattr(local_parts.commands, "trainer", trainer(TRAINER))
    monkeypatch.setattr(attempt, "LOOK_FOR_CAUSE_SECONDS", 0.5)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    at_step(monkeypatch, {})
    monkeypatch.setattr(local_parts, "first_engine_gpu", lambda recipe, trains=True: None)
    monkeypatch.setattr(launch, "check_recipe", lambda recipe: None)
    yield monkeypatch
    assert set(psutil.Process().children()) <= others


def at_step(monkeypatch: pytest.MonkeyPatch, happenings: dict[int, Happening]) -> None:
    """Let something happen once, when the command has shown that step; the trainer goes on after it."""

    def show(steps: launch.StepsDisplay) -> None:
        SHOW(steps)
        for step in [step for step in happenings if steps._shown >= step]:
            happenings.pop(step)()
        (steps._folder.root / "shown").write_text(str(steps._shown), encoding="utf-8")

    monkeypatch.setattr(launch.StepsDisplay, "show", show)


def signaller(log: str, number: signal.Signals) -> Happening:
    """Sends a signal to the child that writes this log."""

    def send() -> None:
        writer_of(log).send_signal(number)

    return send


def killer(log: str) -> Happening:
    """Kills the child that writes this log, as the kernel would when memory runs out."""
    return signaller(log, signal.SIGKILL)


def writer_of(log: str) -> psutil.Process:
    for child in psutil.Process().children():
        if Path(f"/proc/{child.pid}/fd/1").resolve().name == log:
            return child
    raise AssertionError(f"nobody writes {log}")


def train(folder: Path, *keys: str) -> None:
    launch.launch_training(Path("recipes/quickstart.yaml"), [f"run.folder={folder}", f"run.steps={STEPS}", *keys])


def starts(folder: Path) -> list[int]:
    lines = (folder / "starts").read_text(encoding="utf-8").splitlines()
    assert len({line.split()[0] for line in lines}) == 1, "one command is one job"
    return [int(line.split()[1]) for line in lines]


def test_a_start_takes_away_what_killed_ranks_said(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of every rank: the run may have fewer now, and a heartbeat that stays would keep it from being finished."""
    heartbeats = tmp_path / "a/heartbeats"
    heartbeats.mkdir(parents=True)
    for rank in (0, 1):
        (heartbeats / f"rank_{rank}.json").write_text("{}")
    train(tmp_path / "a")
    assert list(heartbeats.glob("rank_*.json")) == []


def test_whichever_process_is_killed_the_run_ends_as_if_none_had_been(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "undisturbed")
    assert starts(tmp_path / "undisturbed") == [0]
    capsys.readouterr()
    killed = {
        1: killer("engine_0.log"),
        2: killer("engine_1.log"),
        3: killer("driver.log"),
        4: killer("trainer.log"),
    }
    at_step(stand_ins, dict(killed))
    train(tmp_path / "disturbed", "engines.count=2")
    printed = capsys.readouterr().out
    for name in ("engine_0", "engine_1", "driver"):
        assert f"{name} was ended by SIGKILL; it alone is started again in 1 s (restart 1 of it)" in printed
    assert "trainer was ended by SIGKILL; going on from step " in printed
    assert "(restart 1 of at most 20)" in printed
    assert len(starts(tmp_path / "disturbed")) == 2, "for the trainer's sake alone"
    both = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("undisturbed", "disturbed")]
    assert both[0] == both[1]
    RunFolder(tmp_path / "disturbed").open("a: 1").close()  # the folder is free


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("name", ["engine_1", "driver"])
def test_a_server_that_is_killed_or_frozen_comes_back_at_its_address_and_no_other_is_touched(
    stand_ins: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    number: signal.Signals,
) -> None:
    stand_ins.setattr(attempt, "ASK_AGAIN_SECONDS", 0.2)
    stand_ins.setattr(attempt, "ANSWER_SECONDS", 1.0)
    stand_ins.setattr(local_parts.commands, "trainer", trainer(PATIENT_TRAINER))
    before: dict[str, list[str]] = {}
    pids: dict[str, int] = {}

    def disturb() -> None:
        for log in ("engine_0", "engine_1", "driver", "trainer"):
            child = writer_of(f"{log}.log")
            before[log], pids[log] = child.cmdline(), child.pid
        writer_of(f"{name}.log").send_signal(number)

    def look() -> None:
        others = [log for log in pids if log != name]
        assert {log: writer_of(f"{log}.log").pid for log in others} == {log: pids[log] for log in others}
        assert writer_of(f"{name}.log").cmdline() == before[name], "at the same address"
        assert writer_of(f"{name}.log").pid != pids[name]

    at_step(stand_ins, {1: disturb, 4: look})
    train(tmp_path, "engines.count=2", "engines.silence_timeout=1")
    assert starts(tmp_path) == [0]
    how = (
        "was ended by SIGKILL"
        if number is signal.SIGKILL
        else r"answers no more \(no answer to /health for \d+ s\)"
    )
    goes_on = r"it alone is started again in 1 s \(restart 1 of it\), the run goes on"
    assert re.search(rf"{name} {how}; {goes_on}", capsys.readouterr().out)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_the_log_of_the_start_that_ended_is_kept(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_step(stand_ins, {2: killer("driver.log"), 4: killer("trainer.log")})
    train(tmp_path)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        *(f"{name}{which}.log" for name in ("engine_0", "driver", "trainer") for which in ("", ".1")),
        "driver.2.log",  # it was started again alone before
    }


def test_the_logs_of_the_last_starts_are_kept_the_newest_first(tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path)
    for number in range(12):
        runner.start(RunPart("driver", ("echo", str(number)), ExitCode.DRIVER))
        while runner.ended() is None:
            time.sleep(0.01)
    runner.stop()
    said = {path.name: path.read_text(encoding="utf-8").strip() for path in tmp_path.iterdir()}
    assert said == {"driver.log": "11", **{f"driver.{number}.log": str(11 - number) for number in range(1, 10)}}


@pytest.mark.parametrize("name", ["engine_0", "driver", "trainer"])
def test_one_that_is_killed_again_and_again_is_given_up(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    failing = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    command = "engine" if name == "engine_0" else name
    stand_ins.setattr(local_parts.commands, command, lambda python, *_: [python, "-S", "-c", failing])
    said = (
        rf"(?s){name} was ended by SIGKILL; two restarts brought no checkpoint after step 0.*end of .*{name}\.log"
    )
    with pytest.raises(LaunchError, match=said):
        train(tmp_path)
    assert starts(tmp_path) == [0, 0, 0]


@pytest.mark.parametrize("name", ["engine_0", "driver", "trainer"])
@pytest.mark.parametrize("status", [1, LASTING_FAULT])
def test_one_that_is_set_up_wrongly_ends_the_run_at_once(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path, name: str, status: int
) -> None:
    failing = f"import sys; print('error: it cannot be'); sys.exit({status})"
    command = "engine" if name == "engine_0" else name
    stand_ins.setattr(local_parts.commands, command, lambda python, *_: [python, "-S", "-c", failing])
    with pytest.raises(LaunchError, match=rf"(?s){name} ended .*error: it cannot be"):
        train(tmp_path)
    assert starts(tmp_path) == [0]


def test_an_error_of_the_project_s_own_ends_the_run_also_when_it_has_trained(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    diverging = TRAINER.replace(
        "    if (run", f"    if step == 3:\n        sys.exit({LASTING_FAULT})\n    if (run"
    )
    stand_ins.setattr(local_parts.commands, "trainer", trainer(diverging))
    with pytest.raises(LaunchError, match="trainer ended by its own error"):
        train(tmp_path)
    assert starts(tmp_path) == [0]


def test_a_crash_of_a_trainer_that_has_trained_is_an_accident(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crashing = TRAINER.replace("    if (run", "    if step == 3:\n        sys.exit(1)\n    if (run")
    stand_ins.setattr(local_parts.commands, "trainer", trainer(crashing))
    train(tmp_path)
    assert starts(tmp_path) == [0, 3]


def test_restarts_are_as_many_as_the_user_allows(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_ins.setenv("EMPG_MAX_RESTARTS", "0")
    at_step(stand_ins, {2: killer("driver.log")})
    with pytest.raises(LaunchError, match=r"driver was ended by SIGKILL; restarted 0 times \(EMPG_MAX_RESTARTS\)"):
        train(tmp_path)


def test_the_file_stop_ends_a_run_whose_process_is_killed(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks for the end does not wait for a new start."""

    def stop_and_kill() -> None:
        killer("trainer.log")()
        (tmp_path / "STOP").touch()

    at_step(stand_ins, {2: stop_and_kill})
    train(tmp_path)
    assert starts(tmp_path) == [0]
    printed = capsys.readouterr().out
    assert "of 6; the same command goes on from there" in printed
    assert "trainer was ended by SIGKILL; not started again, as its end was asked for; newest" in printed
    assert f"logs in {tmp_path / 'logs'}" in printed.split("not started again")[1]


def test_a_run_says_what_it_does_until_its_first_step_is_logged(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    playing = TRAINER.replace('say(step, "rollout")', 'say(step, "rollout")\n    time.sleep(0.5)')
    stand_ins.setattr(local_parts.commands, "trainer", trainer(playing))
    train(tmp_path)
    said = capsys.readouterr().out.splitlines()
    heading = next(place for place, line in enumerate(said) if line.split()[:2] == ["step", "reward"])
    before, after = said[:heading], said[heading:]
    assert "starting engine_0, driver, trainer" in before
    assert "playing the episodes of step 1" in before
    assert not [line for line in after if "playing" in line or "starting" in line]


def test_who_asks_for_the_end_is_told_that_steps_are_lost(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unsaved = TRAINER.replace('    (run / "writing").rename', '    step % 4 or (run / "writing").rename')
    stand_ins.setattr(local_parts.commands, "trainer", trainer(unsaved))

    def stop_and_kill() -> None:
        (tmp_path / "STOP").touch()
        killer("trainer.log")()

    at_step(stand_ins, {1: stop_and_kill})
    said = r"(?s)trainer was ended by SIGKILL; not started again.*newest checkpoint: step 0; .*trainer\.log"
    with pytest.raises(LaunchError, match=said):
        train(tmp_path)
    assert starts(tmp_path) == [0]


def test_engines_have_the_recipe_s_time_to_become_healthy(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_ins.setattr(local_parts.commands, "engine", lambda *_: ["sleep", "60"])
    with pytest.raises(LaunchError, match="engine_0 was not healthy after 1 s"):
        train(tmp_path, "engines.start_timeout=1")


def test_a_bound_on_restarts_that_is_no_number_is_the_user_s_fault(
    stand_ins: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_ins.setenv("EMPG_MAX_RESTARTS", "many")
    with pytest.raises(EmpgError, match="EMPG_MAX_RESTARTS is 'many'; set it to a number of 0 or more") as refused:
        train(tmp_path)
    assert refused.value.exit_code == 2
    assert not (tmp_path / "starts").exists()


def test_a_run_of_another_command_counts_its_own_restarts(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("local-1-1 0\n" * 30, encoding="utf-8")
    train(tmp_path)
    last = (tmp_path / "starts").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith(f"local-{os.getpid()}-")


def test_what_a_killed_process_has_started_ends_with_it(tmp_path):
    """As torchrun's ranks, which would train on beside their successors."""
    program = "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1]]);"
    program += "print(child.pid, flush=True); time.sleep(60)"
    runner = LocalRunner(tmp_path)
    runner.start(
        RunPart("trainer", [sys.executable, "-c", program, "import time; time.sleep(60)"], ExitCode.TRAINER)
    )
    log = tmp_path / "trainer.log"
    wait_until(lambda: log.read_text(encoding="utf-8").strip() != "")
    child = psutil.Process(int(log.read_text(encoding="utf-8")))
    child.parent().kill()
    wait_until(lambda: runner.ended() is not None)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    runner.stop()


@pytest.fixture
def undying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRunner]:
    """A runner of an engine that no signal ends for six seconds, as one that waits in the kernel."""
    monkeypatch.setattr(local_runner, "_signal_group", lambda process, number: None)
    monkeypatch.setattr(local_runner, "GRACE_SECONDS", 0.5)
    runner = LocalRunner(tmp_path)
    runner.start(RunPart("engine_0", ("sleep", "6"), ExitCode.ENGINES))
    process = runner._children[0].process
    yield runner
    process.kill()
    process.wait()


@pytest.mark.parametrize("end", [lambda runner: runner.stop_part(runner._children[0].part), LocalRunner.stop])
def test_a_process_that_cannot_be_killed_is_told_and_holds_nothing_up(undying, capsys, end):
    process = undying._children[0].process
    began = time.monotonic()
    end(undying)
    assert time.monotonic() - began < 4
    assert process.poll() is None
    assert undying.ended() is None, "its end is nobody's news"
    assert undying.left_behind == ["engine_0"]
    told = capsys.readouterr().err
    assert told.startswith(f"engine_0: process {process.pid} was killed and has not ended within 0 s, as it waits")


def test_an_interrupt_comes_through_though_a_process_cannot_be_killed(undying, capsys):
    def stop() -> None:
        with undying.interrupts.handled():
            threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
            undying.stop()

    began = time.monotonic()
    with pytest.raises(Interrupted):
        stop()
    assert time.monotonic() - began < 4


def test_a_report_that_cannot_be_written_hides_no_error_of_the_run(tmp_path, monkeypatch, capsys):
    def full_disk(folder: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("megatron_empg.report.page.write_report", full_disk)
    launch._report_if_it_can_be_written(RunFolder(tmp_path))
    assert "no report was written" in capsys.readouterr().err


def wait_until(seen: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)
