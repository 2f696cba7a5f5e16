"""A job on Slurm, on its batch host: the standard library of Python 3.9 is all it needs.

    python3 -S -I -c "…; from megatron_empg.launch.job import main; main()" train SCRIPT RECIPE key=value …

The sbatch files in slurm/ run this (`slurm/job.sh`); docs/slurm.md describes what a job does. The recipe is read
and checked by processes in the image, and what runs there are steps of the job.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from megatron_empg.launch.containers import Container, choose_container, mounts
from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.guard import guard
from megatron_empg.launch.image import Image
from megatron_empg.launch.job_error import JobError, misconfigured
from megatron_empg.launch.job_nodes import JobNodes
from megatron_empg.launch.job_output import say, tell_error
from megatron_empg.launch.job_settings import (
    JobSettings,
    TrainSettings,
    mounted_paths,
    read_job,
    read_training,
    shown,
    sorted_words,
)
from megatron_empg.launch.job_signals import JobSignals
from megatron_empg.launch.placement import share_out
from megatron_empg.launch.recipe_questions import RecipeQuestions
from megatron_empg.launch.restart import RestartAction, RestartDecision
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.launch.slurm import Slurm
from megatron_empg.launch.slurm_site import SlurmSite
from megatron_empg.launch.small_jobs import convert, suite
from megatron_empg.launch.srun_runner import SrunRunner
from megatron_empg.launch.supervisor import Supervisor
from megatron_empg.run.names import RunPaths

NO_ANSWER = ("unable to contact slurm controller", "could not establish a configuration source")
"""What sbatch says, in lower case, where no controller answers it, and where it knows of none."""
TOKEN_BYTES = 24
UNTIL_SLURM_ENDS_US = 120.0
"""Seconds, once the job is requeued."""


def train(words: Sequence[str], environment: Mapping[str, str], script: str) -> int:
    """A training run: settings, checks, nodes, attempts, end. Returns the exit code; raises JobError."""
    signals = JobSignals(say)
    signals.install()
    job, training = settings(words, environment, script)
    slurm = Slurm(job.job, job.node_list)
    container = container_of(job, slurm, mounted_paths(environment, words))
    questions = RecipeQuestions(Image(job, container), training)

    plan = check(job, questions)
    if training.check_only:
        return check_submission(job)
    if training.megatron_checkpoint:
        questions = questions.from_converted(plan)
    make_run_folder(plan)
    signals.stop = RunPaths(plan.run_folder).stop
    if plan.finished:
        say(f"{plan.run_folder} has finished its steps; raise run.steps")
        return 0

    runner = SrunRunner(slurm, container, environment, binds_processors=slurm.binds_processors())
    site = SlurmSite(
        settings=job,
        training=training,
        plan=plan,
        shares=share_out(plan, training.shape),
        nodes=JobNodes(slurm, job.interface),
        runner=runner,
        questions=questions,
        signals=signals,
        token=secrets.token_hex(TOKEN_BYTES),
        say=say,
    )
    return end(attempts(site), site)


def settings(
    words: Sequence[str], environment: Mapping[str, str], script: str
) -> tuple[JobSettings, TrainSettings]:
    """What the environment and the words say, all printed. Raises JobError."""
    given = sorted_words(words, environment)
    job = read_job(environment, script, given.options)
    for line in shown(environment, job, given.recipe):
        say(line)
    training = read_training(environment, given, job)
    say(f"overrides: {' '.join(training.overrides) or 'none'}")
    if not job.job and not training.check_only:
        raise misconfigured("this is not a Slurm job: use sbatch, or --check")
    return job, training


def check(job: JobSettings, questions: RecipeQuestions) -> RunPlan:
    """Everything that can be known before a step starts: seconds. Raises JobError."""
    training = questions.training
    if training.megatron_checkpoint and not Path(training.megatron_checkpoint).is_dir():
        raise misconfigured(f"EMPG_MEGATRON_CHECKPOINT is '{training.megatron_checkpoint}': no such folder")
    if not os.access(training.recipe, os.R_OK):
        raise misconfigured(f"EMPG_RECIPE is '{training.recipe}': no such file below {job.home}")
    if not questions.image.has_packages():
        raise misconfigured(
            f"EMPG_PYTHON is '{job.python}', which lacks packages that megatron_empg needs: install them there "
            "(README.md, 'On a cluster'; without a GPU 'make setup'), or set EMPG_PYTHON to a Python that has them"
        )
    plan = questions.check()
    say("recipe, model, run folder and layout: OK")
    return plan


def check_submission(job: JobSettings) -> int:
    """What Slurm says of the script, without a job. Raises JobError."""
    if shutil.which("sbatch") is None:
        return _slurm_was_not_asked("this machine has no sbatch")
    command = ["sbatch", "--test-only", *job.options, job.script]
    asked = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    told = asked.stderr.decode("utf-8", "replace")
    sys.stderr.write(told)
    if asked.returncode == 0:
        return 0
    if any(words in told.lower() for words in NO_ANSWER):
        return _slurm_was_not_asked("sbatch reaches no controller")
    raise misconfigured("Slurm refuses it (sbatch --test-only)")


def _slurm_was_not_asked(why: str) -> int:
    untold = f"recipe and model are OK; Slurm was not asked, since {why}"
    say(f"{untold}: check again on a login node", sys.stderr)
    return ExitCode.CONFIGURATION


def make_run_folder(plan: RunPlan) -> None:
    """Raises JobError where it cannot be written."""
    paths = RunPaths(plan.run_folder)
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        paths.starts.touch()
    except OSError as error:
        raise misconfigured(f"cannot write {plan.run_folder}: {error.strerror}") from None


def attempts(site: SlurmSite) -> RestartDecision:
    """Start after start in this job, until all is done or only others can help. Raises JobError."""
    try:
        if not site.choose_nodes():
            raise JobError(
                ExitCode.NODE,
                f"too few of {site.settings.node_list} are up and fit; {site.paths.bad_nodes} names GPU errors",
            )
        return Supervisor(site, site.runner, site.token).run()
    except OSError as error:
        raise misconfigured(
            f"the job cannot go on in {site.run_folder}: {error}. Every part of the run is ended; fix that and "
            "submit again: it goes on from its newest checkpoint"
        ) from None
    finally:
        site.runner.stop()


def end(decision: RestartDecision, site: SlurmSite) -> int:
    """A new start of the job, or the report of a run that is over. Returns the exit code; raises JobError."""
    if decision.action is RestartAction.REQUEUE:
        requeue(site, decision.why)
    if decision.action is RestartAction.GIVE_UP:
        if decision.logs:
            say(f"the logs are in {site.runner.logs}:")
            print(decision.logs, flush=True)
        raise JobError(decision.code or ExitCode.TRAINER, decision.why)
    if not decision.in_order:
        say(f"{decision.why}; the logs are in {site.runner.logs}")
    plan = site.questions.plan()
    if plan.kind == "train":
        site.questions.image.run(["-m", "megatron_empg.cli", "report", plan.run_folder])
    how = f"policy: {RunPaths(plan.run_folder).policy}" if plan.finished else "not finished: STOP"
    say(f"ended at step {plan.checkpoint}; {how}")
    return 0


def requeue(site: SlurmSite, why: str) -> NoReturn:
    """A new start of this job, on other nodes than those it is to go on without. Slurm ends this one.

    Raises JobError where it does not.
    """
    say(why)
    say(f"requeueing job {site.job}")
    site.signals.being_requeued()
    agreed = site.nodes.slurm.requeue(site.unfit())
    site.signals.is_requeued()
    if not agreed:
        raise JobError(
            ExitCode.NODE,
            f"Slurm refuses to requeue job {site.job} (scontrol requeue; is it submitted with --requeue?): submit "
            "again, the run goes on from its newest checkpoint",
        )
    time.sleep(UNTIL_SLURM_ENDS_US)
    raise JobError(
        ExitCode.NODE,
        f"job {site.job} is requeued, but Slurm has not ended it within {UNTIL_SLURM_ENDS_US:.0f} s",
    )


def run_suite(words: Sequence[str], environment: Mapping[str, str], script: str) -> int:
    """The collectives between the job's nodes. Raises JobError."""
    job, slurm, container = outset(words, environment, script)
    runner = SrunRunner(slurm, container, environment, binds_processors=slurm.binds_processors())
    return suite(words, environment, job, runner)


def run_conversion(words: Sequence[str], environment: Mapping[str, str], script: str) -> int:
    """A checkpoint from one form to the other. Raises JobError."""
    job, _, container = outset(words, environment, script)
    return convert(words, Image(job, container))


def outset(
    words: Sequence[str], environment: Mapping[str, str], script: str
) -> tuple[JobSettings, Slurm, Container]:
    """What a job that trains nothing needs to know, printed. Raises JobError."""
    job = read_job(environment, script)
    for line in shown(environment, job):
        say(line)
    slurm = Slurm(job.job, job.node_list)
    return job, slurm, container_of(job, slurm, mounted_paths(environment, words))


def container_of(job: JobSettings, slurm: Slurm, paths: Sequence[str]) -> Container:
    """How the job's commands get into its image, if it has one. Raises JobError."""
    if not job.container:
        return Container()
    mounted = mounts(job.home, job.mounts, paths)
    apptainer = shutil.which("apptainer") is not None
    return choose_container(job.container, mounted, job.home, pyxis=slurm.has_pyxis(), apptainer=apptainer)


def watch_node(node: str, log: str, environment: Mapping[str, str]) -> int:
    """The guard's step."""
    slurm = Slurm(environment["SLURM_JOB_ID"], environment["SLURM_JOB_NODELIST"])
    with Path(log).open("a", encoding="utf-8") as file:
        guard(node, slurm, partial(say, where=file))
    return 0


KINDS = {"train": train, "suite": run_suite, "convert": run_conversion}


def main() -> None:
    """`train`, `suite` or `convert` with the script and the words behind it; `guard` with a node and a log."""
    kind, first, *words = sys.argv[1:]
    if kind != "guard":
        first = os.path.abspath(first)  # before another folder is the working one
    home = os.environ["EMPG_HOME"] = os.path.abspath(os.environ["EMPG_HOME"])
    os.chdir(home)
    # An image has the packages, not this one.
    os.environ["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        if kind == "guard":
            raise SystemExit(watch_node(first, words[0], os.environ))
        raise SystemExit(int(KINDS[kind](words, os.environ, first)))
    except JobError as error:
        end_with(error)
    except OSError as error:
        end_with(misconfigured(f"{error}; nothing of the job runs any more"))


def end_with(error: JobError) -> NoReturn:
    """Say why the job ends, and end it."""
    tell_error(error)
    raise SystemExit(int(error.exit_code))
