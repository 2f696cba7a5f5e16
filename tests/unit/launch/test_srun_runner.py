"""Parts as steps of a job: the command of each, what speaks for its end, and what is shown of its logs."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.launch.containers import Container
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.slurm import ProgramOutput, Slurm
from megatron_empg.launch.srun_runner import STOP_SECONDS, SrunRunner, srun_command, status_of_step

ROOT = Path(__file__).parents[3]
ENGINES = RunPart("engines", ("python", "-m", "x"), ExitCode.ENGINES, ("n1", "n3"), tasks_per_node=4)


class Started:
    """In the place of srun: what it was started with, and what is to become of it."""

    all: ClassVar[list["Started"]] = []

    def __init__(self, command: Sequence[str], *, env: dict[str, str], stdout: Any = None, **_: Any) -> None:
        self.command, self.env, self.output = list(command), env, stdout
        self.code: int | None = None
        self.signals: list[str] = []
        self.deaf = False
        """Whether it outlives what it is asked."""
        Started.all.append(self)

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float = 0.0) -> int:
        if self.deaf:
            raise subprocess.TimeoutExpired(self.command, timeout)
        return self.code or 0

    def terminate(self) -> None:
        self.signals.append("TERM")

    def kill(self) -> None:
        self.signals.append("KILL")
        self.deaf = False

    def end(self, code: int, said: str) -> None:
        """As if srun had ended."""
        Path(self.output.name).write_text(said, encoding="utf-8")
        self.code = code


class Cluster:
    """A Slurm of which `down` is down and `silent` does not answer."""

    def __init__(self, down: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.down, self.silent = down, silent
        self.commands: list[Sequence[str]] = []
        self.refusals = 0
        """How often squeue fails before it answers."""
        self.looks_until_gone: int | None = None
        """How often a step that was cancelled is told still; None: for ever."""

    def run(self, command: Sequence[str], seconds: float) -> ProgramOutput:
        self.commands.append(command)
        if command[0] == "sinfo":
            return ProgramOutput(0, "".join(f"{node} down*\n" for node in self.down))
        if command[0] == "squeue" and self.refusals > 0:
            self.refusals -= 1
            return ProgramOutput(1, "")
        if command[0] == "squeue" and "%j" in command[-1]:
            named = {"7.0": "engines", "7.3": "driver", "7.batch": "batch"}
            return ProgramOutput(
                0, "".join(f"{step} {name}\n" for step, name in named.items() if self.is_there(step))
            )
        if command[0] == "squeue":
            return ProgramOutput(0, "7.0\n7.3\n7.batch\n")
        if command[0] == "srun":
            node = command[4].partition("=")[2]
            return ProgramOutput(124 if node in self.silent else 0, "")
        return ProgramOutput(0, "")

    def is_there(self, step: str) -> bool:
        """Whether it is one of the job's still."""
        cancelled = self.commands.count(("scancel", step))
        return self.looks_until_gone is None or cancelled <= self.looks_until_gone


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    Started.all = []
    monkeypatch.setattr("subprocess.Popen", Started)


def runner(tmp_path: Path, cluster: Cluster | None = None) -> SrunRunner:
    slurm = Slurm("7", "n[1-3]", (cluster or Cluster()).run, lambda seconds: None)
    made = SrunRunner(slurm, Container(), {"EMPG_TOKEN": "secret"})
    made.logs = tmp_path
    made.nodes = ("n1", "n2", "n3")
    return made


def test_a_part_is_a_step_beside_the_others_with_equally_many_tasks_on_each_node() -> None:
    assert srun_command(ENGINES, Container()) == [
        "srun", "--overlap", "--job-name=engines", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=8",
        "--ntasks-per-node=4", "--nodelist=n1,n3", "python", "-m", "x",
    ]  # fmt: skip


def test_an_image_is_entered_by_options_of_srun_or_words_before_the_command() -> None:
    pyxis = srun_command(ENGINES, Container(in_srun=("--container-image=i",)), binds_processors=True)
    assert pyxis[-4:] == ["--container-image=i", "python", "-m", "x"]
    assert "--cpu-bind=none" in pyxis
    apptainer = srun_command(ENGINES, Container(in_task=("apptainer", "exec", "i")))
    assert apptainer[-6:] == ["apptainer", "exec", "i", "python", "-m", "x"]


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [
        (0, "", 0),
        (1, "", 1),
        (137, "srun: error: n1: task 0: Killed\n", -9),
        (143, "srun: error: n2: task 1: Exited with exit code 1\nsrun: error: n1: task 0: Terminated\n", 1),
        (143, "srun: error: n2: task 1: Exited with exit code 137\nsrun: error: n1: task 0: Terminated\n", -9),
        (143, "srun: error: n2: task 1: Killed\nsrun: error: n1: task 0: Exited with exit code 78",
         LASTING_FAULT),
        (78, "srun: error: n1: task 0: Exited with exit code 78\n", LASTING_FAULT),
        (1, "srun: error: Unable to create step for job 7: Requested nodes are busy\n", 1),
        (0, "srun: error: n1: task 0: Terminated\n", 0),
    ],
)  # fmt: skip
def test_the_task_that_failed_first_speaks_for_its_step(code: int, said: str, status: int) -> None:
    assert status_of_step(code, said) == status


def test_each_part_that_ends_is_told_once(tmp_path: Path) -> None:
    run = runner(tmp_path)
    driver = RunPart("driver", ("d",), ExitCode.DRIVER, ("n3",), environment={"X": "1"})
    run.start(ENGINES)
    run.start(driver)
    assert run.ended() is None
    assert [started.env["EMPG_LOG"] for started in Started.all] == [
        str(tmp_path / "engines"),
        str(tmp_path / "driver"),
    ]
    assert Started.all[1].env["X"] == "1"
    assert all("secret" not in " ".join(started.command) for started in Started.all)
    Started.all[0].end(137, "srun: error: n1: task 0: Killed\n")
    ended = run.ended()
    assert ended is not None
    assert (ended.part, ended.status) == (ENGINES, -9)
    assert run.ended() is None


def test_a_part_is_stopped_alone_and_can_be_started_again(tmp_path: Path) -> None:
    cluster = Cluster()
    run = runner(tmp_path, cluster)
    driver = RunPart("driver", ("d",), ExitCode.DRIVER, ("n3",))
    run.start(ENGINES)
    run.start(driver)
    cluster.looks_until_gone = 0
    run.stop_part(driver)
    assert [command for command in cluster.commands if command[0] == "scancel"] == [("scancel", "7.3")]
    assert [started.signals for started in Started.all] == [[], []]
    Started.all[1].end(143, "srun: error: n3: task 0: Terminated\n")
    assert run.ended() is None, "its end is nobody's news"
    run.stop_part(driver)
    assert [command[0] for command in cluster.commands].count("scancel") == 1, "it has ended"
    run.start(driver)
    assert "driver.2.srun" in {path.name for path in tmp_path.iterdir()}


def kill_srun(run: SrunRunner) -> None:
    """As a batch step's memory limit does."""
    Started.all[0].code = -9
    assert run.ended() is not None


@pytest.mark.parametrize("looks", [0, 3])
def test_what_a_killed_srun_left_running_is_cancelled_until_it_is_gone(tmp_path: Path, looks: int) -> None:
    cluster = Cluster()
    cluster.looks_until_gone = looks
    run = runner(tmp_path, cluster)
    run.start(ENGINES)
    kill_srun(run)
    run.stop_part(ENGINES)
    assert cancelled(cluster) == ["7.0"] * (1 + looks), "its tasks held ports and GPUs"
    assert not cluster.is_there("7.0")


def test_a_step_that_never_goes_holds_the_run_up_for_a_while_only(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.start(ENGINES)
    kill_srun(run)
    slept: list[float] = []
    run.slurm = replace(run.slurm, sleep=slept.append)
    run.stop_part(ENGINES)
    assert 30 <= sum(slept) <= STOP_SECONDS


def test_an_srun_that_outlives_its_step_is_killed_and_the_step_cancelled_again(tmp_path: Path) -> None:
    cluster = Cluster()
    run = runner(tmp_path, cluster)
    run.start(ENGINES)
    Started.all[0].deaf = True
    run.stop_part(ENGINES)
    assert Started.all[0].signals == ["TERM", "KILL"]
    assert [command for command in cluster.commands if command[0] == "scancel"] == [("scancel", "7.0")] * 2


def test_what_is_stopped_is_cancelled_step_by_step(tmp_path: Path) -> None:
    cluster = Cluster()
    run = runner(tmp_path, cluster)
    run.stop()
    assert cluster.commands == [], "nothing was started"
    run.start(ENGINES)
    run.start_beside("guard", "n2", ["bash", "job.sh"])
    assert Started.all[1].command[-3:] == ["--nodelist=n2", "bash", "job.sh"]
    run.stop()
    assert [command for command in cluster.commands if command[0] == "scancel"] == [
        ("scancel", "7.0"),
        ("scancel", "7.3"),
    ]
    assert run.ended() is None, "what was stopped does not end"


def cancelled(cluster: Cluster) -> list[str]:
    return [command[1] for command in cluster.commands if command[0] == "scancel"]


def test_slurm_is_asked_for_the_steps_until_it_answers(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.refusals = 2
    run = runner(tmp_path, cluster)
    run.start(ENGINES)
    run.stop()
    assert cancelled(cluster) == ["7.0", "7.3"]


def test_an_srun_is_asked_before_it_is_killed_and_its_steps_are_cancelled_again(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.refusals = 3
    run = runner(tmp_path, cluster)
    run.start(ENGINES)
    run.start_beside("guard", "n2", ["bash", "job.sh"])
    Started.all[0].deaf = True
    run.stop()
    assert Started.all[0].signals == ["TERM", "KILL"]
    assert Started.all[1].signals == []
    assert cancelled(cluster) == ["7.0", "7.3"], "it had left them behind"


def test_a_stop_that_a_signal_ends_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    run = runner(tmp_path, cluster)
    run.start(ENGINES)

    def interrupted(slurm: Slurm) -> list[str]:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(Slurm, "steps", interrupted)
        with pytest.raises(SystemExit):
            run.stop()
    run.stop()
    assert cancelled(cluster) == ["7.0", "7.3"]
    run.stop()
    assert cancelled(cluster) == ["7.0", "7.3"], "nothing is left to stop"


def test_a_part_that_is_started_again_leaves_what_srun_said_before(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.start(ENGINES)
    Started.all[0].end(137, "srun: error: n1: task 0: Killed\n")
    first = run.ended()
    run.start(ENGINES)
    Started.all[1].end(1, "srun: error: n3: task 1: Exited with exit code 1\n")
    second = run.ended()
    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (-9, 1)
    shown = run.end_of_logs(ENGINES).splitlines()
    assert shown[0::2] == [f"==> {tmp_path}/engines.srun <==", f"==> {tmp_path}/engines.2.srun <=="]
    assert run.over == {"engines"}


def test_the_end_of_a_step_beside_the_parts_is_told_once(tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.start_beside("guard", "n2", ["bash", "job.sh"])
    assert run.ended_beside() == []
    Started.all[0].end(10, "srun: error: n2: task 0: Exited with exit code 10\n")
    assert run.ended_beside() == ["guard"]
    assert run.ended_beside() == []
    assert run.ended() is None, "it ends nothing"


def test_lost_nodes_are_those_that_slurm_gave_up_and_if_asked_those_that_are_silent(tmp_path: Path) -> None:
    run = runner(tmp_path, Cluster(down=["n3", "n9"], silent=["n1"]))
    assert run.lost_nodes() == ("n3",)
    assert run.lost_nodes(ask_each=True) == ("n3", "n1")
    assert run.lost == ("n3", "n1")


def test_the_errors_of_a_failed_step_stand_above_the_ends_of_its_logs(tmp_path: Path) -> None:
    recorded = (ROOT / "tests/unit/fixtures/engine_without_memory.log").read_text(encoding="utf-8")
    (tmp_path / "engines.n1.0.log").write_text(recorded, encoding="utf-8")
    (tmp_path / "engines.n2.0.log").write_text("train/error: none\nan OSError: within\nended\n", encoding="utf-8")
    first, *rest = runner(tmp_path).end_of_logs(ENGINES).splitlines()
    assert first.startswith(f"{tmp_path}/engines.n1.0.log:(EngineCore pid=")
    assert "ValueError: Available memory on node 0 (22.2/23.54 GiB) on kv cache allocation is less than" in first
    assert f"==> {tmp_path}/engines.n1.0.log <==" in rest[0]
    assert rest[-1] == "ended"


def test_what_srun_itself_said_is_shown_too(tmp_path: Path) -> None:
    (tmp_path / "engines.srun").write_text("srun: error: no such image\n", encoding="utf-8")
    assert runner(tmp_path).end_of_logs(ENGINES).splitlines() == [
        f"==> {tmp_path}/engines.srun <==",
        "srun: error: no such image",
    ]
