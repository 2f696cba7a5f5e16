"""A job from its words to its end: what it says and with which code it ends. Slurm and the image are recorded."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_empg.launch import job
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.guard import guard
from megatron_empg.launch.image import Image
from megatron_empg.launch.job_error import JobError
from megatron_empg.launch.restart import RestartAction, RestartDecision
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.launch.slurm import ProgramOutput, Slurm

ROOT = Path(__file__).parents[3]
SCRIPT = str(ROOT / "slurm/train.sh")
RECIPE = "recipes/quickstart.yaml"


class Scene:
    """What the image and Slurm answer, and what the supervisor decides."""

    def __init__(self, tmp_path: Path) -> None:
        self.plan = RunPlan("train", str(tmp_path / "run"), 3, 0, False, "deep_search", 2, 1, 1, ())
        self.packages = True
        self.answers: list[str | None] = []
        self.asked: list[list[str]] = []
        self.down: set[str] = set()
        self.decision = RestartDecision(RestartAction.DONE, "all steps are done")
        self.slurm: list[Sequence[str]] = []
        self.requeued = True

    def answer(self, words: Sequence[str]) -> str | None:
        self.asked.append(list(words))
        return self.answers.pop(0) if self.answers else self.plan.to_json()

    def run(self, words: Sequence[str]) -> int:
        self.asked.append(list(words))
        return 0

    def call(self, command: Sequence[str], seconds: float) -> ProgramOutput:
        self.slurm.append(command)
        if command[0] == "sinfo":
            return ProgramOutput(0, "".join(f"{node} down\n" for node in self.down))
        if command[:3] == ("scontrol", "show", "hostnames"):
            return ProgramOutput(0, "n1\nn2\nn3\n")
        if command[:3] == ("scontrol", "show", "node"):
            return ProgramOutput(0, "NodeAddr=127.0.0.1 NodeHostName=box")
        if command[:2] == ("scontrol", "requeue"):
            return ProgramOutput(0 if self.requeued else 1, "")
        if command[:3] == ("scontrol", "show", "job"):
            return ProgramOutput(0, "JobId=7 ExcNodeList=n9 Power=")
        return ProgramOutput(0, "")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(tmp_path)
    for name, value in {
        "EMPG_HOME": str(ROOT), "EMPG_DEVICE": "cpu", "EMPG_GPUS_PER_NODE": "1", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURMD_NODENAME": "n1",
        "EMPG_PYTHON": "python",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("EMPG_RECIPE", "EMPG_MODEL", "EMPG_RUN_FOLDER", "EMPG_CONTAINER", "EMPG_MEGATRON_CHECKPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Image, "answer", lambda _, words: made.answer(words))
    monkeypatch.setattr(Image, "run", lambda _, words: made.run(words))
    monkeypatch.setattr(Image, "has_packages", lambda image: made.packages)
    monkeypatch.setattr(job, "Slurm", lambda number, nodes: Slurm(number, nodes, made.call, lambda seconds: None))
    monkeypatch.setattr(job.Supervisor, "run", lambda supervisor: made.decision)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("PYTHONPATH", "")
    return made


@pytest.fixture(autouse=True)
def _signals_as_before() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a job that is called with these words."""
    monkeypatch.setattr(sys, "argv", ["job", *words])
    with pytest.raises(SystemExit) as end:
        job.main()
    code = end.value.code
    assert isinstance(code, int)
    return code


def trained(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    return ended(monkeypatch, "train", SCRIPT, RECIPE, *words)


def test_a_run_that_is_done_ends_with_its_report(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = replace(scene.plan, finished=True, checkpoint=3)
    scene.answers = [scene.plan.to_json(), done.to_json()]
    assert trained(monkeypatch, "run.steps=3") == 0
    said = capsys.readouterr().out
    for words in (
        "EMPG_RECIPE=recipes/quickstart.yaml", "overrides: run.steps=3", "run folder and layout: OK",
        "trainer on n1 n2; rollout on n3", f"ended at step 3; policy: {scene.plan.run_folder}/policy",
    ):  # fmt: skip
        assert words in said
    assert scene.asked[-1] == ["-m", "megatron_empg.cli", "report", scene.plan.run_folder]


def test_a_run_that_was_stopped_by_hand_is_not_finished(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(monkeypatch) == 0
    assert "ended at step 0; not finished: STOP" in capsys.readouterr().out


def test_a_job_whose_end_was_asked_for_says_what_ended_before(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.decision = RestartDecision(
        RestartAction.DONE, "driver was ended by SIGKILL; not started again", in_order=False
    )
    assert trained(monkeypatch) == 0
    assert "driver was ended by SIGKILL; not started again; the logs are in " in capsys.readouterr().out


def test_a_run_that_has_finished_starts_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.plan = replace(scene.plan, finished=True)
    assert trained(monkeypatch) == 0
    said = capsys.readouterr().out
    assert f"{scene.plan.run_folder} has finished its steps; raise run.steps" in said
    assert "ports from" not in said


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (ExitCode.CONFIGURATION, "configuration"),
        (ExitCode.PREFLIGHT, "preflight"),
        (ExitCode.CONVERSION, "conversion"),
        (ExitCode.SERVICE, "search"),
        (ExitCode.ENGINES, "engines"),
        (ExitCode.DRIVER, "driver"),
        (ExitCode.TRAINER, "trainer"),
        (ExitCode.WATCHDOG, "watchdog"),
        (ExitCode.NODE, "node"),
        (ExitCode.RESTARTS, "restarts"),
    ],
)
def test_a_run_that_is_given_up_ends_with_the_code_of_what_failed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: ExitCode, word: str
) -> None:
    scene.decision = RestartDecision(RestartAction.GIVE_UP, "it would come again", code, "the end of a log")
    assert trained(monkeypatch) == code
    out, err = capsys.readouterr()
    assert f"error ({word}): it would come again" in err
    assert "the end of a log" in out


def test_a_job_is_requeued_on_other_nodes_than_the_unfit(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/bad_nodes").write_text("7 n2 Xid 79\n7 n1 Xid 48\n", encoding="utf-8")
    scene.decision = RestartDecision(RestartAction.REQUEUE, "lost n4; newest checkpoint: step 2")
    monkeypatch.setattr(job.SlurmSite, "choose_nodes", lambda site: True)
    assert trained(monkeypatch) == ExitCode.NODE, "reached only if Slurm does not end it"
    said, error = capsys.readouterr()
    assert "error (node): job 7 is requeued, but Slurm has not ended it within 120 s" in error
    assert "lost n4; newest checkpoint: step 2" in said
    assert "requeueing job 7" in said
    assert scene.slurm[-2:] == [
        ("scontrol", "requeue", "7"),
        ("scontrol", "update", "JobId=7", "ExcNodeList=n1,n2,n9"),
    ]


def test_a_refused_requeue_is_an_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.decision, scene.requeued = RestartDecision(RestartAction.REQUEUE, "lost n4"), False
    assert trained(monkeypatch) == ExitCode.NODE
    assert "error (node): Slurm refuses to requeue job 7" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


def test_a_full_disk_is_one_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(supervisor: object) -> RestartDecision:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job.Supervisor, "run", full)
    assert trained(monkeypatch) == ExitCode.CONFIGURATION
    error = capsys.readouterr().err
    assert f"error (configuration): the job cannot go on in {scene.plan.run_folder}: [Errno 28] No space" in error
    assert error.count("\n") == 1


def test_a_file_that_cannot_be_written_ends_any_job_with_one_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMPG_LOGS", "/proc/no/logs")
    assert ended(monkeypatch, "suite", SCRIPT) == ExitCode.CONFIGURATION
    assert "error (configuration): [Errno 2] No such file or directory: '/proc/no" in capsys.readouterr().err


def test_a_plan_that_cannot_be_had_at_the_end_says_that_the_run_stands(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.answers = [scene.plan.to_json(), None]
    assert trained(monkeypatch) == ExitCode.CONFIGURATION
    error = capsys.readouterr().err
    assert "how far the run has come could not be read; what it has trained and saved stands" in error
    assert "nothing was started" not in error


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("allocation failure: Unable to contact slurm controller (connect failure)", "OK; Slurm was not asked"),
        ("sbatch: fatal: Could not establish a configuration source", "OK; Slurm was not asked"),
        ("allocation failure: Invalid generic resource (gres) specification", "Slurm refuses it"),
    ],
)
def test_a_check_tells_a_controller_that_does_not_answer_from_one_that_refuses(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, says: str,
    told: str,
) -> None:  # fmt: skip
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n", encoding="utf-8")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert trained(monkeypatch, "--check", "--nodes=3") == ExitCode.CONFIGURATION
    error = capsys.readouterr().err
    assert says in error
    assert told in error
    assert ("refuses" in error) == ("refuses" in told)


def test_a_check_that_finds_a_fault_says_to_check_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.answers = [None]
    assert trained(monkeypatch, "--check", "--nodes=3") == ExitCode.CONFIGURATION
    error = capsys.readouterr().err
    assert "fix the above and check again" in error
    assert "submit again" not in error


def test_a_check_may_be_called_from_any_folder(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "check_submission", lambda settings: 0 if settings.script == SCRIPT else 1)
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setenv("EMPG_HOME", "../slurm/..")
    assert ended(monkeypatch, "train", "../slurm/train.sh", RECIPE, "--check", "--nodes=3") == 0


def test_too_few_nodes_end_the_job(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.down = {"n2"}
    assert trained(monkeypatch) == ExitCode.NODE
    assert f"too few of n[1-3] are up and fit; {scene.plan.run_folder}/bad_nodes names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        (
            {"EMPG_MEGATRON_CHECKPOINT": "/no/such"},
            [RECIPE],
            "EMPG_MEGATRON_CHECKPOINT is '/no/such': no such folder",
        ),
        ({"EMPG_RECIPE": "recipes/none.yaml"}, [], "EMPG_RECIPE is 'recipes/none.yaml': no such file below"),
        ({"EMPG_DEVICE": "tpu"}, [RECIPE], "EMPG_DEVICE is 'tpu'; allowed: cuda, cpu"),
        (
            {"EMPG_CONTAINER": "i.sif", "PATH": ""},
            [RECIPE],
            "EMPG_CONTAINER is set, but srun has no --container-image",
        ),
        ({"SLURM_JOB_ID": ""}, [RECIPE], "this is not a Slurm job: use sbatch, or --check"),
        ({}, [], "no recipe is given"),
    ],
)
def test_a_job_that_cannot_be_as_it_is_ends_with_10(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    words: list[str],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ended(monkeypatch, "train", SCRIPT, *words) == ExitCode.CONFIGURATION
    assert f"error (configuration): {said}" in capsys.readouterr().err
    assert scene.asked == []


def test_a_python_without_the_packages_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.packages = False
    assert trained(monkeypatch) == ExitCode.CONFIGURATION
    assert "EMPG_PYTHON is 'python', which lacks packages that megatron_empg needs" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [None, "{}", "a library's last word"])
def test_a_recipe_that_is_refused_ends_the_job(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str | None
) -> None:
    scene.answers = [answer]
    assert trained(monkeypatch) == ExitCode.CONFIGURATION
    assert "error (configuration)" in capsys.readouterr().err


def test_a_run_from_a_megatron_checkpoint_reads_the_model_that_the_job_makes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMPG_MEGATRON_CHECKPOINT", str(tmp_path))
    assert trained(monkeypatch) == 0
    checked, planned = scene.asked[0], scene.asked[1]
    model = f"model.path={scene.plan.run_folder}/model"
    assert model not in checked
    assert model in planned


def test_only_a_check_plays_a_question(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "check_submission", lambda settings: 0)
    assert trained(monkeypatch, "--check", "--nodes=3") == 0
    assert "--play" in scene.asked[0]
    assert not Path(scene.plan.run_folder).exists(), "nothing was made"
    assert trained(monkeypatch) == 0
    assert "--play" not in scene.asked[1]


def test_a_conversion_needs_a_direction_and_a_source(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ended(monkeypatch, "convert", SCRIPT, "to-hf", "/no/such", "x") == ExitCode.CONFIGURATION
    assert "SRC is '/no/such': no such folder" in capsys.readouterr().err
    assert ended(monkeypatch, "convert", SCRIPT, "sideways", str(tmp_path), "x") == ExitCode.CONFIGURATION
    assert ended(monkeypatch, "convert", SCRIPT, "to-hf", str(tmp_path), "x", "--like", "y") == 0
    assert scene.asked == [["tools/convert_checkpoint.py", "to-hf", str(tmp_path), "x", "--like", "y"]]
    monkeypatch.setattr(Image, "run", lambda image, words: 1)
    assert ended(monkeypatch, "convert", SCRIPT, "to-hf", str(tmp_path), "x") == ExitCode.CONVERSION


def test_the_guard_requeues_the_job_once_its_script_is_lost(scene: Scene) -> None:
    said: list[str] = []
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        scene.down = {"n2"} if len(waited) < 3 else {"n1", "n2"}

    guard("n1", Slurm("7", "n[1-3]", scene.call, lambda seconds: None), said.append, sleep)
    assert len(waited) == 3
    assert said == ["lost n1, where the job's script ran: requeueing job 7"]
    assert scene.slurm[-1] == ("scontrol", "requeue", "7")


def test_a_signal_asks_for_the_end_and_another_ends_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    signals = job.JobSignals(said.append)
    signals.install()
    signal.raise_signal(signal.SIGUSR1)
    assert signals.asked
    assert said == ["signal: ending after the running step, with a checkpoint"]
    signals.stop = tmp_path / "STOP"
    signal.raise_signal(signal.SIGUSR1)
    assert (tmp_path / "STOP").exists()
    signals.being_requeued()
    signal.raise_signal(signal.SIGTERM)
    signals.is_requeued()
    with pytest.raises(SystemExit) as ended_by:
        signal.raise_signal(signal.SIGTERM)
    assert ended_by.value.code == 143


def test_slurms_clients_are_called_again_when_they_lose_their_connection() -> None:
    answers = [ProgramOutput(1, ""), ProgramOutput(1, ""), ProgramOutput(0, "n1\nn2\n")]
    waited: list[float] = []
    slurm = Slurm("7", "n[1-2]", lambda command, seconds: answers.pop(0), waited.append)
    assert slurm.node_names() == ["n1", "n2"]
    assert waited == [2.0, 5.0]


def test_an_error_of_a_job_says_what_failed() -> None:
    assert JobError(ExitCode.SERVICE, "x").word == "search"
    assert JobError(ExitCode.NODE, "x").word == "node"
