"""What the environment and the words behind a script say of a job. docs/slurm.md lists the variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.launch import slurm_words
from megatron_empg.launch.job_error import misconfigured
from megatron_empg.launch.placement import JobShape
from megatron_empg.launch.restart import MOST_RESTARTS, RestartsError, most_restarts

PORTS_OF_JOB = 128
FIRST_PORT, JOBS_APART = 10_000, 170
"""Ports lie below those that the kernel gives out, and those of jobs with near numbers apart."""
NUMBER = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class JobSettings:
    """What every job needs to know. `home` is the repository, `script` the sbatch file as it runs."""

    home: str
    script: str
    python: str
    """In the image, where there is one."""
    device: str = "cuda"
    gpus_per_node: str = ""
    """As given; only `train` needs a number."""
    interface: str = ""
    container: str = ""
    mounts: str = ""
    base_port: str = ""
    options: tuple[str, ...] = ()
    """sbatch's, given with --check."""
    job: str = ""
    """Slurm's number of it; "" outside a job."""
    node_list: str = ""
    own_node: str = ""

    @property
    def ports_from(self) -> int:
        """The first of the job's ports."""
        if self.base_port:
            return int(self.base_port)
        return FIRST_PORT + int(self.job) % JOBS_APART * PORTS_OF_JOB


@dataclass(frozen=True)
class TrainSettings:
    """What a training job needs to know besides."""

    recipe: str
    overrides: tuple[str, ...]
    shape: JobShape
    gpu_memory: str
    check_only: bool = False
    most_restarts: int = MOST_RESTARTS
    preflight: bool = True
    preflight_arguments: tuple[str, ...] = ()
    model: str = ""
    megatron_checkpoint: str = ""
    data: str = ""
    miniature: bool = False
    stall_seconds: str = ""
    silence_seconds: str = ""
    node_timeout: float = 400.0


@dataclass(frozen=True)
class ScriptArguments:
    """The words behind a script, by kind."""

    recipe: str = ""
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    check_only: bool = False


def sorted_words(words: Sequence[str], environment: Mapping[str, str]) -> ScriptArguments:
    """Sort a training job's arguments. One that is neither option nor key is its recipe if EMPG_RECIPE is not set.

    Raises JobError for a word that has no place.
    """
    recipe = environment.get("EMPG_RECIPE", "")
    overrides, options, check_only = [], [], False
    for before, word in zip(["", *words], words):  # noqa: B905 (Python 3.9)
        if _lacks_value(before) and not word.startswith("-") and "=" not in word:
            joined = f"{before}={word}" if before.startswith("--") else before + word
            raise misconfigured(
                f"'{before}' and '{word}' stand apart: write {joined}, or the recipe before sbatch's options"
            )
        if word == "--check":
            check_only = True
        elif word.startswith("-"):
            options.append(word)
        elif "=" in word:
            overrides.append(word)
        elif not recipe:
            recipe = word
        else:
            raise misconfigured(
                f"argument '{word}': give recipe keys as key=value, or --check with sbatch options"
            )
    if options and not check_only:
        raise misconfigured(f"'{options[0]}' comes after the script; sbatch options go before it")
    if not recipe:
        raise misconfigured("no recipe is given: sbatch slurm/train.sh RECIPE [key=value …], or set EMPG_RECIPE")
    return ScriptArguments(recipe, tuple(overrides), tuple(options), check_only)


def _lacks_value(word: str) -> bool:
    """Whether it is an option of sbatch whose value, if it has one, may be the next word: "--nodes", "-N"."""
    if word.startswith("--"):
        return word != "--check" and "=" not in word
    return len(word) == 2 and word.startswith("-")


def read_job(environment: Mapping[str, str], script: str, options: Sequence[str] = ()) -> JobSettings:
    """Raises JobError."""
    home = os.path.abspath(environment["EMPG_HOME"])  # with its links: other nodes may know it by them alone
    device = environment.get("EMPG_DEVICE") or "cuda"
    if device not in ("cuda", "cpu"):
        raise misconfigured(f"EMPG_DEVICE is '{device}'; allowed: cuda, cpu")
    base_port = environment.get("EMPG_BASE_PORT", "")
    if base_port and not NUMBER.fullmatch(base_port):
        raise misconfigured(f"EMPG_BASE_PORT is '{base_port}'; set it to the first of the job's ports, a number")
    container = environment.get("EMPG_CONTAINER", "")
    python = environment.get("EMPG_PYTHON") or default_python(home, container)
    gpus_per_node = environment.get("EMPG_GPUS_PER_NODE") or given_gpus(environment, script, options)
    return JobSettings(
        home=home,
        script=str(Path(script).resolve()),
        python=python,
        device=device,
        gpus_per_node=gpus_per_node,
        interface=environment.get("EMPG_INTERFACE", ""),
        container=container,
        mounts=environment.get("EMPG_MOUNTS", ""),
        base_port=base_port,
        options=tuple(options),
        job=environment.get("SLURM_JOB_ID", ""),
        node_list=environment.get("SLURM_JOB_NODELIST", ""),
        own_node=environment.get("SLURMD_NODENAME", ""),
    )


def default_python(home: str, container: str) -> str:
    """The repository's own, if it has one and no image is to have it."""
    own = f"{home}/.venv/bin/python"
    return own if not container and os.access(own, os.X_OK) else "python3"


def given_gpus(environment: Mapping[str, str], script: str, options: Sequence[str]) -> str:
    """GPUs of a node: Slurm's word in a job, else the options' or the script's."""
    given = environment.get("SLURM_GPUS_PER_NODE") or script_option(script, options, "gpus-per-node", "")
    return slurm_words.gpus_in(given)


def script_option(script: str, options: Sequence[str], name: str, letter: str) -> str:
    """The value of an sbatch option as given, or else of the script's #SBATCH lines; "" without either."""
    text = Path(script).read_text(encoding="utf-8", errors="replace")
    words = [*slurm_words.script_options(text), *options]
    return slurm_words.option(words, name, letter) or ""


def read_training(environment: Mapping[str, str], words: ScriptArguments, job: JobSettings) -> TrainSettings:
    """Raises JobError with the variable, its value and what it may be."""

    def given(name: str, default: str = "") -> str:
        return environment.get(f"EMPG_{name}") or default

    miniature = given("MINIATURE", "0")
    if miniature not in ("0", "1"):
        raise misconfigured(f"EMPG_MINIATURE is '{miniature}'; allowed: 0, 1")
    try:
        restarts = most_restarts(environment)
    except RestartsError as error:
        raise misconfigured(str(error)) from None
    overrides = []
    if given("RUN_FOLDER"):
        overrides.append(f"run.folder={given('RUN_FOLDER')}")
    if given("MODEL"):
        overrides.append(f"model.path={given('MODEL')}")
    return TrainSettings(
        recipe=words.recipe,
        overrides=(*overrides, *words.overrides),
        shape=read_shape(environment, job),
        gpu_memory=_seconds(environment, "EMPG_GPU_MEMORY", "79"),
        check_only=words.check_only,
        most_restarts=restarts,
        preflight=given("PREFLIGHT", "1") != "0",
        preflight_arguments=tuple(given("PREFLIGHT_ARGS").split()),
        model=given("MODEL"),
        megatron_checkpoint=given("MEGATRON_CHECKPOINT"),
        data=given("DATA"),
        miniature=miniature == "1",
        stall_seconds=_seconds(environment, "EMPG_STALL_SECONDS", ""),
        silence_seconds=_seconds(environment, "EMPG_SILENCE_SECONDS", ""),
        node_timeout=float(_seconds(environment, "EMPG_NODE_TIMEOUT", "400")),
    )


def read_shape(environment: Mapping[str, str], job: JobSettings) -> JobShape:
    """The nodes that the job has or asks for, and what is said of their roles. Raises JobError."""
    numbers = {}
    for name in ("EMPG_TRAINER_NODES", "EMPG_ROLLOUT_NODES", "EMPG_ENGINES_PER_NODE"):
        numbers[name] = _number(name, environment.get(name, ""))
    gpus = _number("EMPG_GPUS_PER_NODE", job.gpus_per_node)
    if gpus is None:
        raise misconfigured("EMPG_GPUS_PER_NODE is ''; set it to a number of 1 or more, or give --gpus-per-node")
    word = environment.get("SLURM_JOB_NUM_NODES") or script_option(job.script, job.options, "nodes", "N")
    nodes = slurm_words.most_nodes(word)
    if nodes is None:
        raise misconfigured(f"--nodes is '{word}'; give the job a number of nodes: sbatch --nodes=N")
    return JobShape(
        nodes=nodes,
        gpus_per_node=gpus,
        trainer_nodes=numbers["EMPG_TRAINER_NODES"],
        rollout_nodes=numbers["EMPG_ROLLOUT_NODES"],
        engines_per_node=numbers["EMPG_ENGINES_PER_NODE"],
        cpu=job.device == "cpu",
    )


def _number(name: str, given: str) -> int | None:
    if not given:
        return None
    if not NUMBER.fullmatch(given):
        raise misconfigured(f"{name} is '{given}'; set it to a number of 1 or more")
    return int(given)


def _seconds(environment: Mapping[str, str], name: str, default: str) -> str:
    """A size or time, still in words. Raises JobError for what is no number."""
    given = environment.get(name) or default
    if given and not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", given):
        raise misconfigured(f"{name} is '{given}', not a number")
    return given


def shown(environment: Mapping[str, str], job: JobSettings, recipe: str = "") -> list[str]:
    """The variables that say most of a job, a line for each that is set."""
    known = {
        "RECIPE": recipe,
        "GPUS_PER_NODE": job.gpus_per_node,
        "DEVICE": job.device,
        "CONTAINER": job.container,
        "PYTHON": job.python,
    }
    found = []
    for name in ("RECIPE", "TRAINER_NODES", "ROLLOUT_NODES", "GPUS_PER_NODE", "ENGINES_PER_NODE", "DEVICE",
                 "CONTAINER", "PYTHON"):  # fmt: skip
        value = known.get(name, environment.get(f"EMPG_{name}", ""))
        if value:
            found.append(f"EMPG_{name}={value}")
    return found


def mounted_paths(environment: Mapping[str, str], words: Sequence[str]) -> list[str]:
    """What the job's tasks read and write, by its variables and the values of its words."""
    names = ("EMPG_RUN_FOLDER", "EMPG_MODEL", "EMPG_MEGATRON_CHECKPOINT", "EMPG_DATA", "EMPG_LOGS")
    paths = [environment.get(name, "") for name in names]
    for word in words:
        paths.append(word.partition("=")[2] if "=" in word else word)
    return [path for path in paths if path]
