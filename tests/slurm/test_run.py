"""`sbatch slurm/deepsearch_32b.sh` from submission to a finished run, and through a signal, on simulated nodes.

Two trainer nodes and one rollout node with two engines; the script is the shipped one, the overrides are printed.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import pytest

from tests.slurm.jobs import ROOT, STAND_INS, Run, assert_inside, patience, ranks

STEPS = 6


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """A whole run, with preflight, from a Megatron checkpoint that the job converts.

    While it trains, every route of both engines is asked for without the token.
    """
    scratch = tmp_path_factory.mktemp("undisturbed")
    convert = [sys.executable, "tools/convert_checkpoint.py", "to-megatron", "recipes/miniature/policy"]
    subprocess.run([*convert, str(scratch / "megatron")], cwd=ROOT, check=True, timeout=120)
    run = Run(
        cluster, scratch, overrides={"run.steps": STEPS},
        variables={
            "EMPG_PREFLIGHT": "1", "EMPG_PREFLIGHT_ARGS": "--min-write-speed 1 --min-disk 1",
            "EMPG_MEGATRON_CHECKPOINT": str(scratch / "megatron"),
        },
    )  # fmt: skip
    run.submit()
    run.wait_for_step(0)
    run.engines = run.processes("megatron_empg.rollout.server")
    run.answers = [ask_without_token(command, variables) for _, variables, command in run.engines]
    run.commands = everything_visible(run)
    run.job = run.end()
    return run


def ask_without_token(command: str, variables: dict[str, str]) -> dict[str, set[int]]:
    """Answers by path of one engine, to no token and to a wrong one."""
    url = "http://{}:{}".format(*re.search(r"--host (\S+) --port (\d+)", command).groups())
    own = {"Authorization": f"Bearer {variables['EMPG_TOKEN']}"}
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        routes = client.get("/empg/routes", headers=own).raise_for_status().json()
        return {
            route["path"]: {
                client.request(method, route["path"], headers=headers).status_code
                for method in route["methods"] or ["GET"]
                for headers in ({}, {"Authorization": "Bearer of-another-run-entirely"})
            }
            for route in routes
        }


def everything_visible(run: Run) -> str:
    """Command lines of the machine, and what Slurm tells of the job."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join([*lines, run.cluster.run("scontrol", "show", "job", str(run.number))])


def test_the_job_finishes_and_leaves_a_run(undisturbed):
    assert (undisturbed.job.state, undisturbed.job.exit_code) == ("COMPLETED", 0)
    assert undisturbed.steps() == list(range(STEPS + 1))
    assert f"path: {undisturbed.folder}/model\n" in (undisturbed.folder / "recipe.yaml").read_text()
    assert {path.name for path in undisturbed.folder.iterdir()} >= {"policy", "report.html", "recipe.yaml"}
    assert all(0 <= record["train/reward"] <= 1 for record in undisturbed.metrics[1:])
    assert [record["policy_version"] for record in undisturbed.metrics[1:]] == list(range(STEPS))


def test_the_overrides_and_what_was_done_are_printed(undisturbed):
    for words in (
        "EMPG_TRAINER_NODES=2", "run.steps=6", "preflight: PASS", "trainer on node1 node2; rollout on node3",
        "trains on the miniature corpus", "search service of", "policy: ",
    ):  # fmt: skip
        assert words in undisturbed.output
    logs = {path.name for path in undisturbed.folder.glob("logs/*.1/*")}
    assert logs >= {
        "trainer.node1.0.log", "trainer.node2.0.log", "engine_0.node3.0.log", "engine_1.node3.0.log",
        "driver.node3.0.log", "search.node3.0.log", "watchdog.node1.0.log", "preflight.json",
    }  # fmt: skip


def test_each_step_prints_the_variables_it_is_given(undisturbed):
    logs = {path.name.split(".")[0]: path.read_text() for path in undisturbed.folder.glob("logs/*.1/*.0.log")}
    assert {"trainer", "engine_0", "engine_1", "driver", "search", "watchdog", "preflight"} <= set(logs)
    assert all("env: TRITON_CACHE_DIR=" in log for log in logs.values())
    only_trainers = ("env: CUDA_DEVICE_MAX_CONNECTIONS=1", "env: PYTORCH_ALLOC_CONF=expandable_segments:True")
    for words in only_trainers:
        assert [step for step, log in logs.items() if words in log] == ["trainer"]


def test_every_route_of_every_engine_wants_the_token(undisturbed):
    assert len(undisturbed.answers) == 2
    for answers in undisturbed.answers:
        assert {"/health", "/inference/v1/generate", "/update_weights"} <= set(answers)
        assert {code for codes in answers.values() for code in codes} == {401}, answers


def test_the_token_is_in_the_environment_alone(undisturbed):
    token = undisturbed.engines[0][1]["EMPG_TOKEN"]
    assert len(token) == 48
    assert token not in undisturbed.commands
    assert token not in undisturbed.output
    for path in undisturbed.folder.rglob("*"):
        assert path.is_dir() or token.encode() not in path.read_bytes(), path


def test_a_signal_saves_requeues_and_resumes(cluster, tmp_path, undisturbed):
    """No step twice, none left out, and the numbers of two runs without the interruption."""
    (tmp_path / "again").mkdir()
    again = Run(cluster, tmp_path / "again", overrides={"run.steps": STEPS})
    again.submit()
    again.end()
    run = Run(cluster, tmp_path, overrides={"run.steps": STEPS, "run.checkpoint_every": 100})
    run.submit()
    run.wait_for_step(2)
    cluster.run("scancel", "--batch", "--signal=USR1", str(run.number))
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1)
    starts = [int(line.split()[1]) for line in (run.folder / "starts").read_text().splitlines()]
    assert starts[0] == 0
    assert 2 <= starts[1] < STEPS
    assert run.steps() == list(range(STEPS + 1))
    assert assert_inside(run, [undisturbed, again]) == STEPS


ONE_NODE = {
    "script": "slurm/train.sh", "first_words": ("recipes/quickstart.yaml",), "options": ("--nodes=1",),
    "variables": dict.fromkeys(
        ("EMPG_RECIPE", "EMPG_TRAINER_NODES", "EMPG_ROLLOUT_NODES", "EMPG_ENGINES_PER_NODE"), ""
    ),
}  # fmt: skip
"""Any recipe on one node of 8 (fake) GPUs: two ranks take the first two, as many engines as it asks the next."""


OLDEST_PYTHON = Path.home() / ".pyenv/versions/3.9.18/bin/python3.9"
"""That a batch host may have."""


def test_one_node_trains_and_rolls_out(cluster, tmp_path):
    run = Run(cluster, tmp_path, overrides={"run.steps": 2, "engines.count": 2}, **ONE_NODE)
    if OLDEST_PYTHON.exists():
        run.variables = run.variables | {"EMPG_HOST_PYTHON": str(OLDEST_PYTHON)}
    run.submit()
    run.wait_for_step(0)
    engines, trainers = run.processes("megatron_empg.rollout.server"), ranks(run)
    assert (len(engines), len(trainers)) == (2, 2)
    assert {variables["SLURMD_NODENAME"] for _, variables, _ in [*engines, *trainers]} == {"node1"}
    job = run.end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 0)
    assert run.steps() == [0, 1, 2]
    assert "rollout on node1 beside it, from GPU 2 on" in run.output
    assert (run.folder / "policy").exists()


def run_suite(cluster, folder, **variables):
    """slurm/nccl_suite.sh as a job between two nodes; it must succeed."""
    number = cluster.run(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1",
        f"--output={folder}/job.out", str(ROOT / "slurm/nccl_suite.sh"),
        "--backend", "gloo", "--max-bytes", "65536", "--only", "correctness",
        EMPG_HOME=str(ROOT), EMPG_LOGS=str(folder / "logs"), **variables,
    )  # fmt: skip
    job = cluster.wait(int(number), timeout=patience(200))
    output = (folder / "job.out").read_text()
    assert (job.state, job.exit_code) == ("COMPLETED", 0), output
    assert json.loads((folder / "logs/nccl_suite.json").read_text())["verdict"] == "PASS"


def test_the_collectives_suite_runs_between_nodes(cluster, tmp_path):
    run_suite(cluster, tmp_path)


def convert(cluster, folder, *words, **variables):
    """slurm/convert.sh as a job: exit code and output."""
    number = cluster.run(
        "sbatch", "--parsable", "--mem=1G", f"--output={folder}/%j.out", str(ROOT / "slurm/convert.sh"),
        *words, EMPG_HOME=str(ROOT), **variables,
    )  # fmt: skip
    job = cluster.wait(int(number), timeout=patience(200))
    return job.exit_code, (folder / f"{int(number)}.out").read_text()


def test_a_checkpoint_is_converted_or_the_fault_named(cluster, tmp_path):
    policy = ROOT / "recipes/miniature/policy"
    code, said = convert(cluster, tmp_path, "to-megatron", str(policy), str(tmp_path / "megatron"))
    assert code == 0, said
    code, said = convert(cluster, tmp_path, "to-hf", str(tmp_path / "megatron"), str(tmp_path / "back"))
    assert code == 0, said
    assert (tmp_path / "back/model.safetensors").exists()
    assert convert(cluster, tmp_path, "to-hf", "/no/such", str(tmp_path / "x"))[0] == 10
    assert convert(cluster, tmp_path, "to-megatron", str(tmp_path), str(tmp_path / "x"))[0] == 12


@pytest.mark.parametrize(("kind", "image"), [("pyxis", "registry#empg:1"), ("apptainer", "/images/empg.sif")])
def test_in_a_container_a_job_sees_what_it_names(cluster, tmp_path, kind, image):
    """Stand-ins for Pyxis and Apptainer hide /tmp but for the mounts; source and destination lie in it."""
    python = tmp_path / "in/python"
    container = {
        "EMPG_CONTAINER": image, "EMPG_PYTHON": str(python), "EMPG_MOUNTS": f"{tmp_path}/in:{tmp_path}/in",
        "PATH": f"{STAND_INS / kind}:{cluster.environment['PATH']}",
    }  # fmt: skip
    shutil.copytree(ROOT / "recipes/miniature/policy", tmp_path / "in/policy")
    words = ("to-megatron", str(tmp_path / "in/policy"), str(tmp_path / "out/megatron"))
    (tmp_path / "out").mkdir()
    # As in an image, the package itself is not installed: -S leaves out the .pth files of site-packages.
    packages = sysconfig.get_path("purelib")
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{packages}" exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    code, said = convert(cluster, tmp_path, *words, **container)
    assert code == 0, said
    assert f"EMPG_CONTAINER={image}" in said
    assert (tmp_path / "out/megatron").exists()
    run_suite(cluster, tmp_path, **container)
