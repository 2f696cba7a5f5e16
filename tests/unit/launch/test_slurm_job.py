"""Each task's own command under Slurm: which GPUs an engine gets, which variables a trainer rank."""

import pytest

from megatron_empg.environments.base import SideService
from megatron_empg.launch import tasks as slurm_job
from megatron_empg.recipe import Recipe, RecipeError, load_recipe

UUIDS = [f"GPU-{number}a5e0f2e-0000-1111-2222-333344445555" for number in range(4)]


def recipe(*overrides: str) -> Recipe:
    return load_recipe("recipes/quickstart.yaml", list(overrides))


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The second task on the second of two rollout nodes."""
    monkeypatch.setenv("SLURMD_NODENAME", "node4")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("EMPG_ROLLOUT_NODE_NAMES", "node3 node4")
    monkeypatch.setenv("EMPG_ADDRESSES", "node3=10.0.0.3 node4=10.0.0.4")
    monkeypatch.setenv("EMPG_BASE_PORT", "12000")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


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
def test_an_engine_gets_gpus_of_its_own(
    task: pytest.MonkeyPatch, given: str | None, tensor_parallel: int, devices: str
) -> None:
    if given is not None:
        task.setenv("CUDA_VISIBLE_DEVICES", given)
    settings = recipe(f"engines.tensor_parallel={tensor_parallel}")
    command, environment = slurm_job.engine_command(settings, engines_per_node=2, gpus_per_node=4)
    assert environment == {"CUDA_VISIBLE_DEVICES": devices}
    assert command[command.index("--port") + 1] == str(12000 + 8 + 3)


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
def test_an_engine_without_enough_gpus_is_refused_by_name(
    task: pytest.MonkeyPatch, given: str | None, named: str
) -> None:
    if given is not None:
        task.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(RecipeError, match=named):
        slurm_job.engine_command(recipe("engines.tensor_parallel=3"), engines_per_node=2, gpus_per_node=4)


def test_without_gpus_an_engine_sees_none(task: pytest.MonkeyPatch) -> None:
    task.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    _, environment = slurm_job.engine_command(recipe(), engines_per_node=2, gpus_per_node=None)
    assert environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_service_runs_the_environments_own_command() -> None:
    """From the resolved recipe of the run folder, which has the job's own address of the service in it."""
    settings = recipe("environment.settings.search_url=http://10.0.0.1:12002")
    assert slurm_job.facts(settings, slurm_job.Shape(1, 1, 1, cpu=True))["services"] == ""
    command = slurm_job.service_command(settings, "search", ["search_url"], "10.0.0.1", 12002)
    assert command[1:3] == ["-m", "megatron_empg.environments.deep_search.search_service"]
    assert command[-4:] == ["--host", "10.0.0.1", "--port", "12002"]
    with pytest.raises(RecipeError, match="has no service 'shop'"):
        slurm_job.service_command(recipe(), "shop", [], "10.0.0.1", 12002)


def test_the_job_is_told_of_the_services_that_the_environment_wants() -> None:
    told = slurm_job.facts(recipe(), slurm_job.Shape(1, 1, 1, cpu=True))
    assert told["services"] == "search search_url EMPG_SEARCH_TOKEN"
    assert told["environment"] == "deep_search"


@pytest.mark.parametrize(
    ("names", "said"), [(["a b"], "plain words"), (["$(x)"], "plain words"), (list("abcde"), "at most")]
)
def test_services_that_a_job_cannot_start_are_refused(
    monkeypatch: pytest.MonkeyPatch, names: list[str], said: str
) -> None:
    found = tuple(SideService(name, "url", ("-m", "x"), "TOKEN") for name in names)
    monkeypatch.setattr(
        "megatron_empg.environments.deep_search.source.DeepSearch.services", lambda settings: found
    )
    with pytest.raises(RecipeError, match=said):
        slurm_job.services(recipe())
