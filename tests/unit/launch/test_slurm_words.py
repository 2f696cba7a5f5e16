"""What Slurm's programs print is read as they print it; the answers are recorded ones."""

import pytest

from megatron_empg.launch import slurm_words

SINFO = """\
gpu-1 idle
gpu-2 alloc
gpu-3 mix
gpu-4 down*
gpu-5 down
gpu-6 fail
gpu-7 failg
gpu-8 drng
gpu-9 drain
gpu-10 idle*
"""
NODE = (
    "NodeName=node1 Arch=x86_64 CoresPerSocket=8 CPUAlloc=0 CPUTot=8 CPULoad=1.70 AvailableFeatures=(null) "
    "Gres=gpu:8 NodeAddr=127.0.0.1 NodeHostName=box Port=34567 Version=22.05.8 OS=Linux 6.1.0 #1 SMP "
    "RealMemory=4000 State=DOWN+NOT_RESPONDING Reason=Not responding [slurm@2026-11-26T18:00:00]"
)
JOB = "JobId=7 JobName=train Requeue=1 Restarts=1 NodeList=node[1-3] ExcNodeList={} Power="
CONFIG = """\
Configuration data as of 2026-11-26T18:00:00
TaskEpilog              = (null)
TaskPlugin              = cgroup,affinity
TaskPluginParam         = (null type)
"""
HELP = "      --cluster-constraint=list specify a list of cluster constraints\n"
PYXIS = "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH\n"
SCRIPT = """\
#!/usr/bin/env bash
# Deep Search: 4 nodes train.
#SBATCH --job-name=deepsearch
#SBATCH --nodes=8
#SBATCH --gpus-per-node=h100:8 # all of them
#SBATCH -t 60

export EMPG_RECIPE=recipes/a.yaml
#SBATCH --nodes=99
"""


def test_nodes_that_the_controller_has_given_up_are_told_by_their_states() -> None:
    assert slurm_words.down_nodes(SINFO) == {"gpu-4", "gpu-5", "gpu-6", "gpu-7"}
    assert slurm_words.down_nodes("") == set()


def test_names_of_hosts_stand_one_on_each_line() -> None:
    assert slurm_words.lines("node1\nnode2\n\n  node10 \n") == ["node1", "node2", "node10"]


def test_a_field_of_a_line_ends_at_the_next_blank() -> None:
    assert slurm_words.field(NODE, "NodeAddr") == "127.0.0.1"
    assert slurm_words.field(NODE, "NodeHostName") == "box"
    assert slurm_words.field(NODE, "NodeName") == "node1"
    assert slurm_words.field(NODE, "Addr") == ""
    assert slurm_words.field("", "NodeAddr") == ""


@pytest.mark.parametrize(("given", "read"), [("node[3-4],node9", "node[3-4],node9"), ("(null)", ""), ("", "")])
def test_a_job_is_kept_off_the_nodes_that_it_excludes(given: str, read: str) -> None:
    assert slurm_words.field(JOB.format(given), "ExcNodeList") == read


def test_tasks_are_bound_where_the_plugin_says_so() -> None:
    assert slurm_words.binds_processors(CONFIG)
    assert not slurm_words.binds_processors(CONFIG.replace("cgroup,affinity", "cgroup"))
    assert not slurm_words.binds_processors("TaskPluginParam         = affinity\n")


def test_pyxis_is_known_by_the_options_of_srun() -> None:
    assert slurm_words.has_container_options(HELP + PYXIS)
    assert not slurm_words.has_container_options(HELP)


def test_steps_that_srun_started_have_numbers() -> None:
    assert slurm_words.step_ids("7.0\n7.12\n7.batch\n7.extern\n7.interactive\n") == ["7.0", "7.12"]


@pytest.mark.parametrize(("word", "number"), [("8", "8"), ("h100:8", "8"), ("gpu:h100:4", "4"), ("", "")])
def test_gpus_may_come_with_their_kind(word: str, number: str) -> None:
    assert slurm_words.gpus_in(word) == number


def test_options_of_a_script_end_where_its_commands_begin() -> None:
    words = slurm_words.script_options(SCRIPT)
    assert words == ["--job-name=deepsearch", "--nodes=8", "--gpus-per-node=h100:8", "-t", "60"]
    assert slurm_words.option(words, "nodes", "N") == "8"
    assert slurm_words.option(words, "time", "t") == "60"
    assert slurm_words.option(words, "mem") is None


@pytest.mark.parametrize("words", [["--nodes=3"], ["--nodes", "3"], ["-N3"], ["-N", "3"], ["-N2", "--nodes=3"]])
def test_an_option_may_be_written_in_four_ways_and_the_last_counts(words: list[str]) -> None:
    assert slurm_words.option(words, "nodes", "N") == "3"


@pytest.mark.parametrize(("word", "most"), [("3", 3), ("2-4", 4), ("0", None), ("", None), ("all", None)])
def test_nodes_may_be_a_range(word: str, most: int | None) -> None:
    assert slurm_words.most_nodes(word) == most


def test_the_task_that_failed_first_stands_first() -> None:
    said = """\
srun: error: node2: task 1: Exited with exit code 78
srun: launch/slurm: _step_signal: Terminating StepId=7.4
slurmstepd: error: *** STEP 7.4 ON node1 CANCELLED AT 2026-11-26T18:00:00 ***
srun: error: node1: tasks 0,2-3: Terminated
srun: error: node[3-4]: task 5: Segmentation fault (core dumped)
srun: error: node5: task 6: Killed
"""
    assert slurm_words.task_statuses(said) == [("node2", 78), ("node1", -15), ("node[3-4]", -11), ("node5", -9)]
    assert slurm_words.task_statuses("srun: error: Node failure on node2\n") == []


def test_steps_are_found_by_the_name_they_were_started_under() -> None:
    said = "7.0 search\n7.3 engine_1\n7.4 engine_10\n7.batch batch\n7.12 engine_1\n"
    assert slurm_words.steps_named(said, "engine_1") == ["7.3", "7.12"]
    assert slurm_words.steps_named(said, "batch") == []
    assert slurm_words.steps_named("", "engine_1") == []
