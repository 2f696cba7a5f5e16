"""What the environment and the words behind a script say of a job."""

import re
from pathlib import Path

import pytest

from megatron_empg.launch.job_error import JobError
from megatron_empg.launch.job_settings import (
    mounted_paths,
    read_job,
    read_shape,
    read_training,
    shown,
    sorted_words,
)
from megatron_empg.launch.placement import JobShape

ROOT = Path(__file__).parents[3]
SCRIPT = str(ROOT / "slurm/deepsearch_32b.sh")


def environment(**given: str) -> dict[str, str]:
    return {"EMPG_HOME": str(ROOT), **given}


def test_words_behind_a_script_are_keys_or_with_check_options_of_sbatch() -> None:
    found = sorted_words(["--check", "run.steps=3", "--nodes=3", "data=x"], {"EMPG_RECIPE": "r.yaml"})
    assert found.recipe == "r.yaml"
    assert found.overrides == ("run.steps=3", "data=x")
    assert found.options == ("--nodes=3",)
    assert found.check_only


def test_the_first_word_is_the_recipe_where_none_is_given() -> None:
    assert sorted_words(["r.yaml", "run.steps=3"], {}).recipe == "r.yaml"
    assert sorted_words(["--check", "r.yaml", "--nodes=2"], {}).recipe == "r.yaml"
    assert sorted_words(["--check", "--nodes=2", "-N2", "r.yaml", "--exclusive"], {}).recipe == "r.yaml"


@pytest.mark.parametrize(
    ("words", "recipe", "said"),
    [
        (["other.yaml"], "r.yaml", "argument 'other.yaml': give recipe keys as key=value, or --check with sbatch"),
        (["r.yaml", "more"], "", "argument 'more': give recipe keys as key=value"),
        (["--nodes=3"], "r.yaml", "'--nodes=3' comes after the script; sbatch options go before it"),
        (["--check", "--nodes", "4", "r.yaml"], "", "'--nodes' and '4' stand apart: write --nodes=4, or"),
        (["--check", "-N", "4"], "r.yaml", "'-N' and '4' stand apart: write -N4, or"),
        (["run.steps=3"], "", "no recipe is given: sbatch slurm/train.sh RECIPE"),
    ],
)
def test_a_word_that_has_no_place_is_refused(words: list[str], recipe: str, said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)) as refused:
        sorted_words(words, {"EMPG_RECIPE": recipe})
    assert refused.value.exit_code == 10


def test_gpus_are_slurms_word_else_the_scripts() -> None:
    assert read_job(environment(), SCRIPT).gpus_per_node == "8"
    assert read_job(environment(SLURM_GPUS_PER_NODE="h100:4"), SCRIPT).gpus_per_node == "4"
    assert read_job(environment(EMPG_GPUS_PER_NODE="2", SLURM_GPUS_PER_NODE="4"), SCRIPT).gpus_per_node == "2"
    assert read_job(environment(), SCRIPT, ["--gpus-per-node=1"]).gpus_per_node == "1"


def test_the_python_is_the_repositorys_but_in_an_image(tmp_path: Path) -> None:
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n", encoding="utf-8")
    python.chmod(0o755)
    own = {"EMPG_HOME": str(tmp_path)}
    assert read_job(own, SCRIPT).python == str(python)
    assert read_job(own | {"EMPG_CONTAINER": "i.sif"}, SCRIPT).python == "python3"
    assert read_job(own | {"EMPG_PYTHON": "/my/python"}, SCRIPT).python == "/my/python"
    python.chmod(0o644)
    assert read_job(own, SCRIPT).python == "python3"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"SLURM_JOB_NUM_NODES": "3"}, JobShape(3, 8)),
        ({}, JobShape(8, 8)),  # the script's own
        ({"EMPG_TRAINER_NODES": "2", "EMPG_ROLLOUT_NODES": "1"}, JobShape(8, 8, 2, 1)),
        ({"EMPG_ENGINES_PER_NODE": "2", "EMPG_DEVICE": "cpu"}, JobShape(8, 8, engines_per_node=2, cpu=True)),
    ],
)
def test_the_shape_is_what_the_job_has(given: dict[str, str], wanted: JobShape) -> None:
    assert read_shape(given, read_job(environment(**given), SCRIPT)) == wanted


def test_the_nodes_of_a_check_are_its_options_and_may_be_a_range() -> None:
    for options in (["--nodes=2-5"], ["-N5"]):
        assert read_shape({}, read_job(environment(), SCRIPT, options)).nodes == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"EMPG_TRAINER_NODES": "two"}, "EMPG_TRAINER_NODES is 'two'; set it to a number of 1 or more"),
        ({"EMPG_ROLLOUT_NODES": "0"}, "EMPG_ROLLOUT_NODES is '0'; set it to a number of 1 or more"),
        ({"EMPG_GPUS_PER_NODE": "many"}, "EMPG_GPUS_PER_NODE is 'many'; set it to a number"),
        ({"EMPG_MINIATURE": "yes"}, "EMPG_MINIATURE is 'yes'; allowed: 0, 1"),
        ({"EMPG_MAX_RESTARTS": "x"}, "EMPG_MAX_RESTARTS is 'x'"),
        ({"EMPG_DEVICE": "tpu"}, "EMPG_DEVICE is 'tpu'; allowed: cuda, cpu"),
        ({"EMPG_BASE_PORT": "-1"}, "EMPG_BASE_PORT is '-1'"),
        ({"EMPG_GPU_MEMORY": "80GB"}, "EMPG_GPU_MEMORY is '80GB', not a number"),
        ({"EMPG_NODE_TIMEOUT": "long"}, "EMPG_NODE_TIMEOUT is 'long', not a number"),
        ({"SLURM_JOB_NUM_NODES": "x"}, "--nodes is 'x'"),
    ],
)
def test_a_variable_that_cannot_be_is_named_with_its_value(given: dict[str, str], said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)) as refused:
        read_training(given, sorted_words(["r.yaml"], {}), read_job(environment(**given), SCRIPT))
    assert refused.value.exit_code == 10


def test_what_is_short_for_keys_stands_before_the_users_own() -> None:
    given = {"EMPG_RUN_FOLDER": "/runs/a", "EMPG_MODEL": "/m"}
    words = sorted_words(["r.yaml", "model.path=/mine"], {})
    found = read_training(given, words, read_job(environment(**given), SCRIPT))
    assert found.overrides == ("run.folder=/runs/a", "model.path=/m", "model.path=/mine")


def test_limits_and_choices_have_defaults() -> None:
    found = read_training({}, sorted_words(["r.yaml"], {}), read_job(environment(), SCRIPT))
    assert (found.most_restarts, found.preflight, found.gpu_memory, found.node_timeout) == (20, True, "79", 400.0)
    given = {"EMPG_PREFLIGHT": "0", "EMPG_PREFLIGHT_ARGS": "--min-disk 1", "EMPG_MAX_RESTARTS": "0"}
    found = read_training(given, sorted_words(["r.yaml"], {}), read_job(environment(**given), SCRIPT))
    assert (found.preflight, found.preflight_arguments, found.most_restarts) == (False, ("--min-disk", "1"), 0)


def test_what_says_most_of_a_job_is_shown() -> None:
    given = environment(EMPG_TRAINER_NODES="2", EMPG_CONTAINER="i.sif", EMPG_PYTHON="p")
    lines = shown(given, read_job(given, SCRIPT), "r.yaml")
    assert lines == [
        "EMPG_RECIPE=r.yaml",
        "EMPG_TRAINER_NODES=2",
        "EMPG_GPUS_PER_NODE=8",
        "EMPG_DEVICE=cuda",
        "EMPG_CONTAINER=i.sif",
        "EMPG_PYTHON=p",
    ]


def test_every_path_that_a_job_names_is_mounted() -> None:
    given = {"EMPG_RUN_FOLDER": "/runs/a", "EMPG_DATA": "/data"}
    found = mounted_paths(given, ["r.yaml", "data=/my/corpus.jsonl", "to-hf", "/src"])
    assert found == ["/runs/a", "/data", "r.yaml", "/my/corpus.jsonl", "to-hf", "/src"]
