"""A run folder goes on under the same recipe, model and data, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_empg.common.jsonl import append_line
from megatron_empg.common.section import Section, choices, shared_keys
from megatron_empg.environments.deep_search.searcher import SEARCHERS
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.registry import default_settings, place_settings
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, identity, parse_recipe
from megatron_empg.recipe.identity import (
    BY_CONTENT,
    changed_keys,
    differences,
    may_change,
    require_same_run,
    take_up,
)
from megatron_empg.run.folder import RunFolder
from tests.support.models import save_random_model
from tests.support.small_corpus import write_small_corpus

ROOT = Path(__file__).parents[3]


def leaf_keys(kind: type[Section], above: str = "") -> list[tuple[str, dict[str, str]]]:
    """(dotted key, {section: name} of the choices that it takes); keys that all choices share come once."""
    found: list[tuple[str, dict[str, str]]] = []
    for name, field in kind.model_fields.items():
        key = above + name
        siblings = choices(field.annotation)
        shared = shared_keys(siblings.values()) | {"name"} if siblings else set()
        for number, (choice, section) in enumerate(siblings.items()):
            keys = leaf_keys(section, f"{key}.")
            mine = [k for k in keys if number == 0 or k[0].removeprefix(f"{key}.").partition(".")[0] not in shared]
            found += [(inner, {key: choice, **names}) for inner, names in mine]
        if not siblings and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += leaf_keys(field.annotation, f"{key}.")
        elif not siblings:
            found.append((f"{key}.searcher" if name == "settings" else key, {}))
    return found


FIXED = {
    "run.seed", "model.initialise", "model.dtype", "environment.name", "environment.settings.*",
    "environment.max_turns", "rollout.groups", "rollout.group_size", "rollout.temperature",
    "rollout.max_turn_tokens", "rollout.max_episode_tokens", "algorithm.*", "actor.distributed_optimizer",
    "rollout.history", "rollout.max_lag", "rollout.replay_from", "sft.batch_size", "sft.split", "sft.history",
}  # fmt: skip
"""Keys that no continuation may change, as the documents list them."""


def is_fixed(key: str) -> bool:
    sections = [listed.removesuffix("*") for listed in FIXED if listed.endswith("*")]
    return (key in FIXED or key.startswith(tuple(sections))) and key not in identity.MAY_CHANGE


KEYS = [(kind, key, names) for kind in (Recipe, SftRecipe) for key, names in leaf_keys(kind)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a corpus."""
    folder = tmp_path_factory.mktemp("shared")
    save_random_model(folder / "model")
    (folder / "model/tokenizer.json").write_text("{}")
    write_small_corpus(folder / "corpus.jsonl", share=50)
    return folder


class Begun:
    """Runs that have logged a step, one for each choice of names, made when the first key of it is asked for."""

    def __init__(self, root: Path, shared: Path) -> None:
        self._root, self._shared = root, shared
        self._made: dict[str, tuple[Any, RunFolder, Any]] = {}

    def of(self, kind: type[Section], names: dict[str, str]) -> tuple[Any, RunFolder, Any]:
        """The recipe, the run's folder, and what it recorded of the recipe."""
        name = f"{kind.__name__} {names}"
        if name not in self._made:
            recipe = recipe_of(kind, self._root / str(len(self._made)), self._shared, names)
            folder = begin(recipe)
            self._made[name] = recipe, folder, yaml.safe_load(folder.recipe.read_text())
        recipe, folder, recorded = self._made[name]
        return recipe, folder, deepcopy(recorded)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Begun:
    return Begun(tmp_path_factory.mktemp("begun"), shared)


def recipe_of(kind: type[Section], folder: Path, shared: Path, names: dict[str, str] | None = None) -> Any:
    """A recipe with these choices: {section: name}."""
    raw: dict[str, Any] = {
        "run": {"folder": str(folder), "steps": 8},
        "model": {"path": str(shared / "model")},
        "environment": {"name": "deep_search", "settings": {"corpus": str(shared / "corpus.jsonl")}},
    }
    more = {"rollout": {"groups": 2, "group_size": 4}} if kind is Recipe else {"sft": {"batch_size": 2}}
    raw |= more
    for section, name in (names or {}).items():
        node = raw
        for part in section.split("."):
            node = node.setdefault(part, {})
        node["name"] = name
    return parse_recipe(raw, kind)


def changed(recipe: Any, **keys: Any) -> Any:
    """The recipe with other values; `a__b=c` stands for a.b=c."""
    raw = recipe.model_dump(mode="json")
    for key, value in keys.items():
        *sections, last = key.split("__")
        node = raw
        for name in sections:
            node = node[name]
        node[last] = value
    return parse_recipe(raw, type(recipe))


def begin(recipe: Any, *, steps: int = 1) -> RunFolder:
    """A run that has logged some steps."""
    folder = take_up(recipe)
    for step in range(1, steps + 1):
        append_line(folder.metrics, {"step": step})
    folder.close()
    return folder


def checkpointed(folder: RunFolder, step: int, recipe: Any) -> None:
    where = folder.checkpoints / f"step_{step:06d}"
    where.mkdir()
    (where / "manifest.json").write_text(json.dumps({"step": step, "recipe": recipe.model_dump(mode="json")}))


def finish(folder: RunFolder, recipe: Any) -> None:
    checkpointed(folder, recipe.run.steps, recipe)
    folder.policy.mkdir()
    folder.note_export(recipe.run.steps)


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "key", "names"), KEYS, ids=[f"{key}-{'-'.join(names.values())}" for _, key, names in KEYS]
)
def test_every_key_is_fixed_or_may_change_and_is_treated_so(
    kind: type[Section], key: str, names: dict[str, str], begun: Begun
) -> None:
    assert [may_change(key), is_fixed(key), key in BY_CONTENT].count(True) == 1, (
        "classify it: by Mark.MAY_CHANGE where it is declared, or in FIXED here and in docs/runs.md"
    )
    recipe, folder, recorded = begun.of(kind, names)
    node = recorded
    *sections, last = key.split(".")
    for name in sections:
        node = node[name]
    node[last] = "another"
    if key == "run.folder":
        return  # it is where the folder lies
    written = json.dumps(recorded)  # is YAML too, and takes a tenth of the time
    folder.recipe.write_text(written)
    assert [name for name, _, _ in differences(recorded, recipe)] == [key]
    if is_fixed(key):
        with pytest.raises(RecipeError) as refused:
            require_same_run(recipe)
        assert f'{key} was "another", is ' in str(refused.value)
        assert "run.folder" in str(refused.value)
        assert folder.recipe.read_text() == written
    else:
        take_up(recipe).close()
        assert (key in changed_keys(folder, recipe)) is False, "the folder has the new value now"


@pytest.mark.parametrize("listed", sorted(identity.MAY_CHANGE | FIXED))
def test_every_listed_key_is_one(listed: str) -> None:
    keys = {key for _, key, _ in KEYS}
    assert any(key.startswith(listed.removesuffix("*")) if listed.endswith("*") else key == listed for key in keys)


def test_the_docs_list_what_may_change() -> None:
    page = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    assert [key for key in sorted(identity.MAY_CHANGE | FIXED | BY_CONTENT) if f"`{key}`" not in page] == []


def test_all_differences_are_named_at_once(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(recipe)
    other = changed(recipe, algorithm__modulation="none", run__seed=9, actor__optimizer__lr=0.5)
    with pytest.raises(RecipeError) as refused:
        take_up(other)
    message = str(refused.value)
    assert 'algorithm.modulation.name was "empg", is "none"' in message
    assert "algorithm.modulation.k" not in message
    assert "run.seed was 0, is 9" in message
    assert "optimizer" not in message
    take_up(recipe).close()  # the refusal has let the folder go


def test_steps_that_are_too_few_are_named_among_the_others(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    checkpointed(begin(recipe, steps=6), 6, recipe)
    with pytest.raises(RecipeError) as refused:
        take_up(changed(recipe, run__seed=9, run__steps=5))
    assert "run.seed was 0, is 9" in str(refused.value)
    assert "run.steps is 5; the run in" in str(refused.value)
    assert "has done 6 steps: raise it" in str(refused.value)


def with_settings(recipe: Any, **settings: Any) -> Any:
    return changed(recipe, environment__settings={**recipe.environment.settings, **settings})


@pytest.fixture
def newer_release(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """To be called in the middle of a test: from then on Deep Search's defaults are others."""

    def begin_release() -> None:
        monkeypatch.setattr(DeepSearchSettings.model_fields["prompt"], "default", "none")
        monkeypatch.setitem(SEARCHERS, "fallible", replace(SEARCHERS["fallible"], vague_query=0.5))
        assert default_settings("deep_search", {})["prompt"] == "none"

    return begin_release


@pytest.mark.parametrize("kind", [Recipe, SftRecipe])
def test_a_default_of_the_environment_that_a_release_changed_changes_no_run(
    kind: type[Section], tmp_path: Path, shared: Path, newer_release: Callable[[], None]
) -> None:
    recipe = recipe_of(kind, tmp_path / "run", shared)
    checkpointed(begin(recipe), 4, recipe)
    newer_release()
    with pytest.raises(RecipeError) as refused:
        take_up(recipe)
    named = [line for line in str(refused.value).splitlines() if line.startswith("  - ")]
    given = "the default of this release: give it as it was"
    assert sorted(named) == [
        f'  - environment.settings.prompt was "tags", is "none", {given}',
        f"  - environment.settings.searcher_settings.vague_query was 0.12, is 0.5, {given}",
    ]
    as_it_was = with_settings(recipe, prompt="tags", searcher_settings={"vague_query": 0.12})
    for _ in range(2):  # the recipe that the first of them wrote is accepted too
        take_up(as_it_was).close()
    with pytest.raises(RecipeError, match=r'environment\.settings\.prompt was "tags", is "none"'):
        take_up(recipe)
    starts = json.loads((tmp_path / "run/versions.json").read_text())["starts"]
    assert [start for start in starts if "changed" in start] == []


def test_a_folder_without_recorded_defaults_goes_on_and_has_them_then(
    tmp_path: Path, shared: Path, newer_release: Callable[[], None]
) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    known = json.loads(folder.identity.read_text())
    folder.identity.write_text(json.dumps({key: value for key, value in known.items() if key != "defaults"}))
    newer_release()
    take_up(recipe).close()
    assert json.loads(folder.identity.read_text())["defaults"]["environment.settings.prompt"] == "none"
    with pytest.raises(RecipeError, match=r'environment\.settings\.prompt was "none", is "tags"'):
        take_up(with_settings(recipe, prompt="tags"))


def test_a_setting_that_is_given_as_it_is_by_default_is_no_difference(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(recipe)
    settings = {"prompt": "tags", "splits": {"train_hops": 3}, "searcher_settings": None, "searcher": "fallible"}
    take_up(with_settings(recipe, **settings)).close()
    take_up(recipe).close()
    with pytest.raises(RecipeError, match=r"environment\.settings\.splits\.train_hops was 3, is 2\n"):
        take_up(with_settings(recipe, splits={"train_hops": 2}))


def test_a_recorded_default_of_a_setting_that_is_gone_is_not_asked_for(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    known = json.loads(folder.identity.read_text())
    known["defaults"]["environment.settings.a_setting_of_old"] = 3
    folder.identity.write_text(json.dumps(known))
    take_up(recipe).close()


def test_every_setting_of_the_environment_has_a_recorded_default_or_is_known_otherwise() -> None:
    settings = set(DeepSearchSettings.model_fields)
    assert set(default_settings("deep_search", {})) == settings - place_settings("deep_search")
    assert default_settings("another", {}) == {}


def test_a_folder_of_the_other_command_is_refused(tmp_path: Path, shared: Path) -> None:
    begin(recipe_of(SftRecipe, tmp_path / "run", shared))
    with pytest.raises(RecipeError, match="it is a run of `empg sft`, this is `empg train`"):
        take_up(recipe_of(Recipe, tmp_path / "run", shared))


def test_another_model_of_the_same_shape_is_refused(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(recipe)
    save_random_model(tmp_path / "other", seed=1)
    (tmp_path / "other/tokenizer.json").write_text("{}")
    with pytest.raises(
        RecipeError, match=r"model.path: the run began from .*model; in .*other the weights differ"
    ):
        take_up(changed(recipe, model__path=str(tmp_path / "other")))


def test_another_tokenizer_is_refused(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(recipe)
    shutil.copytree(shared / "model", tmp_path / "other")
    (tmp_path / "other/tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(RecipeError, match="the tokenizer's files differ"):
        take_up(changed(recipe, model__path=str(tmp_path / "other")))


def test_another_corpus_at_the_same_place_is_refused(tmp_path: Path, shared: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(shared / "corpus.jsonl", corpus)
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    recipe.environment.settings["corpus"] = str(corpus)
    begin(recipe)
    with corpus.open("a") as file:
        file.write("\n")
    with pytest.raises(RecipeError, match=r"environment.settings.corpus: .* the content of .* is another"):
        take_up(recipe)


def test_data_that_is_new_or_gone_is_another_run(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(recipe)
    (tmp_path / "prompt.txt").write_text("do well", encoding="utf-8")
    told = with_settings(recipe, prompt_file=str(tmp_path / "prompt.txt"))
    with pytest.raises(RecipeError, match=r"prompt_file is .*prompt.txt; the run began with"):
        take_up(told)
    other = changed(recipe, run__folder=str(tmp_path / "other"))
    begin(with_settings(other, prompt_file=str(tmp_path / "prompt.txt")))
    with pytest.raises(RecipeError, match=r"prompt_file was .*prompt.txt; it is not given now"):
        take_up(other)


def test_all_may_lie_elsewhere(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder, model and corpus moved, and other, relative, names for them."""
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    recipe.environment.settings["search_url"] = "http://one:1"
    folder = begin(recipe)
    shutil.copytree(shared, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere/corpus.jsonl", (1, 1))
    folder.root.rename(tmp_path / "elsewhere/run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = changed(recipe, run__folder="run", model__path="model")
    moved.environment.settings.update(corpus="corpus.jsonl", search_url="http://two:2")
    take_up(moved).close()


def test_rewritten_by_another_release_the_model_is_the_same(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(recipe)
    shutil.copytree(shared / "model", tmp_path / "other")
    config = json.loads((shared / "model/config.json").read_text())
    config["transformers_version"] = "99.0"
    (tmp_path / "other/config.json").write_text(json.dumps(config, indent=7))
    take_up(changed(recipe, model__path=str(tmp_path / "other"))).close()


def test_a_run_does_not_begin_from_what_it_exports(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(shared / "model", tmp_path / "run" / "policy")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"model.path is .*link/policy, where .* another run.folder"):
        take_up(changed(recipe_of(Recipe, tmp_path / "run", shared), model__path=str(tmp_path / "link/policy")))


def test_a_folder_where_nothing_was_trained_may_be_taken_for_another_run(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    take_up(recipe).close()
    other = changed(recipe, run__seed=3)
    folder = begin(other)
    assert yaml.safe_load(folder.recipe.read_text())["run"]["seed"] == 3
    with pytest.raises(RecipeError, match=r"run.seed was 3, is 0"):
        take_up(recipe)


def test_the_checkpoint_tells_what_a_rewritten_recipe_does_not(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    checkpointed(folder, 4, recipe)
    other = changed(recipe, algorithm__modulation="none")
    folder.recipe.write_text(yaml.safe_dump(other.model_dump(mode="json")))
    with pytest.raises(RecipeError, match=r'algorithm\.modulation\.name was "empg", is "none"'):
        take_up(other)


def test_what_changes_is_noted_with_its_step(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    checkpointed(folder, 4, recipe)
    take_up(changed(recipe, actor__optimizer__lr=0.5, actor__tensor_parallel=2)).close()
    first, second = json.loads(folder.versions.read_text())["starts"]
    assert (first["step"], "changed" in first) == (0, False)
    assert second["step"] == 4
    assert second["changed"] == {
        "actor.optimizer.lr": {"from": 1e-6, "to": 0.5},
        "actor.tensor_parallel": {"from": 1, "to": 2},
    }


@pytest.mark.parametrize("keys", [{}, {"algorithm__modulation": "none"}, {"actor__optimizer__lr": 0.5}], ids=str)
def test_nothing_is_written_to_a_finished_run(tmp_path: Path, shared: Path, keys: dict[str, Any]) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe, steps=8)
    finish(folder, recipe)
    before = contents(folder)
    if "algorithm__modulation" in keys:
        with pytest.raises(RecipeError, match=r"algorithm\.modulation"):
            take_up(changed(recipe, **keys))
    else:
        take_up(changed(recipe, **keys)).close()
    assert contents(folder) == before


def test_a_finished_run_goes_on_with_more_steps_and_not_with_fewer(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe, steps=8)
    finish(folder, recipe)
    more = changed(recipe, run__steps=10)
    taken = take_up(more)
    assert not taken.finished(10)
    taken.close()
    checkpointed(folder, 10, more)
    assert not folder.finished(10), "its policy is that of step 8"
    folder.note_export(10)
    assert folder.finished(10)
    with pytest.raises(RecipeError, match=r"run\.steps is 8; the run in .* has done 10 steps"):
        take_up(recipe)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survived", range(4))
@pytest.mark.parametrize("begun", [False, True])
def test_a_start_killed_between_two_writes_can_be_made_again(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, survived: int, begun: bool
) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    if begun:
        checkpointed(begin(recipe), 4, recipe)
    recipe = changed(recipe, actor__optimizer__lr=0.5)
    written = 0

    def replace(self: Path, target: Path, real: Any = Path.replace) -> Path:
        nonlocal written
        if written == survived:
            raise Killed
        written += 1
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with suppress(Killed):
            take_up(recipe).close()
    folder = take_up(recipe)
    folder.close()
    starts = json.loads(folder.versions.read_text())["starts"]
    assert yaml.safe_load(folder.recipe.read_text())["actor"]["optimizer"]["lr"] == 0.5
    assert json.loads(folder.identity.read_text())["model"]["weights"]
    assert any("changed" in start for start in starts) is begun


def test_a_folder_of_a_release_without_identities_goes_on(tmp_path: Path, shared: Path) -> None:
    """Its recipe lacks newer keys and has keys that are gone."""
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    folder.identity.unlink()
    recorded = yaml.safe_load(folder.recipe.read_text())
    del recorded["algorithm"]["loss_mean"]
    recorded["rollout"]["a_key_of_old"] = 3
    folder.recipe.write_text(yaml.safe_dump(recorded))
    with pytest.raises(RecipeError, match=r'algorithm\.loss_mean was not given, is "sequence"'):
        take_up(changed(recipe, algorithm__loss_mean="sequence"))
    take_up(recipe).close()
    assert folder.identity.exists()


def test_a_model_that_is_made_later_is_noted_then(tmp_path: Path, shared: Path) -> None:
    recipe = changed(recipe_of(Recipe, tmp_path / "run", shared), model__path=str(tmp_path / "later"))
    folder = begin(recipe)
    assert json.loads(folder.identity.read_text())["model"] is None
    shutil.copytree(shared / "model", tmp_path / "later")
    take_up(recipe).close()
    save_random_model(tmp_path / "later", seed=1)
    require_same_run(recipe, model=False)
    with pytest.raises(RecipeError, match=r"the weights differ"):
        require_same_run(recipe)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("grpo", "gspo", ['algorithm.name was "grpo", is "gspo"']),
        ({"name": "dapo", "clip_high": 0.3}, {"name": "dapo"}, ["algorithm.clip_high was 0.3, is 0.28"]),
        ({"modulation": {"k": 2.0}}, {}, ["algorithm.modulation.k was 2.0, is 1.0"]),
        ({}, {"modulation": {"name": "aem", "strength": 2.0}}, ['algorithm.modulation.name was "empg", is "aem"']),
        ({}, {"correction": "tis"}, ['algorithm.correction.name was "none", is "tis"']),
        (
            {"name": "dapo", "overlong": {"max_length": 64, "buffer": 8}},
            {"name": "rloo", "masks": {"truncated": True}},
            ['algorithm.name was "dapo", is "rloo"', "algorithm.masks.truncated was false, is true"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_another_choice_is_told_by_its_name(
    tmp_path: Path, shared: Path, before: Any, after: Any, told: list[str]
) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    begin(changed(recipe, algorithm=before))
    with pytest.raises(RecipeError) as refused:
        require_same_run(changed(recipe, algorithm=after))
    assert {line.removeprefix("  - ") for line in str(refused.value).splitlines()[1:-1]} == set(told)


def test_a_part_that_is_newer_than_the_folder_was_none(tmp_path: Path, shared: Path) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    recorded = yaml.safe_load(folder.recipe.read_text())
    del recorded["algorithm"]["regularizer"]
    folder.recipe.write_text(yaml.safe_dump(recorded))
    require_same_run(recipe)
    with pytest.raises(RecipeError, match=r'algorithm\.regularizer\.name was "none", is "epo"'):
        require_same_run(changed(recipe, algorithm__regularizer="epo"))


OF_OLD = {
    "name": "dapo", "modulation": "empg", "grpo": {"clip_low": 0.2}, "dapo": {"clip_low": 0.2},
    "empg": {"k": 1.0}, "kl_coefficient": 0.0, "entropy_coefficient": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("in_checkpoint_alone", [False, True])
def test_a_folder_whose_recipe_has_keys_that_have_moved_is_refused(
    tmp_path: Path, shared: Path, in_checkpoint_alone: bool
) -> None:
    recipe = recipe_of(Recipe, tmp_path / "run", shared)
    folder = begin(recipe)
    recorded = {**yaml.safe_load(folder.recipe.read_text()), "algorithm": OF_OLD}
    if in_checkpoint_alone:
        checkpointed(folder, 4, recipe)
        manifest = folder.checkpoints / "step_000004/manifest.json"
        manifest.write_text(json.dumps({"step": 4, "recipe": recorded}))
    else:
        folder.recipe.write_text(yaml.safe_dump(recorded))
    before = contents(folder)
    with pytest.raises(RecipeError) as refused:
        take_up(recipe)
    assert "it was begun by an earlier release, whose recipes had algorithm.grpo, algorithm.dapo" in str(
        refused.value
    )
    assert "Give another run.folder" in str(refused.value)
    assert contents(folder) == before


def replay_of(recorded: Recipe, folder: Path, **keys: Any) -> Any:
    """The same recipe, which replays the run that was recorded."""
    where = {"run__folder": str(folder), "rollout__replay_from": str(recorded.run.folder)}
    return changed(recorded, **where, **keys)


@pytest.fixture
def recorded(tmp_path: Path, shared: Path) -> Any:
    """The recipe of a run that has written batches."""
    recipe = changed(recipe_of(Recipe, tmp_path / "recorded", shared), rollout__max_lag=1, limits__sync_timeout=60)
    begin(recipe)
    return recipe


def test_a_replay_of_the_same_recipe_begins_also_with_what_may_change(recorded: Any, tmp_path: Path) -> None:
    take_up(replay_of(recorded, tmp_path / "replay")).close()
    lower = {"actor__optimizer__lr": 0.5, "evaluation__questions": 7}
    take_up(replay_of(recorded, tmp_path / "lower", **lower)).close()


def test_a_replay_of_another_recipe_is_refused_by_the_names_of_its_keys(recorded: Any, tmp_path: Path) -> None:
    other = replay_of(recorded, tmp_path / "replay", rollout__group_size=8, run__seed=9)
    with pytest.raises(RecipeError) as refused:
        take_up(other)
    message = str(refused.value)
    assert f"rollout.replay_from: the run in {recorded.run.folder} is of another recipe" in message
    assert "rollout.group_size was 4, is 8" in message
    assert "run.seed was 0, is 9" in message
    assert "replay_from was" not in message
    assert not RunFolder(other.run.folder).begun()
    take_up(replay_of(recorded, tmp_path / "replay")).close()  # the refusal has let the folder go


def test_a_replay_with_other_data_is_refused(recorded: Any, tmp_path: Path, shared: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text((shared / "corpus.jsonl").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    settings = {"corpus": str(corpus)}
    with pytest.raises(RecipeError, match=r"(?s)replay_from: .*the content of .*corpus\.jsonl is another"):
        require_same_run(replay_of(recorded, tmp_path / "replay", environment__settings=settings))


def test_a_replay_of_what_is_no_run_is_refused(recorded: Any, tmp_path: Path) -> None:
    (tmp_path / "recorded/recipe.yaml").unlink()
    with pytest.raises(RecipeError, match=r"replay_from is .*, where there is no recipe\.yaml of a run: give"):
        require_same_run(replay_of(recorded, tmp_path / "replay"))
