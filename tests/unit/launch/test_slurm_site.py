"""A run as a Slurm job: its starts, its nodes after an end, and what the watchdog said. Slurm is recorded."""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_empg.launch.containers import Container
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.image import Image
from megatron_empg.launch.job_nodes import JobNodes
from megatron_empg.launch.job_settings import JobSettings, TrainSettings
from megatron_empg.launch.job_signals import JobSignals
from megatron_empg.launch.placement import JobShape, NodeShares
from megatron_empg.launch.recipe_questions import RecipeQuestions
from megatron_empg.launch.restart import AttemptEnd, EndCause
from megatron_empg.launch.run_plan import RunPlan, ServicePlan
from megatron_empg.launch.slurm import ProgramOutput, Slurm
from megatron_empg.launch.slurm_site import SlurmSite
from megatron_empg.launch.srun_runner import SrunRunner
from megatron_empg.launch.supervisor import StartRefused
from megatron_empg.run.watch.log_warnings import last_warnings

SEARCH = ServicePlan("search", "search_url", "A_TOKEN", ("-m", "search"))


class Cluster:
    """Nodes of a job, some of which are `down` or do not answer."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes
        self.down: set[str] = set()
        self.silent: set[str] = set()

    def run(self, command: Sequence[str], seconds: float) -> ProgramOutput:
        if command[0] == "sinfo":
            return ProgramOutput(0, "".join(f"{node} down*\n" for node in sorted(self.down)))
        if command[:3] == ("scontrol", "show", "hostnames"):
            return ProgramOutput(0, "\n".join(self.nodes))
        if command[:3] == ("scontrol", "show", "node"):
            return ProgramOutput(0, f"NodeAddr=10.0.0.{command[3][1:]} NodeHostName={command[3]}")
        if command[0] == "srun":
            return ProgramOutput(124 if command[4].partition("=")[2] in self.silent else 0, "")
        raise AssertionError(command)


class Image0(Image):
    """An image that answers with a plan, and keeps the questions."""

    def answer(self, words: Sequence[str]) -> str | None:
        asked.append(list(words))
        return answers.pop(0) if answers else None


asked: list[list[str]] = []
answers: list[str] = []
said: list[str] = []


class Job:
    """A site with three nodes of which two train; nothing of it is a process."""

    def __init__(self, tmp_path: Path) -> None:
        asked.clear()
        answers.clear()
        said.clear()
        (tmp_path / "run").mkdir()
        self.plan = RunPlan(
            "train",
            str(tmp_path / "run"),
            3,
            0,
            False,
            "deep_search",
            2,
            1,
            1,
            ("--model", "m"),
            services=(SEARCH,),
        )
        settings = JobSettings("/repo", "/s.sh", "python", job="7", node_list="n[1-4]", own_node="n1")
        training = TrainSettings("r.yaml", ("a=b",), JobShape(4, 1, 2, 1), "79", node_timeout=0.0)
        self.cluster = Cluster("n1", "n2", "n3", "n4")
        slurm = Slurm("7", "n[1-4]", self.cluster.run, sleep=lambda seconds: None)
        self.runner = SrunRunner(slurm, Container(), {})
        self.beside: list[tuple[str, Sequence[str]]] = []
        self.runner.start_beside = lambda name, node, command: self.beside.append((node, command))  # type: ignore[method-assign]
        self.signals = JobSignals(said.append)
        self.site = SlurmSite(
            settings=settings,
            training=training,
            plan=self.plan,
            shares=NodeShares(2, 1, 1, 1),
            nodes=JobNodes(slurm),
            runner=self.runner,
            questions=RecipeQuestions(Image0(settings, Container()), training),
            signals=self.signals,
            token="secret",
            say=said.append,
        )

    def start(self, number: int = 1) -> list[list[str]]:
        answers.append(replace(self.plan, engine_arguments=("--model", "converted")).to_json())
        return [[part.name for part in stage] for stage in self.site.stages(number)]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    found = Job(tmp_path)
    assert found.site.choose_nodes()
    return found


def test_the_nodes_are_told_with_addresses_and_ports(job: Job) -> None:
    assert said == [
        "trainer on n1 n2; rollout on n3; addresses n1=10.0.0.1 n2=10.0.0.2 n3=10.0.0.3; ports from 10896"
    ]


def test_a_start_prepares_the_folder_for_its_processes(job: Job) -> None:
    old = job.site.run_folder / "heartbeats/rank_9.json"
    old.parent.mkdir()
    old.touch()
    assert job.start() == [["preflight"], ["search"], ["engine_0", "driver", "trainer", "watchdog"]]
    logs = job.site.run_folder / "logs/7.1"
    assert said[-1] == f"attempt 1: from step 0; logs in {logs}"
    assert RunPlan.from_json((logs / "plan.json").read_text(encoding="utf-8")).engine_arguments[1] == "converted"
    assert not old.exists()
    assert (job.site.run_folder / "flight_recorder").is_dir()
    (words,) = asked
    assert words[:5] == ["-m", "megatron_empg.launch.tasks", "prepare", "r.yaml", "a=b"]
    assert words[-4:] == ["--trainer-address", "10.0.0.1", "--service", "search_url=http://10.0.0.3:10898"]
    assert job.runner.environment["EMPG_TOKEN"] == "secret"
    assert "secret" not in " ".join(words)


def test_whoever_watches_reads_the_newest_start_s_logs(job: Job) -> None:
    """Each task writes where node_task.take_place says: NAME.NODE.TASK.log of the start's folder."""
    for number in (1, 2):
        job.start(number)
        (job.runner.logs / "trainer.n1.0.log").write_text(f"WARNING of start {number}\n")
    logs = job.site.run_folder / "logs"
    os.utime(logs / "7.1/plan.json", (100, 100))
    assert [line.text for line in last_warnings(logs, 5)] == ["WARNING of start 2"]


def test_the_guard_is_on_another_node_than_the_script(job: Job) -> None:
    job.start()
    log = job.site.run_folder / "logs/7.1/guard.log"
    assert job.beside == [("n2", ["bash", "/repo/slurm/job.sh", "guard", "n1", str(log)])]


def test_a_guard_that_has_ended_is_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.start()
    ended = [["guard"], []]
    monkeypatch.setattr(job.runner, "ended_beside", lambda: ended.pop(0))
    job.site.look()
    job.site.look()
    (line,) = [line for line in said if line.startswith("the guard has ended; the run goes on without it")]
    assert "if n1 is lost, nobody requeues this job" in line
    assert f"{job.runner.logs}/guard.srun says why. It needs a Python of 3.9 or newer on every node" in line


def test_a_job_of_one_node_has_no_guard(job: Job) -> None:
    job.site.shares = NodeShares(1, 1, 1, 1, shared=True)
    assert job.site.choose_nodes()
    job.start()
    assert job.beside == []


def test_a_folder_in_which_another_process_trains_is_refused(job: Job) -> None:
    with (job.site.run_folder / ".lock").open("w", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StartRefused, match=r"another process trains in .*EMPG_RUN_FOLDER") as refused:
            job.start()
    assert refused.value.code is ExitCode.CONFIGURATION
    assert job.start()
    with (job.site.run_folder / ".lock").open("w", encoding="utf-8") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_recipe_that_is_refused_by_then_ends_the_job(job: Job) -> None:
    with pytest.raises(StartRefused, match="this start has begun no process of the run; fix the above") as refused:
        job.site.stages(1)
    assert refused.value.code is ExitCode.CONFIGURATION


def test_a_signal_that_came_early_still_stops_the_run(job: Job) -> None:
    job.signals.asked = True
    job.start()
    assert (job.site.run_folder / "STOP").exists()


def test_services_and_preflight_are_told_once(job: Job) -> None:
    job.start()
    (job.runner.logs / "preflight.n1.0.log").write_text("env: X\npreflight: PASS, 3 nodes\n", encoding="utf-8")
    job.site.look()
    assert "preflight: PASS, 3 nodes" not in said, "its logs are not read while it runs"
    job.runner.over.add("preflight")
    job.site.look()
    job.site.look()
    job.site.serving()
    assert said[-2:] == [
        "preflight: PASS, 3 nodes",
        "search service of deep_search at http://10.0.0.3:10898: healthy",
    ]


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("watchdog: GPU 0 of n2: Xid 31\n", None),
        ("watchdog: hanging: rank 1 on n2 (pid 7)\nwatchdog: what the others\n", EndCause.HUNG),
        ("watchdog: unfit: GPU 0 of n2: Xid 79\n", EndCause.UNFIT_NODE),
    ],
)
def test_the_watchdogs_word_is_in_its_log(job: Job, log: str, cause: EndCause | None) -> None:
    job.start()
    (job.runner.logs / "watchdog.n1.0.log").write_text(f"env: X\n{log}", encoding="utf-8")
    verdict = job.site.watchdog_verdict()
    assert (verdict and verdict.cause) == cause
    if verdict:
        assert verdict.says in log
        assert verdict.code is ExitCode.WATCHDOG


def placed(job: Job) -> tuple[str, ...]:
    assert job.site.placement is not None
    return job.site.placement.nodes


def test_a_spare_takes_the_place_of_a_lost_node(job: Job) -> None:
    job.runner.lost = ("n2",)
    job.cluster.down = {"n2"}
    means = job.site.means(AttemptEnd(EndCause.LOST_NODE, code=ExitCode.NODE))
    assert (means.nodes, means.requeue) == (True, True)
    assert placed(job) == ("n1", "n3", "n4")
    assert job.runner.nodes == ("n1", "n3", "n4")
    assert said[-1] == "going on without n2"


def test_a_node_that_slurm_does_not_miss_is_left_out_while_it_is_silent(job: Job) -> None:
    job.runner.lost = ("n1",)
    job.cluster.silent = {"n1"}
    assert job.site.means(AttemptEnd(EndCause.LOST_NODE)).nodes
    assert placed(job) == ("n2", "n3", "n4")
    job.cluster.silent = set()
    assert job.site.means(AttemptEnd(EndCause.LOST_NODE)).nodes
    assert placed(job) == ("n1", "n2", "n3"), "it answers again"


def test_without_a_spare_too_few_nodes_are_left(job: Job) -> None:
    job.cluster.down = {"n2", "n4"}
    assert not job.site.means(AttemptEnd(EndCause.LOST_NODE)).nodes


def test_an_unfit_node_is_left_out_for_good(job: Job) -> None:
    (job.site.run_folder / "bad_nodes").write_text("7 n3 GPU 0: Xid 79\n6 n1 x\n", encoding="utf-8")
    assert job.site.means(AttemptEnd(EndCause.UNFIT_NODE)).nodes
    assert placed(job) == ("n1", "n2", "n4")
    assert job.site.unfit() == ["n3"]


@pytest.mark.parametrize("end", [AttemptEnd(EndCause.HUNG), AttemptEnd(EndCause.LOST_NODE, requested=True)])
def test_a_job_that_is_requeued_anyhow_chooses_no_nodes(job: Job, end: AttemptEnd) -> None:
    job.cluster.down = {"n1", "n2", "n3", "n4"}
    assert job.site.means(end).nodes
    assert len(said) == 1


def test_how_far_the_run_is_the_image_says_and_its_checkpoints(job: Job) -> None:
    (job.site.run_folder / "checkpoints/step_000004").mkdir(parents=True)
    assert job.site.checkpoint() == 4
    answers.append(replace(job.plan, finished=True).to_json())
    assert job.site.finished()
