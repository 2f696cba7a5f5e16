"""`empg watch`: a run that has not begun, goes on, is silent, has ended, is none; and the terminal afterwards."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_empg.common.jsonl import append_line
from megatron_empg.launch.health import has_begun
from megatron_empg.launch.starts import read_starts
from megatron_empg.run.folder import NotARunError, RunFolder
from megatron_empg.run.heartbeat import Beat
from megatron_empg.run.metric_names import find
from megatron_empg.run.watch.frame import BALANCE, CURVES, ENGINES, HEALTH, RunFrame
from megatron_empg.run.watch.view import ALIVE, RunState, RunView, WatchedRun

RECIPE = """
run: {steps: 10}
model: {path: some/policy}
environment: {name: deep_search}
algorithm: {name: dapo, modulation: {name: empg}}
"""
NOW = 2_000_000_000.0


def begun(root: Path, recipe: str = RECIPE) -> RunFolder:
    folder = RunFolder(root)
    folder.open(recipe).close()
    return folder


def step(folder: RunFolder, number: int, **more: float) -> None:
    metrics = {"train/reward": number / 10, "train/success": number / 10, "policy/entropy": 0.5, "time/step": 30.0}
    phases = {"time/rollout": 20.0, "time/score": 4.0, "time/update": 5.0, "time/sync": 1.0}
    append_line(folder.metrics, {"step": number, **metrics, **phases, **more})


def beat(folder: RunFolder, rank: int = 0, *, phase: str = "rollout", at: int = 3, age: float = 0.0) -> None:
    folder.heartbeats.mkdir(exist_ok=True)
    told = Beat(rank, "node", 1, 5, at, phase, 0, "loop.py:1", 900.0)
    path = folder.heartbeat(rank)
    path.write_text(json.dumps(vars(told)))
    os.utime(path, (NOW - age, NOW - age))


def log(folder: RunFolder, name: str, text: str, age: float = 0.0) -> None:
    path = folder.logs / f"{name}.log"
    path.write_text(text)
    os.utime(path, (NOW - age, NOW - age))


def look(folder: RunFolder) -> RunView:
    if folder.metrics.exists():
        os.utime(folder.metrics, (NOW - 5, NOW - 5))
    return WatchedRun(folder.root, lambda: NOW).look()


def drawn(view: RunView, width: int = 100, **console: Any) -> str:
    out = StringIO()
    Console(file=out, width=width, highlight=False, **console).print(RunFrame(view))
    return out.getvalue()


# What a run is at


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    view = look(begun(tmp_path / "demo"))
    assert (view.state, view.age, view.done, view.seconds_left) == (RunState.NOT_BEGUN, None, 0, None)
    shown = drawn(view)
    assert "demo  has not begun" in shown
    assert "step 0/10" in shown
    assert "dapo + empg  deep_search  some/policy" in shown


def test_a_run_whose_engines_start(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    log(folder, "engine_0", "loading\n", age=20.0)
    assert look(folder).state is RunState.STARTING


def started(folder: RunFolder, ago: float) -> None:
    with folder.starts.open("a", encoding="utf-8") as file:
        file.write("local-1 0\n")
    os.utime(folder.starts, (NOW - ago, NOW - ago))


def test_a_start_that_loads_for_long_and_says_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path, RECIPE + "engines: {start_timeout: 600}\n")
    started(folder, ago=500.0)
    log(folder, "engine_0", "loading\n", age=450.0)
    view = look(folder)
    assert view.state is RunState.STARTING
    assert "starting, nothing logged for 7m 30s" in drawn(view)
    started(folder, ago=700.0)
    assert look(folder).state is RunState.STOPPED, "a start may not take so long"


def test_a_start_whose_ranks_have_ended_is_over(tmp_path: Path) -> None:
    folder = begun(tmp_path, RECIPE + "engines: {start_timeout: 600}\n")
    started(folder, ago=500.0)
    log(folder, "trainer", "error: the policy diverged\n", age=450.0)
    beat(folder)
    folder.heartbeat(0).unlink()
    os.utime(folder.heartbeats, (NOW - 450, NOW - 450))
    assert look(folder).state is RunState.STOPPED


def test_a_heartbeat_of_an_earlier_start_says_nothing_of_this_one(tmp_path: Path) -> None:
    """Rank 1 was killed, and could not take its file away."""
    folder = begun(tmp_path)
    step(folder, 1)
    beat(folder, 1, phase="rollout", at=7, age=300.0)
    started(folder, ago=60.0)
    log(folder, "engine_0", "loading\n", age=20.0)
    view = look(folder)
    assert (view.state, view.beats) == (RunState.STARTING, [])
    beat(folder, 0, phase="score", at=4)
    view = look(folder)
    assert view.state is RunState.RUNNING
    assert "now: score of step 4   " in drawn(view), "of one rank"
    folder.heartbeat(0).unlink()
    (folder.checkpoints / "step_000010").mkdir()
    folder.policy.mkdir()
    folder.note_export(10)
    assert look(folder).state is RunState.FINISHED


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for number in (1, 2):
        step(folder, number)
    step(folder, 3, **{"eval/test_id/sampled": 0.25, "eval/test_id/greedy": 0.5, "time/evaluate": 30.0})
    folder.starts.write_text("local-1 0\nlocal-1 2\n")
    beat(folder, 0, phase="score", at=4, age=3.0)
    beat(folder, 1, phase="rollout", at=4, age=3.0)
    log(folder, "trainer", "WARNING the disk is nearly full\n", age=50.0)
    view = look(folder)
    assert (view.state, view.done, view.steps) == (RunState.RUNNING, 3, 10)
    assert view.seconds_left == pytest.approx(40.0 * 7), "three steps of 30 s, one of them with an evaluation"
    shown = drawn(view)
    for said in (
        "running",
        "step 3/10",
        "about 4m 40s left",
        "now: score of step 4, 2 ranks (1 elsewhere)",
        "restarts: 1 (from step 2)",
        "no checkpoint yet",
        "reward                   0.300 ▁▅█",
        "test_id/greedy           50.0% ▁",
        "rollout 20.0s 67%",
        "last evaluate 30.0s",
        "trainer: WARNING the disk is nearly full",
    ):
        assert said in shown, said


WRONG_FIELDS = [("rank", None), ("rank", "0"), ("phase", None), ("phase", 3), ("phase", []), ("step", True)]


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_a_heartbeat_of_other_types_is_none(tmp_path: Path, field: str, value: object) -> None:
    folder = begun(tmp_path)
    beat(folder, rank=1)
    told = vars(Beat(0, "node", 1, 5, 3, "rollout", 0, "loop.py:1", 900.0))
    folder.heartbeat(0).write_text(json.dumps({**told, field: value}))
    assert [each.rank for each in WatchedRun(tmp_path).look().beats] == [1]


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", '{"rank": ' + "9" * 5000 + "}"])
def test_a_heartbeat_that_is_none_is_left_out(tmp_path: Path, text: str) -> None:
    folder = begun(tmp_path)
    folder.heartbeats.mkdir()
    folder.heartbeat(0).write_text(text)
    assert WatchedRun(tmp_path).look().beats == []
    assert not has_begun(str(folder.heartbeat(0)))


@pytest.mark.parametrize("steps", ["true", "0", "-3", "1" + "0" * 400])
def test_steps_that_no_recipe_may_want_are_not_known(tmp_path: Path, steps: str) -> None:
    folder = begun(tmp_path, f"run: {{steps: {steps}}}")
    step(folder, 3)
    view = WatchedRun(tmp_path, clock=lambda: NOW).look()
    assert (view.steps, view.seconds_left) == (None, None)
    assert "step 3" in drawn(view)


def test_a_start_from_a_step_of_thousands_of_digits_is_left_out(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.starts.write_bytes(b"a 0\na " + b"9" * 5000 + b"\n\xff 1\na 7\n")
    assert WatchedRun(tmp_path).look().starts == [0, 1, 7]
    assert [start.checkpoint for start in read_starts(tmp_path, "a")] == [0, 7]


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 1)
    beat(folder, age=ALIVE + 100)
    log(folder, "trainer", "", age=ALIVE + 100)
    os.utime(folder.metrics, (NOW - 400, NOW - 400))
    view = WatchedRun(folder.root, lambda: NOW).look()
    assert view.state is RunState.SILENT
    assert "no sign of life for 2m 10s" in drawn(view)
    assert "left" not in drawn(view), "nobody knows"


def test_a_run_that_ended_before_its_last_step(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 1)
    log(folder, "trainer", "error: the policy diverged\n", age=1000.0)
    view = look(folder)
    assert view.state is RunState.STOPPED
    assert "trainer: error: the policy diverged" in drawn(view)


def test_a_run_that_has_finished(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for number in range(1, 11):
        step(folder, number)
    (folder.checkpoints / "step_000010").mkdir()
    folder.policy.mkdir()
    folder.note_export(10)
    view = look(folder)
    assert (view.state, view.seconds_left) == (RunState.FINISHED, None)
    assert "checkpoint of step 10" in drawn(view)


def test_a_run_that_is_asked_to_stop(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    beat(folder)
    folder.stop.touch()
    assert "running, ending after this step" in drawn(look(folder))


def test_a_supervised_run_shows_its_losses(tmp_path: Path) -> None:
    folder = begun(tmp_path, "run: {steps: 5}\nsft: {batch_size: 4}\nmodel: {path: p}\n")
    append_line(folder.metrics, {"step": 0, "validation/loss": 3.0})
    append_line(folder.metrics, {"step": 1, "policy/loss": 2.5, "time/step": 1.0})
    shown = drawn(look(folder))
    assert "supervised" in shown
    assert "loss                    2.5000" in shown
    assert "held-out loss           3.0000" in shown


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match=r"is not a run folder: it has none of recipe\.yaml, metrics\.jsonl"):
        WatchedRun(tmp_path)
    with pytest.raises(NotARunError, match="is not a folder"):
        WatchedRun(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotARunError, match="is not a folder"):
        WatchedRun(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "run: [", "- 1\n", "run: 3\n", "run: {steps: many}\n", "\x00"])
def test_a_recipe_that_is_being_written_hides_nothing_else(tmp_path: Path, text: str) -> None:
    folder = begun(tmp_path, text)
    step(folder, 1)
    beat(folder)
    (folder.heartbeat(1)).write_text('{"rank": 1, "no')
    view = look(folder)
    assert view.steps is None
    assert "step 1" in drawn(view)


def test_looking_again_sees_what_has_come(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    watched = WatchedRun(folder.root)
    assert watched.look().done == 0
    step(folder, 1)
    assert watched.look().done == 1
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "train/rew')
    assert watched.look().done == 1


def test_looking_writes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 1)
    beat(folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    drawn(WatchedRun(folder.root).look())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# How it looks


EVERYTHING = {
    **{number.metric: 0.5 for number in (*ENGINES, *BALANCE, *HEALTH)},
    **{name: 0.5 for _, name, _ in CURVES},
}


def test_every_number_of_a_frame_is_a_metric_that_runs_write() -> None:
    assert [name for name in EVERYTHING if find(name) is None] == []


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    folder = begun(tmp_path / ("a very long name of a run" * 4))
    for number in range(1, 300):
        step(folder, number, **EVERYTHING, **{"eval/test_ood/sampled": 0.5})
    beat(folder)
    log(folder, "engine_0", "WARNING " + "far too long " * 50 + "\n")
    shown = drawn(look(folder), width)
    assert max(map(len, shown.splitlines())) <= max(width, 20)
    if width == 200:
        for number in (*ENGINES, *BALANCE, *HEALTH):
            assert f"{number.label} {number.form.format(0.5)}" in shown, number.label


def test_what_should_be_0_is_red_where_it_is_not(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 1, **{"train/episodes_error": 3.0, "skipped_updates": 0.0})
    shown = drawn(look(folder), force_terminal=True, color_system="standard")
    assert "\x1b[1;31m3\x1b[0m" in shown
    assert "\x1b[1m0\x1b[0m" in shown


def test_a_terminal_without_blocks_has_letters(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for number in (1, 2, 3):
        step(folder, number)

    class Ascii(StringIO):
        encoding = "ascii"

    out = Ascii()
    Console(file=out, width=80).print(RunFrame(look(folder)))
    shown = out.getvalue()
    assert "0.300 _=#" in shown
    assert [letter for letter in "▁█░─│" if letter in shown] == []


# The command


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "megatron_empg.cli", "watch", *map(str, words)]


def test_the_command_prints_one_frame_where_there_is_no_terminal_and_loads_no_torch(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 4)
    program = (
        "import sys\nfrom megatron_empg.cli import main\n"
        f"sys.argv = ['empg', 'watch', {str(tmp_path)!r}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    print('ENDED', ended.code)\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'numpy', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "step 4/10" in done.stdout
    assert "ENDED 0" in done.stdout
    assert done.stdout.rstrip().endswith("[]")
    assert "\x1b" not in done.stdout


def test_letters_that_a_terminal_has_not_stop_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 4)
    log(folder, "trainer", "WARNING Ä 東京\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        command(tmp_path, "--once"), capture_output=True, timeout=120, check=True, env=environment
    )
    assert b"trainer: WARNING ? ??" in done.stdout


def test_the_command_says_what_is_no_run(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a run folder" in done.stderr
    assert "Traceback" not in done.stderr


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, words: list[str], rows: int = 40, columns: int = 90, *, of_a_shell: bool = False) -> None:
        """`of_a_shell`: the command is a job of this process's session, which Ctrl-Z can stop."""
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=not of_a_shell,
            process_group=0 if of_a_shell else None,
        )
        self.seen = ""

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, wanted: str, seconds: float = 120.0) -> None:
        """Read until something was written."""
        deadline = time.monotonic() + seconds
        while wanted not in self.seen:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")

    def until_stopped(self, seconds: float = 60.0) -> None:
        """Read until the command is stopped as Ctrl-Z stops it."""
        deadline = time.monotonic() + seconds
        while True:
            changed, status = os.waitpid(self.process.pid, os.WNOHANG | os.WUNTRACED)
            if changed:
                assert os.WIFSTOPPED(status), self.seen[-2000:]
                assert os.WSTOPSIG(status) == signal.SIGTSTP
                break
            assert time.monotonic() < deadline, self.seen[-2000:]
            time.sleep(0.05)
        while select.select([self.master], [], [], 0.2)[0]:
            self.seen += os.read(self.master, 65536).decode(errors="replace")

    def end(self, seconds: float = 60.0) -> int:
        """Wait for the end, reading what is still written."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        while select.select([self.master], [], [], 0.2)[0]:
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    @property
    def given_back(self) -> bool:
        """Whether the other screen was left and the cursor shown, in this order of their last appearance."""
        left = self.seen.rfind("\x1b[?1049l") > self.seen.rfind("\x1b[?1049h") >= 0
        shown = self.seen.rfind("\x1b[?25h") > self.seen.rfind("\x1b[?25l") >= 0
        return left and shown and termios.tcgetattr(self.slave) == self.before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_whoever_ends_the_watching_gets_the_terminal_back(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    folder = begun(tmp_path)
    step(folder, 4)
    terminal = Terminal(command(tmp_path, "--every", "0.1"))
    try:
        terminal.until("step 4/10")
        step(folder, 5)
        terminal.until("step 5/10")
        terminal.process.send_signal(sent)
        assert terminal.end() == code
        assert terminal.given_back, terminal.seen[-500:]
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


def test_ctrl_z_gives_the_terminal_back_until_the_watching_goes_on(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 4)
    terminal = Terminal(command(tmp_path, "--every", "1000"), of_a_shell=True)
    try:
        terminal.until("no warnings")
        for number in (5, 6):
            terminal.process.send_signal(signal.SIGTSTP)
            terminal.until_stopped()
            assert terminal.given_back, terminal.seen[-500:]
            step(folder, number)
            terminal.seen = ""
            terminal.process.send_signal(signal.SIGCONT)
            terminal.until(f"step {number}/10")
            assert "\x1b[?1049h" in terminal.seen, "on a screen of its own again"
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0
        assert terminal.given_back
    finally:
        terminal.close()


def test_another_size_of_the_window_is_drawn_at_once(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    step(folder, 4)
    terminal = Terminal(command(tmp_path, "--every", "1e308"))
    try:
        terminal.until("no warnings")
        terminal.seen = ""
        terminal.resize(40, 50)
        terminal.process.send_signal(signal.SIGWINCH)  # which a terminal in the foreground sends itself
        terminal.until("learning " + "-" * (50 - len("learning ")))
        assert "-" * 60 not in terminal.seen
    finally:
        terminal.close()


def test_the_watching_ends_with_the_run(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    for number in range(1, 11):
        step(folder, number)
    terminal = Terminal(command(tmp_path, "--every", "0.1"))
    try:
        terminal.until("step 10/10")
        (folder.checkpoints / "step_000010").mkdir()
        folder.policy.mkdir()
        folder.note_export(10)
        assert terminal.end() == 0
        assert terminal.given_back
        last = terminal.seen[terminal.seen.rfind("\x1b[?1049l") :]
        assert "finished" in last, "the last frame stays"
    finally:
        terminal.close()
