"""What a recipe may say: faults are refused by name before anything runs, defaults are the papers'."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.common.section import Section, choices, shared_keys
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, dump_recipe, load_recipe, parse_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def minimal() -> dict[str, Any]:
    return {
        "run": {"folder": "runs/x", "steps": 3},
        "model": {"path": "some/model"},
        "environment": {"name": "deep_search"},
        "rollout": {"groups": 2, "group_size": 4},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(minimal()))
    return file


def test_defaults_are_the_papers() -> None:
    recipe = parse_recipe(minimal())
    modulation = recipe.algorithm.modulation
    assert isinstance(modulation, Empg)
    assert (modulation.k, modulation.k_f, modulation.zeta, modulation.center) == (1.0, 1.0, 0.1, True)
    grpo, dapo = recipe.algorithm, Dapo()
    assert isinstance(grpo, Grpo)
    assert (grpo.clip_low, grpo.clip_high, grpo.normalize_std) == (0.2, 0.2, True)
    assert (dapo.clip_low, dapo.clip_high) == (0.2, 0.28)
    assert recipe.rollout.temperature == 1.0
    assert recipe.engines.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("algorithm.modulatoin=none", ["algorithm.modulatoin", "unknown key", "did you mean 'modulation'"]),
        ("algorithm.modulation.kf=1", ["algorithm.modulation.kf", "did you mean 'k_f'", "zeta"]),
        ("colour=red", ["colour", "unknown key", "rollout"]),
        ("rollout.top_p=0.9", ["rollout.top_p", "unknown key", "temperature"]),
        ("environment.name=chess", ["environment.name", "deep_search", "'chess'"]),
        ("model.dtype=float16", ["model.dtype", "'float32' or 'bfloat16'", "'float16'"]),
        ("model.initialise=maybe", ["model.initialise", "'maybe'"]),
        ("run.steps=ten", ["run.steps", "integer", "'ten'"]),
        ("run.steps=2.5", ["run.steps", "integer", "2.5"]),
        ("evaluation.splits=[]", ["evaluation.splits", "at least one"]),
        ("evaluation.splits=[test_id, test_id]", ["evaluation.splits", "once"]),
        ("run.steps=true", ["run.steps", "integer", "True"]),
        ("run.steps='3'", ["run.steps", "integer", "'3'"]),
        ("rollout.temperature=true", ["rollout.temperature", "number", "True"]),
        ("algorithm.modulation.center=0", ["algorithm.modulation.center", "boolean", "0"]),
        ("run.folder=7", ["run.folder: is 7; give a path"]),
        ("run.steps=0", ["run.steps", "greater than or equal to 1", "0"]),
        ("run.keep_checkpoints=0", ["run.keep_checkpoints", "greater than or equal to 1"]),
        ("rollout.groups=-1", ["rollout.groups", "-1"]),
        ("rollout.groups=[2]", ["rollout.groups", "[2]"]),
        ("rollout.temperature=0", ["rollout.temperature", "greater than or equal to 0.01"]),
        ("rollout.temperature=1e-9", ["rollout.temperature", "greater than or equal to 0.01", "1e-09"]),
        ("rollout.temperature=.inf", ["rollout.temperature", "finite number", "inf"]),
        ("run.seed=-1", ["run.seed", "greater than or equal to 0", "-1"]),
        (f"run.seed={2**31}", ["run.seed", "less than or equal to 2147483647", str(2**31)]),
        ("actor.optimizer.betas=[0.9, 1]", ["actor.optimizer.betas.1", "less than 1"]),
        (
            "environment.settings.searcher_settings.habit=.nan",
            ["environment.settings.searcher_settings.habit", "nan"],
        ),
        ("environment.settings={a: [1.0, .inf]}", ["environment.settings.a.1", "finite", "inf"]),
        ("environment.settings=&a {b: *a}", ["environment.settings", "an alias holds itself"]),
        ("environment.settings={a: [2024-01-31]}", ["environment.settings.a.0", "a date to YAML; quote it"]),
        ("environment.settings={a: {1: b}}", ["environment.settings.a", "the key 1 is not text; quote it"]),
        ("environment.settings={a: !!set {b}}", ["environment.settings.a", "a set to YAML"]),
        ("environment.settings={a: !!binary aGk=}", ["environment.settings.a", "a bytes to YAML"]),
        ("run.folder=''", ["run.folder", "is empty"]),
        ("run.folder=~nobody_by_this_name/x", ["run.folder", "nobody_by_this_name"]),
        ("run.folder=~", ["run.folder: is None; give a path"]),
        ("algorithm.modulation.k=-1", ["algorithm.modulation.k", "greater than or equal to 0", "-1"]),
        ("algorithm.clip_low=1.5", ["algorithm.clip_low", "less than or equal to 1"]),
        ("algorithm.updates_per_batch=0", ["algorithm.updates_per_batch"]),
        ("actor.optimizer.lr=0", ["actor.optimizer.lr", "greater than 0"]),
        ("actor.optimizer.lr=fast", ["actor.optimizer.lr", "number", "'fast'"]),
        ("actor.optimizer.betas=[0.9]", ["actor.optimizer.betas"]),
        ("actor.optimizer.betas=[0.9, 1.5]", ["actor.optimizer.betas", "1.5"]),
        ("actor.optimizer.schedule=linear", ["actor.optimizer.schedule", "'constant' or 'cosine'"]),
        ("actor.tensor_parallel=0", ["actor.tensor_parallel"]),
        ("actor.recompute=yes please", ["actor.recompute", "'none', 'selective', 'block' or 'full'"]),
        ("evaluation.splits=[train]", ["evaluation.splits", "'test_id' or 'test_ood'"]),
        ("evaluation.questions=-1", ["evaluation.questions"]),
        ("limits.logprob_gap=0", ["limits.logprob_gap", "greater than 0"]),
        ("engines=3", ["engines", "3"]),
        # Combinations
        ("rollout.group_size=1", ["rollout.group_size is 1", "at least 2"]),
        ("rollout.replay_from=runs/x", ["rollout.replay_from is given with rollout.max_lag 0", "leave it out"]),
        ("rollout.keep_all_batches=true", ["rollout.keep_all_batches is given with rollout.max_lag 0"]),
        (
            "rollout={groups: 4, group_size: 4, max_lag: 1, keep_all_batches: true, replay_from: runs/x}",
            ["rollout.keep_all_batches is true with rollout.replay_from runs/x", "leave rollout.keep_all"],
        ),
        ("rollout.max_lag=1", ["limits.sync_timeout is 600 s", "below limits.request_timeout", "lower the first"]),
        ("rollout.max_lag=-1", ["rollout.max_lag", "greater than or equal to 0"]),
        ("actor.max_tokens_per_microbatch=100", ["rollout.max_episode_tokens is 16384", "(100:"]),
        (
            "rollout.max_turn_tokens=16384",
            ["rollout.max_turn_tokens is 16384", "below", "rollout.max_episode_tokens"],
        ),
        ("actor.sequence_parallel=true", ["actor.sequence_parallel", "actor.tensor_parallel 1"]),
        ("actor.virtual_pipeline=2", ["actor.virtual_pipeline is 2", "actor.pipeline_parallel 1"]),
        ("actor.context_exchange=a2a", ["actor.context_exchange is a2a", "actor.context_parallel 1"]),
        ("actor.expert_parallel=2", ["actor.expert_parallel is 2", "a stage's 1 ranks"]),
        ("actor.data_parallel=9999", ["an optimizer step has", "too few for the layout", "data_parallel 9999"]),
        ("algorithm.kl.coefficient=-1", ["algorithm.kl.coefficient", "greater than or equal to 0"]),
        # Overrides themselves
        ("rollout.groups", ["'rollout.groups'", "section.key=value"]),
        ("=3", ["'=3'", "section.key=value"]),
        ("run.steps.more=3", ["run.steps.more", "steps is 3, a value, not a section: correct"]),
        ("run.steps=[3", ["run.steps", "not YAML"]),
        ("run.seed=010", ["run.seed", "010 is an octal number"]),
        ("engines.start_timeout=10:00", ["engines.start_timeout", "10:00 is a number to the base of 60"]),
        ("rollout.temperature=1:0.5", ["rollout.temperature", "base of 60"]),
        ("run={seed: 1, seed: 2}", ["'seed' is given twice"]),
        ("run.folder=2024-13-45", ["run.folder", "month"]),
        (f"run.seed={'9' * 5000}", ["run.seed"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_refused_by_name(path: Path, override: str, named: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize("section", ["run", "model", "environment", "rollout"])
def test_a_missing_section_is_named(section: str) -> None:
    raw = minimal()
    del raw[section]
    with pytest.raises(RecipeError, match=f"{section}: missing"):
        parse_recipe(raw)


def test_all_faults_are_told_at_once(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["run.steps=0", "rollout.grups=2", "algorithm.name=ppo"])
    assert all(name in str(caught.value) for name in ("run.steps", "rollout.grups", "algorithm.name"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1\n- 2\n", "list"),
        ("run: [\n", "cannot read"),
        ("", "NoneType"),
        ("run: {steps: 1}\nrun: {steps: 2}\n", "(?s)'run' is given twice.*line 2"),
        ("run: \0", "cannot read"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=complaint) as caught:
        load_recipe(file)
    assert "broken.yaml" in str(caught.value)


def test_a_recipe_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    text = yaml.safe_dump({**minimal(), "run": {"folder": "runs/größe", "steps": 3}}, allow_unicode=True)
    file.write_bytes(text.encode())
    assert load_recipe(file).run.folder == Path("runs/größe")
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml: it is not UTF-8 at byte \d+"):
        load_recipe(file)


def test_a_leading_tilde_is_the_home_folder_in_every_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = {"corpus": "~/c.jsonl", "more": ["~/d"], "text": "a ~/ inside", "number": 3}
    recipe = load_recipe(
        path, ["run.folder=~/runs/x", "model.path=~/models/y", f"environment.settings={yaml.safe_dump(settings)}"]
    )
    assert recipe.run.folder == Path("/home/somebody/runs/x")
    assert recipe.model.path == Path("/home/somebody/models/y")
    assert recipe.environment.settings == {
        "corpus": "/home/somebody/c.jsonl", "more": ["/home/somebody/d"], "text": "a ~/ inside", "number": 3,
    }  # fmt: skip


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("3.0e-4", 3e-4), ("1E-3", 1e-3), ("0.01", 0.01)])
def test_numbers_are_read_as_people_write_them(path: Path, text: str, value: float) -> None:
    assert load_recipe(path, [f"actor.optimizer.lr={text}"]).actor.optimizer.lr == value
    path.write_text(path.read_text() + f"actor: {{optimizer: {{lr: {text}}}}}\n")
    assert load_recipe(path).actor.optimizer.lr == value


def test_overrides_win_and_make_sections(path: Path) -> None:
    recipe = load_recipe(path, ["run.steps=9", "actor.tensor_parallel=2", "actor.sequence_parallel=true",
                                "environment.settings.results=4"])  # fmt: skip
    assert recipe.run.steps == 9
    assert recipe.actor.sequence_parallel
    assert recipe.actor.world_size == 2
    assert recipe.environment.settings == {"results": 4}


def test_the_gaps_limit_follows_the_dtype(path: Path) -> None:
    assert load_recipe(path, ["model.dtype=float32"]).logprob_gap_limit == 1e-3
    assert load_recipe(path, ["model.dtype=bfloat16"]).logprob_gap_limit == 0.05
    assert load_recipe(path, ["limits.logprob_gap=0.2"]).logprob_gap_limit == 0.2


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_what_is_dumped_loads_to_the_same(file: Path, tmp_path: Path) -> None:
    kind = SftRecipe if "sft" in yaml.safe_load(file.read_text()) else Recipe
    recipe = load_recipe(file, kind=kind)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump_recipe(recipe))
    assert load_recipe(copy, kind=kind) == recipe
    assert "seed" in yaml.safe_load(copy.read_text())["run"], "defaults are written out"


def test_an_episode_fits_a_microbatch_with_its_padding(path: Path) -> None:
    """Over two context ranks a sequence is padded to a multiple of four."""
    layout = ["actor.context_parallel=2", "actor.max_tokens_per_microbatch=8193"]
    assert load_recipe(path, [*layout, "rollout.max_episode_tokens=16384"]).actor.longest_sequence == 16384
    with pytest.raises(RecipeError, match=r"rollout.max_episode_tokens is 16385, .* \(16384: "):
        load_recipe(path, [*layout, "rollout.max_episode_tokens=16385"])
    assert load_recipe(path, ["actor.max_tokens_per_microbatch=16385", "rollout.max_episode_tokens=16385"])


def test_a_warm_up_has_no_keys_of_episodes() -> None:
    with pytest.raises(RecipeError, match=r"logging.episodes_per_step: unknown key"):
        load_recipe(RECIPES / "miniature_sft.yaml", ["logging.episodes_per_step=2"], SftRecipe)


def test_a_warm_up_is_checked_alike(path: Path) -> None:
    with pytest.raises(RecipeError, match="sft: missing"):
        load_recipe(path, kind=SftRecipe)


def numbers(section: type[Section], kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a recipe that holds a number of this kind, alone or in a tuple (then with its index).

    Where a section is one of several, ``section:name`` says which; keys that all share come once.
    """
    for name, field in section.model_fields.items():
        found = choices(field.annotation)
        if found:
            yield from numbers_of_choices(found, kind, (*path, name))
            continue
        for leaf in leaves(field.annotation):
            if isinstance(leaf, type) and issubclass(leaf, Section):
                yield from numbers(leaf, kind, (*path, name))
            elif leaf is kind:
                yield (*path, name)
            elif leaf == tuple[kind, kind]:  # type: ignore[valid-type]
                yield (*path, name, "0")
                yield (*path, name, "1")


def numbers_of_choices(
    found: dict[str, type[Section]], kind: type, path: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    shared = shared_keys(found.values())
    for number, (choice, section) in enumerate(found.items()):
        here = (*path[:-1], f"{path[-1]}:{choice}")
        for key in numbers(section, kind, here):
            if number == 0 or key[len(here)].partition(":")[0] not in shared:
                yield key


def dotted(path: tuple[str, ...]) -> str:
    return ".".join(part.partition(":")[0] for part in path)


def leaves(annotation: Any) -> list[Any]:
    """The types of a key, without what is said about them."""
    if annotation in (int, float) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return [annotation]
    parts = [leaf for part in get_args(annotation) for leaf in leaves(part)]
    return [tuple[float, float]] if parts == [float, float] else parts


FLOATS = sorted({*numbers(Recipe, float), *numbers(SftRecipe, float)})
INTEGERS = sorted({*numbers(Recipe, int), *numbers(SftRecipe, int)})


def test_the_numbers_of_a_recipe_are_all_found() -> None:
    keys = {dotted(path) for path in FLOATS}
    assert {"rollout.temperature", "actor.optimizer.betas.1", "limits.turn_timeout"} <= keys
    assert {"algorithm.modulation.zeta", "algorithm.modulation.strength", "algorithm.gamma"} <= keys
    assert {"algorithm.kl.coefficient", "algorithm.regularizer.band_low", "algorithm.correction.cap"} <= keys
    assert len(keys) >= 35
    counts = {dotted(path) for path in INTEGERS}
    assert {"run.seed", "rollout.groups", "limits.sync_timeout", "sft.batch_size"} <= counts
    assert {"algorithm.max_generation_rounds", "algorithm.overlong.buffer"} <= counts


def refusal(path: tuple[str, ...], value: Any) -> str:
    """What a recipe with this one value is refused for."""
    raw: dict[str, Any] = {**minimal(), "sft": {"batch_size": 2}}
    kind = SftRecipe if path[0] == "sft" else Recipe
    for section in ("rollout",) if kind is SftRecipe else ("sft",):
        del raw[section]
    node: Any = raw
    *sections, last = [part for part in path if not part.isdigit()]
    for part in sections:
        name, _, choice = part.partition(":")
        node = node.setdefault(name, {"name": choice} if choice else {})
    node[last] = value if path[-1] == last else [0.9, value] if path[-1] == "1" else [value, 0.9]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw, kind)
    return str(caught.value)


@given(st.sampled_from(FLOATS), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_every_number_is_finite(path: tuple[str, ...], value: float) -> None:
    assert f"{dotted(path)}: Input should be a finite number; got {value}" in refusal(path, value)


# As large as one likes: so it is switched off.
OPEN = [path for path in FLOATS if path[-1].startswith("logprob_gap")]


@given(st.sampled_from([path for path in FLOATS if path not in OPEN]), st.sampled_from([1e300, -1e300]))
def test_every_number_has_a_range(path: tuple[str, ...], value: float) -> None:
    assert f"{dotted(path)}: Input should be" in refusal(path, value)


@given(st.sampled_from(INTEGERS), st.sampled_from([-1, 2**31, 2**64, 10**400]))
def test_every_count_has_a_range(path: tuple[str, ...], value: int) -> None:
    assert f"{dotted(path)}: Input should be" in refusal(path, value)
