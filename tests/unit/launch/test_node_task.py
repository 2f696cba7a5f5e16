"""Each task's own command under Slurm: which GPUs an engine gets, which variables a trainer rank."""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.launch import node_task
from megatron_empg.launch.node_task import LogError, TaskError, engine_command, take_place, trainer_command
from megatron_empg.launch.recipe_plan import plan_of
from megatron_empg.launch.run_plan import RunPlan
from tests.support.recipes import quickstart

UUIDS = [f"GPU-{number}a5e0f2e-0000-1111-2222-333344445555" for number in range(4)]
TASK = {
    "SLURMD_NODENAME": "node4",
    "SLURM_LOCALID": "1",
    "EMPG_ROLLOUT_NODE_NAMES": "node3 node4",
    "EMPG_TRAINER_NODE_NAMES": "node4 node3",
    "EMPG_ADDRESSES": "node3=10.0.0.3 node4=10.0.0.4",
    "EMPG_BASE_PORT": "12000",
}
"""The second task on the second of two rollout nodes."""


def plan(*overrides: str) -> RunPlan:
    return plan_of(quickstart(*overrides))


def task(visible: str | None = None) -> dict[str, str]:
    return TASK if visible is None else TASK | {"CUDA_VISIBLE_DEVICES": visible}


@pytest.mark.parametrize(
    ("given", "tensor_parallel", "devices"),
    [
        (None, 2, "2,3"),  # a cluster whose Slurm constrains no devices
        (None, 1, "1"),
        ("0,1,2,3", 2, "2,3"),
        ("4,5,6,7", 2, "6,7"),
        (",".join(UUIDS), 2, ",".join(UUIDS[2:])),
        ("MIG-a, MIG-b", 1, "MIG-b"),
    ],
)
def test_an_engine_gets_gpus_of_its_own(given: str | None, tensor_parallel: int, devices: str) -> None:
    settings = plan(f"engines.tensor_parallel={tensor_parallel}")
    command, environment = engine_command(settings, task(given), number=1, per_node=2, gpus_per_node=4)
    assert environment == {"CUDA_VISIBLE_DEVICES": devices}
    assert command[command.index("--port") + 1] == str(12000 + 8 + 3)
    assert command[command.index("--host") + 1] == "10.0.0.4"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "engine 1 of node4 takes 3 GPUs .*after 3 of the engines before it: this machine has 4 GPUs"),
        ("0,1,2,3", "CUDA_VISIBLE_DEVICES is '0,1,2,3'"),
        ("", "CUDA_VISIBLE_DEVICES is ''"),
        ("NoDevFiles", "CUDA_VISIBLE_DEVICES is 'NoDevFiles'"),
        ("-1", "CUDA_VISIBLE_DEVICES is '-1'"),
    ],
)
def test_an_engine_without_enough_gpus_is_refused_by_name(given: str | None, named: str) -> None:
    with pytest.raises(TaskError, match=named):
        engine_command(plan("engines.tensor_parallel=3"), task(given), number=1, per_node=2, gpus_per_node=4)


def test_without_gpus_an_engine_sees_none() -> None:
    _, environment = engine_command(plan(), task("0,1"), number=1, per_node=2, gpus_per_node=None)
    assert environment == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(("visible", "devices"), [(None, "6,7"), (",".join("abcdefgh"), "g,h")])
def test_engines_beside_the_trainer_come_after_its_gpus(visible: str | None, devices: str) -> None:
    settings = plan("engines.tensor_parallel=2")
    _, environment = engine_command(settings, task(visible), number=1, per_node=2, gpus_per_node=8, first_gpu=4)
    assert environment == {"CUDA_VISIBLE_DEVICES": devices}
    with pytest.raises(TaskError, match="after 8 of the trainer and the engines before it"):
        engine_command(settings, task(visible), number=1, per_node=2, gpus_per_node=8, first_gpu=6)


def trainer(
    settings: RunPlan, given: Mapping[str, str], gpus: int | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    return trainer_command(settings, given, driver="http://d", engines=["http://e"], gpus_per_node=gpus)


def test_node_0_of_the_trainer_is_the_first_trainer_node_by_any_name() -> None:
    command, _ = trainer(plan(), TASK | {"SLURMD_NODENAME": "node3"}, None)
    words = dict(pairwise(command))
    assert (words["--nnodes"], words["--node-rank"], words["--nproc-per-node"]) == ("2", "1", "1")
    assert (words["--master-addr"], words["--master-port"]) == ("10.0.0.4", "12000")
    assert (words["--driver"], words["--engine"]) == ("http://d", "http://e")
    assert command[:3] == (sys.executable, "-m", "megatron_empg.launch.torchrun")


def test_a_trainer_that_does_not_fill_its_node_has_the_first_gpus() -> None:
    lone = TASK | {"EMPG_TRAINER_NODE_NAMES": "node4"}
    assert trainer(plan(), lone, 8)[1]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert trainer(plan(), lone | {"CUDA_VISIBLE_DEVICES": "4,5,6"}, 8)[1]["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "CUDA_VISIBLE_DEVICES" not in trainer(plan(), lone, 2)[1], "it fills the node"
    assert "CUDA_VISIBLE_DEVICES" not in trainer(plan(), lone, None)[1], "there is no GPU"
    with pytest.raises(TaskError, match="the trainer takes 2 GPUs of a node"):
        trainer(plan(), lone | {"CUDA_VISIBLE_DEVICES": "4"}, 8)


class Became(Exception):
    """Instead of the program that the task would have become."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        super().__init__(command)
        self.command, self.environment = command, environment


def become(monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str], *words: str) -> Became:
    """What the task becomes that is called with these words."""

    def exec_instead(file: str, command: list[str], environment: dict[str, str]) -> None:
        raise Became(command, environment)

    monkeypatch.setattr("os.execvpe", exec_instead)
    monkeypatch.setattr("os.environ", dict(given))
    monkeypatch.setattr("sys.argv", ["node_task", *words])
    with pytest.raises(Became) as became:
        node_task.main()
    return became.value


def test_the_trainer_step_prints_and_sets_what_its_ranks_want(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(plan().to_json(), encoding="utf-8")
    given = {**TASK, "TMPDIR": str(tmp_path)}
    seen = become(monkeypatch, given, "trainer", str(file), "--driver", "http://d").environment
    assert seen["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert seen["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    said = capsys.readouterr().out.splitlines()
    assert {"env: CUDA_DEVICE_MAX_CONNECTIONS=1", "env: PYTORCH_ALLOC_CONF=expandable_segments:True"} <= set(said)
    own = {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    seen = become(monkeypatch, given | own, "trainer", str(file), "--driver", "http://d").environment
    assert {name: seen.get(name) for name in (*own, "PYTORCH_ALLOC_CONF")} == {**own, "PYTORCH_ALLOC_CONF": None}


def test_any_command_runs_under_its_nodes_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    became = become(monkeypatch, {"TMPDIR": str(tmp_path)}, "run", "--", "tool", "--gpu", "-x")
    assert became.command == ["tool", "--gpu", "-x"]
    assert became.environment["NCCL_DEBUG"] == "WARN"
    assert "CUDA_VISIBLE_DEVICES" not in became.environment
    became = become(monkeypatch, {"CUDA_VISIBLE_DEVICES": "3"}, "run", "--no-gpu", "--", "tool")
    assert became.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_a_task_that_cannot_run_ends_with_a_fault_that_lasts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", {"TMPDIR": str(tmp_path)})
    monkeypatch.setattr("sys.argv", ["node_task", "run", "--", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        node_task.main()
    assert ended.value.code == LASTING_FAULT
    assert f"error: '{tmp_path / 'none'}' cannot be run" in capsys.readouterr().err


ENGINE = ("--number", "0", "--per-node", "1")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", ""], "'' cannot be run: "),
        (["run", "a\0b"], "embedded null"),
        (["engine", "none.json", *ENGINE], "PLAN is none.json: [Errno 2] No such file"),
        (["trainer", "none.json"], "PLAN is none.json: [Errno 2] No such file"),
        (["engine", ".", *ENGINE], "PLAN is .: [Errno 21] Is a directory"),
        (["engine", "broken.json", *ENGINE], "PLAN is broken.json: this is not a plan of a run"),
        (["trainer", "broken.json"], "PLAN is broken.json: this is not a plan of a run"),
        (["trainer", "latin.json"], "PLAN is latin.json: 'utf-8' codec can't decode"),
    ],
)
def test_a_command_or_plan_that_cannot_be_used_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    (tmp_path / "broken.json").write_text('{"kind": "train"')
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"})
    monkeypatch.setattr("sys.argv", ["node_task", *words])
    with pytest.raises(SystemExit) as ended:
        node_task.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (LASTING_FAULT, 1), said
    assert said.startswith("error: ")
    assert says in said


def test_a_command_s_own_options_are_left_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    became = become(monkeypatch, {"TMPDIR": str(tmp_path)}, "run", "echo", "-n", "--no-gpu", "--help")
    assert became.command == ["echo", "-n", "--no-gpu", "--help"]
    assert "CUDA_VISIBLE_DEVICES" not in became.environment


@pytest.mark.parametrize(
    "name", [name for name in TASK if name not in ("SLURM_LOCALID", "EMPG_TRAINER_NODE_NAMES")]
)
def test_an_engine_without_a_variable_of_its_job_is_refused_by_name(name: str) -> None:
    variables = {key: value for key, value in TASK.items() if key != name}
    with pytest.raises(TaskError, match=f"{name} is not set"):
        engine_command(plan(), variables, number=0, per_node=1, gpus_per_node=None)


@pytest.mark.parametrize("name", ["SLURMD_NODENAME", "SLURM_LOCALID"])
def test_a_log_without_a_place_under_slurm_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {**TASK, "EMPG_LOG": str(tmp_path / "log")}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv(name)
    with pytest.raises(TaskError, match=f"{name} is not set"):
        take_place()


def test_a_log_that_cannot_be_written_is_an_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {**TASK, "EMPG_LOG": str(tmp_path / "nowhere/log")}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(LogError, match=r"EMPG_LOG is .*No such file") as refused:
        take_place()
    assert refused.value.accident
