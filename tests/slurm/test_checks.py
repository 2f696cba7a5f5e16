"""What is refused before anything starts, on a login node and in a job; every script by shellcheck and sbatch."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import OVERRIDES, ROOT, SCRIPT, VARIABLES, Run
from tests.support.models import write_sparse_weights

SCRIPTS = sorted(path.name for path in (ROOT / "slurm").glob("*.sh"))
JOBS = [name for name in SCRIPTS if name not in ("job.sh", "prepare.sh")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        ["shellcheck", "-x", f"slurm/{script}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def realistic():
    """Eight nodes of the size the scripts ask for."""
    folder = Path(tempfile.mkdtemp(prefix="empg_slurm_", dir="/tmp"))
    with Cluster(folder, nodes=8, cores=96, memory_mb=1_000_000) as found:
        yield found
    shutil.rmtree(folder)


@pytest.mark.parametrize("script", JOBS)
def test_every_script_would_start_with_its_own_options(realistic, script):
    said = realistic.run("sbatch", "--test-only", str(ROOT / "slurm" / script))
    assert "to start at" in said


def test_a_job_too_large_is_refused(realistic):
    with pytest.raises(AssertionError, match="ended with 1"):
        realistic.run("sbatch", "--test-only", "--nodes=9", str(ROOT / SCRIPT))


def look(cluster, tmp_path, *words, **variables):
    """`--check`: exit code and what it said."""
    given = VARIABLES | {"EMPG_RUN_FOLDER": str(tmp_path / "run")} | variables
    given = {key: value for key, value in given.items() if value is not None}
    overrides = [f"{key}={value}" for key, value in OVERRIDES.items()]
    done = subprocess.run(
        ["bash", SCRIPT, "--check", "--nodes=3", "--gpus-per-node=1", *overrides, *words],
        cwd=ROOT, env={**cluster.environment, **given}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_check_says_all_is_well_and_holds_nothing(cluster, tmp_path):
    code, said = look(cluster, tmp_path)
    assert code == 0, said
    assert "trains on the miniature corpus" in said
    assert "the episode ends with reward 1" in said, "one question was played"
    assert "to start at" in said
    assert not (tmp_path / "run").exists()
    assert cluster.run("squeue", "--noheader").strip() == ""


def test_check_of_the_32b_layout_on_80_gib(realistic, tmp_path):
    """The script's own nodes and recipe, the model's configuration alone."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "recipes/miniature/policy", model)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120,
        "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
        "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    write_sparse_weights(model)
    variables = {"EMPG_HOME": str(ROOT), "EMPG_MODEL": str(model), "EMPG_RUN_FOLDER": str(tmp_path / "run")}
    variables["EMPG_MINIATURE"] = "1"
    said = realistic.run("bash", str(ROOT / SCRIPT), "--check", timeout=120, **variables)
    assert "GiB per trainer rank" in said
    with pytest.raises(AssertionError, match=r"GPUs of 20 GiB \(EMPG_GPU_MEMORY\) are too small"):
        realistic.run("bash", str(ROOT / SCRIPT), "--check", timeout=120, **variables, EMPG_GPU_MEMORY="20")


@pytest.mark.parametrize(
    ("words", "variables", "fault"),
    [
        ((), {"EMPG_MODEL": "/no/such/model"}, "model.path: .*/no/such/model"),
        ((), {"EMPG_TRAINER_NODES": "1"}, r"layout takes 2 \(tensor 2.*EMPG_TRAINER_NODES=2"),
        (("actor.data_parallel=2",), {}, "layout takes 4 .*set actor.data_parallel=1"),
        ((), {"EMPG_ROLLOUT_NODES": "2"}, r"--nodes is 3; EMPG_TRAINER_NODES \+ EMPG_ROLLOUT_NODES are 4"),
        ((), {"EMPG_TRAINER_NODES": "two"}, "EMPG_TRAINER_NODES is 'two'; set it to a number"),
        ((), {"EMPG_RUN_FOLDER": "/proc/run"}, "run.folder is /proc/run; /proc cannot .*EMPG_RUN_FOLDER"),
        ((), {"EMPG_RECIPE": "recipes/none.yaml"}, "EMPG_RECIPE is 'recipes/none.yaml': no such file"),
        (("run.step=3",), {}, "run.step: unknown key; did you mean 'steps'"),
        (("--gres=fpga:1",), {}, "Slurm refuses it"),
        (("data=/no/corpus.jsonl",), {}, "no corpus at /no/corpus.jsonl"),
        ((), {"EMPG_CONTAINER": "image.sif"}, "srun has no --container-image"),
        ((), {"EMPG_MINIATURE": "0"}, "there is nothing to train on: data/deepsearch is not prepared.*prepare.sh"),
        ((), {"EMPG_MINIATURE": "0", "EMPG_DATA": "/no/data"}, "EMPG_DATA is /no/data, which has no prepared"),
        ((), {"EMPG_DEVICE": None, "EMPG_ENGINES_PER_NODE": "2"}, "a rollout node's 1 GPUs do not hold 2"),
    ],
)  # fmt: skip
def test_check_names_the_fault_and_the_fix(cluster, tmp_path, words, variables, fault):
    code, said = look(cluster, tmp_path, *words, **variables)
    assert code == 10, said
    assert re.search(fault, said.replace("\n", " ")), said


def test_a_wrong_job_ends_within_ten_seconds_and_stays_ended(cluster, tmp_path):
    run = Run(cluster, tmp_path, variables={"EMPG_MODEL": "/no/such/model"})
    started = time.monotonic()
    run.submit()
    job = run.end(timeout=60)
    seconds = time.monotonic() - started
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 10, 0)
    assert "no config.json" in run.output or "/no/such/model" in run.output
    assert "ports from" not in run.output, "no step was started"
    assert seconds < 10 + 3 * os.getloadavg()[0], "a loaded machine gets more"


@pytest.mark.parametrize("given", [{}, {"NCCL_SOCKET_IFNAME": "mine0", "TORCH_FR_BUFFER_SIZE": "4"}])
def test_a_task_is_given_what_the_user_has_not_set(given):
    command = [sys.executable, "-m", "megatron_empg.launch.node_task", "run", "--"]
    command += ["bash", "-c", "echo $NCCL_SOCKET_IFNAME $TORCH_FR_BUFFER_SIZE"]
    environment = {"PATH": os.environ["PATH"], "EMPG_ADDRESSES": "other=10.9.9.9 here=127.0.0.1", **given}
    said = subprocess.run(
        command, cwd=ROOT, env={**environment, "SLURMD_NODENAME": "here"}, check=True,
        capture_output=True, text=True, timeout=30,
    ).stdout  # fmt: skip
    wanted = f"{given.get('NCCL_SOCKET_IFNAME', '=lo')} {given.get('TORCH_FR_BUFFER_SIZE', '2000')}"
    assert said.splitlines()[-1] == wanted
    assert f"NCCL_SOCKET_IFNAME={given.get('NCCL_SOCKET_IFNAME', '=lo')}" in said
