"""What a job is answered inside the image: the recipe on its nodes, its plan, its folder prepared."""

import json
from pathlib import Path

import pytest

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.environments.base import SideService
from megatron_empg.launch import commands, tasks
from megatron_empg.launch.placement import JobShape
from megatron_empg.launch.prepared_data import DataChoice
from megatron_empg.launch.recipe_plan import plan_of, service_plans
from megatron_empg.launch.run_plan import RunPlan
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe

RECIPE = Path("recipes/quickstart.yaml")
MINIATURE = DataChoice(miniature=True)


def recipe(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, list(overrides))


def answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> RunPlan:
    """The plan that `tasks` answers with."""
    shape = ("--nodes", "3", "--gpus-per-node", "1", "--trainer-nodes", "2", "--rollout-nodes", "1")
    monkeypatch.setattr("sys.argv", ["tasks", *words, *shape, "--engines-per-node", "2", "--cpu", "--miniature"])
    tasks.main()
    (line,) = capsys.readouterr().out.splitlines()
    return RunPlan.from_json(line)


def test_a_recipe_has_as_many_engines_as_the_nodes_hold() -> None:
    fitted = tasks.fitted(recipe(), JobShape(3, 1, 2, 1, engines_per_node=2, cpu=True))
    assert isinstance(fitted, Recipe)
    assert fitted.engines.count == 2
    shared = tasks.fitted(recipe("engines.count=9"), JobShape(1, 8, cpu=True))
    assert isinstance(shared, Recipe)
    assert shared.engines.count == 6


def test_a_recipe_that_does_not_fit_the_nodes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"does not fit the nodes:\n.*layout takes 2"):
        tasks.fitted(recipe(), JobShape(2, 1, 1, 1))


def test_words_may_be_short_for_keys() -> None:
    found = tasks.read_recipe(RECIPE, ["data=my.jsonl", "search_url=http://s:1"], MINIATURE)
    assert found.environment.settings["corpus"] == "my.jsonl"
    assert found.environment.settings["search_url"] == "http://s:1"


def test_a_supervised_warm_up_is_a_recipe_of_its_own_kind() -> None:
    found = tasks.read_recipe(Path("recipes/miniature_sft.yaml"), ["run.steps=3"], MINIATURE)
    assert isinstance(found, SftRecipe)
    assert tasks.fitted(found, JobShape(1, 8)) is found
    assert found.run.steps == 3


def test_a_plan_is_a_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = answered(monkeypatch, capsys, "plan", str(RECIPE), f"run.folder={tmp_path / 'run'}")
    assert (plan.engines, plan.trainer_ranks, plan.run_folder) == (2, 2, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "it was only asked"


def test_a_run_is_prepared_with_the_addresses_of_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = ("--trainer-address", "10.0.0.1", "--service", "search_url=http://10.0.0.3:12002")
    plan = answered(monkeypatch, capsys, "prepare", str(RECIPE), f"run.folder={tmp_path}", *place)
    written = load_recipe(tmp_path / "recipe.yaml")
    assert written.engines.host == "10.0.0.1"
    assert written.engines.count == 2
    assert written.environment.settings["search_url"] == "http://10.0.0.3:12002"
    assert [service.name for service in plan.services] == ["search"], "the plan still says what is to be started"


def test_a_refused_recipe_is_told_on_stderr_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        answered(monkeypatch, capsys, "plan", str(RECIPE), "run.step=3")
    out, err = capsys.readouterr()
    assert ended.value.code == LASTING_FAULT
    assert out == ""
    assert err.startswith("error: ")
    assert "run.step: unknown key; did you mean 'steps'" in err


def test_a_service_runs_the_environments_own_command() -> None:
    """From a recipe that names no address of it; with one nothing is to be started."""
    assert plan_of(recipe("environment.settings.search_url=http://10.0.0.1:12002")).services == ()
    (service,) = plan_of(recipe()).services
    command = commands.service("python", service, "10.0.0.1", 12002)
    assert command[:3] == ("python", "-m", "megatron_empg.environments.deep_search.search_service")
    assert command[-4:] == ("--host", "10.0.0.1", "--port", "12002")


def test_the_job_is_told_of_the_services_that_the_environment_wants() -> None:
    plan = plan_of(recipe())
    (service,) = plan.services
    assert (service.name, service.setting, service.token_variable) == ("search", "search_url", "EMPG_SEARCH_TOKEN")
    assert plan.environment == "deep_search"


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
        service_plans(recipe())


def test_a_plan_survives_its_way_to_the_batch_host() -> None:
    plan = plan_of(recipe())
    assert RunPlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["layout"].startswith("tensor 2 x ")
