"""Which runs a study is made of, with what each is started, and what is refused before anything runs."""

from pathlib import Path

import pytest

from megatron_empg.recipe import load_recipe
from megatron_empg.study.cells import Budget, Cell, cells_of, check_alike, series_of, settings_of
from megatron_empg.study.config import load_study
from megatron_empg.study.errors import StudyError
from tests.support.recipes import ROOT, quickstart
from tests.support.studies import small_study, study_keys


def test_the_methods_of_a_seed_come_together(tmp_path: Path) -> None:
    assert cells_of(small_study(tmp_path)) == [
        Cell("quickstart", "plain", 1),
        Cell("quickstart", "empg", 1),
        Cell("quickstart", "plain", 2),
        Cell("quickstart", "empg", 2),
    ]


def test_the_quick_part_is_a_part_of_the_whole(tmp_path: Path) -> None:
    quick = {"tasks": ["quickstart"], "methods": ["plain", "empg"], "seeds": [2]}
    study = small_study(tmp_path, quick=quick)
    assert cells_of(study, quick=True) == cells_of(study)[2:]
    with pytest.raises(StudyError, match="the study says no `quick`"):
        cells_of(small_study(tmp_path), quick=True)


def test_a_run_is_started_with_all_that_makes_it(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    settings = settings_of(study, cells_of(study))
    cell = Cell("quickstart", "empg", 2)
    path, *overrides = settings["quickstart", "empg"].words(cell, tmp_path / "run")
    recipe = load_recipe(Path(path), overrides)
    assert recipe.run.folder == tmp_path / "run"
    assert (recipe.run.seed, recipe.run.steps) == (2, 2)
    assert (recipe.algorithm.modulation.name, recipe.evaluation.questions) == ("empg", 4)
    assert recipe.evaluation.every == 0
    assert settings["quickstart", "empg"].identity != settings["quickstart", "plain"].identity


def test_a_combination_that_is_no_recipe_is_refused_by_name(tmp_path: Path) -> None:
    one_turn = study_keys(tmp_path)["tasks"]
    one_turn["quickstart"]["overrides"].append("environment.max_turns=1")
    study = small_study(tmp_path, tasks=one_turn)
    with pytest.raises(StudyError, match=r"task quickstart, method empg: .*\n.*modulation.zeta is 0.1"):
        settings_of(study, cells_of(study))


@pytest.mark.parametrize(
    ("override", "numbers"),
    [
        ("run.steps=3", "256 episodes and 4 optimizer steps, method empg 384 and 6"),
        ("rollout.groups=8", "256 episodes and 4 optimizer steps, method empg 128 and 4"),
        ("algorithm.updates_per_batch=1", "256 episodes and 4 optimizer steps, method empg 256 and 2"),
    ],
)
def test_unequal_budgets_are_refused_with_both_numbers(override: str, numbers: str, tmp_path: Path) -> None:
    methods = study_keys(tmp_path)["methods"]
    methods["empg"]["overrides"].append(override)
    study = small_study(tmp_path, methods=methods)
    with pytest.raises(StudyError, match=numbers):
        settings_of(study, cells_of(study))


def test_methods_are_evaluated_alike() -> None:
    recipes = {"a": quickstart(), "b": quickstart("evaluation.temperature=0.5")}
    with pytest.raises(StudyError, match="methods a and b are evaluated otherwise"):
        check_alike("quickstart", recipes)


def test_a_budget_is_counted_by_hand() -> None:
    recipe = quickstart("rollout.groups=10", "rollout.group_size=4", "run.steps=5")
    assert Budget.of(recipe) == Budget(episodes=200, updates=10)


def test_a_task_without_a_reported_series_is_refused(tmp_path: Path) -> None:
    study = small_study(tmp_path, series=["test_id/greedy"])
    with pytest.raises(StudyError, match="it is evaluated on test_id/sampled, test_ood/sampled"):
        settings_of(study, cells_of(study))


def test_series_are_those_of_the_evaluation() -> None:
    assert series_of(quickstart("evaluation.splits=[test_ood]")) == ["test_ood/sampled", "test_ood/greedy"]


def test_every_cell_of_the_shipped_study_is_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(Path("studies/screening.yaml"))
    cells = cells_of(study)
    settings = settings_of(study, cells)
    assert len({setting.identity for setting in settings.values()}) == len(settings)
    for (task, method), setting in settings.items():
        reverse = getattr(setting.recipe.algorithm.modulation, "reverse", False)
        assert reverse == method.endswith("_reversed"), (task, method)
