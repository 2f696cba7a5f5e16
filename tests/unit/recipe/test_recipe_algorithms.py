"""How a recipe chooses an algorithm and its parts: by name, by override, and never what means nothing."""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.section import AlgorithmSection
from megatron_empg.common.section import choices
from megatron_empg.recipe import Recipe, RecipeError, dump_recipe, load_recipe, parse_recipe

RECIPE: dict[str, Any] = {
    "run": {"folder": "runs/x", "steps": 3},
    "model": {"path": "some/model"},
    "environment": {"name": "deep_search"},
    "rollout": {"groups": 2, "group_size": 4},
}
TUNED = {
    "name": "dapo",
    "max_generation_rounds": 2,
    "clip_high": 0.5,
    "updates_per_batch": 2,
    "modulation": {"name": "empg", "k": 3.0},
    "kl": {"coefficient": 0.1},
}
"""Keys of DAPO alone, keys that all algorithms share, and a part with a key of its own."""

BONUS_ONLY = ["algorithm.masks.bonus_only=true", "algorithm.modulation=none", "algorithm.kl.coefficient=0"]

ALGORITHMS = choices(Recipe.model_fields["algorithm"].annotation)
MODULATIONS, REGULARIZERS, CORRECTIONS = (
    choices(AlgorithmSection.model_fields[part].annotation) for part in ("modulation", "regularizer", "correction")
)


def parsed(**algorithm: Any) -> Recipe:
    return parse_recipe({**RECIPE, "algorithm": algorithm})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, "algorithm": TUNED}))
    return file


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A recipe that says nothing of the algorithm."""
    file = tmp_path / "bare.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


def algorithm_of(path: Path, *overrides: str) -> Any:
    return load_recipe(path, overrides).algorithm


def test_all_of_the_papers_can_be_chosen() -> None:
    assert set(ALGORITHMS) >= {"grpo", "dapo", "rloo", "reinforce_pp", "gspo", "gigpo", "sampo", "igpo"}
    assert set(MODULATIONS) >= {"none", "empg", "aem"}
    assert set(REGULARIZERS) >= {"none", "entropy", "epo"}
    assert set(CORRECTIONS) >= {"none", "tis", "mis", "icepop", "sequence_rejection"}


@pytest.mark.parametrize("choice", list(product(ALGORITHMS, MODULATIONS, REGULARIZERS, CORRECTIONS)), ids="-".join)
def test_every_combination_is_what_was_asked_for_and_is_written_down_whole(choice: tuple[str, ...]) -> None:
    name, modulation, regularizer, correction = choice
    recipe = parsed(name=name, modulation=modulation, regularizer=regularizer, correction=correction)
    chosen: Any = recipe.algorithm
    assert type(chosen) is ALGORITHMS[name]
    assert type(chosen.modulation) is MODULATIONS[modulation]
    assert type(chosen.regularizer) is REGULARIZERS[regularizer]
    assert type(chosen.correction) is CORRECTIONS[correction]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("choice", list(product(ALGORITHMS, MODULATIONS)), ids="-".join)
def test_with_one_turn_a_combination_is_refused_by_what_compares_turns(choice: tuple[str, ...]) -> None:
    name, modulation = choice
    raw = {**RECIPE, "environment": {"name": "deep_search", "max_turns": 1}}
    raw["algorithm"] = {"name": name, "modulation": modulation}
    faults = []
    if modulation == "empg":
        faults.append("algorithm.modulation.zeta is 0.1 with environment.max_turns 1")
    if name in ("gigpo", "sampo", "igpo"):
        faults.append(f"algorithm.name is {name} with environment.max_turns 1")
    if not faults:
        assert parse_recipe(raw).algorithm.name == name
        return
    with pytest.raises(RecipeError) as refused:
        parse_recipe(raw)
    assert str(refused.value).count("\n  - ") == len(faults)
    assert all(f"  - {fault}" in str(refused.value) for fault in faults)


# What means nothing


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["environment.max_turns=1", "algorithm.modulation={name: empg, zeta: 0, target_bonus_ratio: 0.1}"],
            ["algorithm.modulation.target_bonus_ratio is 0.1 with environment.max_turns 1"],
        ),
        (
            ["environment.max_turns=1", "algorithm.modulation={name: aem, set: trajectory}"],
            ["algorithm.modulation.set is trajectory with environment.max_turns 1", "batch or question"],
        ),
        (
            ["environment.max_turns=1", "algorithm.modulation=none", "algorithm={name: reinforce_pp, gamma: 0.9}"],
            ["algorithm.gamma is 0.9 with environment.max_turns 1"],
        ),
        (
            ["algorithm.modulation={name: empg, zeta: 0, k_f: 2}"],
            ["algorithm.modulation.k_f is 2 with algorithm.modulation.zeta 0"],
        ),
        (
            ["algorithm.modulation={name: empg, k: 0, zeta: 0, reverse: true}"],
            ["algorithm.modulation.reverse is true with algorithm.modulation.k 0 and no bonus"],
        ),
        (
            BONUS_ONLY,
            [
                "algorithm.masks.bonus_only is true with algorithm.modulation none",
                "neither a KL nor a regularizer",
            ],
        ),
        (
            [*BONUS_ONLY, "algorithm.regularizer={name: entropy, coefficient: 0}"],
            ["algorithm.masks.bonus_only is true with algorithm.modulation none"],
        ),
        (
            [*BONUS_ONLY, "algorithm.modulation=aem"],
            ["algorithm.masks.bonus_only is true with algorithm.modulation aem"],
        ),
        (
            [*BONUS_ONLY, "algorithm.modulation={name: empg, zeta: 0, center: false}"],
            ["algorithm.masks.bonus_only is true with algorithm.modulation empg"],
        ),
        (
            ["algorithm.shuffle_rewards=true", "algorithm.name=igpo"],
            ["algorithm.shuffle_rewards is true with algorithm.name igpo"],
        ),
        (
            ["algorithm.shuffle_rewards=true", "algorithm.overlong={buffer: 64, max_length: 128}"],
            ["algorithm.shuffle_rewards is true with algorithm.overlong.buffer 64", "episodes to be short"],
        ),
        (
            ["algorithm.shuffle_rewards=true", "algorithm.name=gigpo"],
            ["algorithm.shuffle_rewards is true with algorithm.gamma 0.95", "set algorithm.gamma=1"],
        ),
        (
            ["algorithm.shuffle_rewards=true", "algorithm={name: sampo, gamma: 0.5}"],
            ["algorithm.shuffle_rewards is true with algorithm.gamma 0.5"],
        ),
        (
            ["algorithm.shuffle_rewards=true", "algorithm={name: reinforce_pp, gamma: 0.9}"],
            ["algorithm.shuffle_rewards is true with algorithm.gamma 0.9"],
        ),
        (
            ["algorithm.kl={estimator: k1}"],
            ["algorithm.kl.estimator is k1 with algorithm.kl.coefficient 0", "give a coefficient"],
        ),
        (
            ["algorithm.overlong={max_length: 512}"],
            ["algorithm.overlong.max_length is 512 with algorithm.overlong.buffer 0"],
        ),
        (
            ["algorithm.overlong={buffer: 96, max_length: 4192}"],
            ["algorithm.overlong.max_length is 4192", "begins after 4096 own tokens", "more than 4096"],
        ),
        (
            ["algorithm.overlong={buffer: 64, max_length: 8256}", "environment.max_turns=1000"],
            ["algorithm.overlong.max_length is 8256", "begins after 8192 own tokens", "more than 8192"],
        ),
        (
            ["algorithm.shuffle_rewards=true", "rollout.max_lag=1"],
            ["algorithm.shuffle_rewards is true with rollout.max_lag 1", "set rollout.max_lag=0"],
        ),
        (
            ["algorithm={name: dapo, oversampling: 1.5}", "rollout.max_lag=2"],
            ["algorithm.oversampling is 1.5 with rollout.max_lag 2", "leave it out"],
        ),
        (["algorithm.overlong.buffer=96"], ["algorithm.overlong", "max_length", "is not given"]),
        (["algorithm.overlong={buffer: 96, max_length: 64}"], ["algorithm.overlong", "more than"]),
        (["algorithm.regularizer={name: epo, band_low: 2}"], ["algorithm.regularizer: band_low is 2.0"]),
        (["algorithm.correction={name: mis, low: 2}"], ["algorithm.correction: ", "set low in [0, 1]"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_means_nothing_is_refused_by_name(path: Path, overrides: list[str], named: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, ["rollout.max_episode_tokens=8192", *overrides])
    for part in named:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["environment.max_turns=1", "algorithm.modulation.zeta=0"],
        ["environment.max_turns=1", "algorithm.modulation=aem"],
        ["algorithm.modulation={name: empg, k: 0, reverse: true}"],
        ["algorithm.modulation={name: empg, zeta: 0, reverse: true}"],
        ["algorithm.modulation={name: empg, k: 0, zeta: 0, target_scale_ratio: 2, reverse: true}"],
        ["algorithm.masks.bonus_only=true"],
        ["algorithm.masks.bonus_only=true", "algorithm.modulation.zeta=0"],  # centring moves them
        ["algorithm.masks.bonus_only=true", "algorithm.modulation=none", "algorithm.kl.coefficient=0.1"],
        [*BONUS_ONLY, "algorithm.regularizer=entropy"],
        [*BONUS_ONLY, "algorithm.regularizer=epo"],
        ["algorithm.shuffle_rewards=true"],
        ["algorithm.shuffle_rewards=true", "algorithm={name: gigpo, gamma: 1}"],
        ["algorithm.shuffle_rewards=true", "algorithm={name: sampo, omega: 0}"],
        ["algorithm.shuffle_rewards=true", "algorithm.name=reinforce_pp"],
        ["algorithm.kl={estimator: k1, coefficient: 0.1}"],
        ["algorithm.overlong={buffer: 97, max_length: 4192}"],
        ["algorithm.name=gspo", "algorithm.loss_mean=token"],  # not the paper's, but well defined
    ],
    ids=lambda value: value[-1],
)
def test_what_means_something_is_not(path: Path, overrides: list[str]) -> None:
    assert load_recipe(path, ["rollout.max_episode_tokens=8192", *overrides])


# Overrides


def test_another_algorithm_has_its_own_defaults_and_the_shared_keys_stay(path: Path) -> None:
    chosen = algorithm_of(path, "algorithm.name=gspo")
    assert (chosen.clip_low, chosen.clip_high) == (3e-4, 4e-4)
    assert chosen.modulation.k == 3
    assert chosen.updates_per_batch == 2
    assert chosen.kl.coefficient == 0.1
    assert algorithm_of(path, "algorithm.name=sampo").max_generation_rounds == 10


def test_the_same_algorithm_keeps_its_keys(path: Path) -> None:
    chosen = algorithm_of(path, "algorithm.name=dapo")
    assert (chosen.max_generation_rounds, chosen.clip_high) == (2, 0.5)


def test_an_algorithm_alone_is_it_with_all_defaults(path: Path) -> None:
    assert algorithm_of(path, "algorithm=dapo") == Dapo()


def test_overrides_of_an_algorithms_own_keys_are_in_force_wherever_they_stand(path: Path) -> None:
    words = ["algorithm.clip_high=0.01", "algorithm.name=gspo", "algorithm.modulation.strength=2"]
    words.append("algorithm.modulation=aem")
    for order in (words, words[::-1]):
        chosen = algorithm_of(path, *order)
        assert (chosen.name, chosen.clip_high) == ("gspo", 0.01)
        assert (chosen.modulation.name, chosen.modulation.strength) == ("aem", 2)


@pytest.mark.parametrize("given", ["empg", {"name": "empg"}, {"k_f": 1.0}, {}])
def test_a_key_of_a_part_is_set_where_the_part_was_named_only(tmp_path: Path, given: Any) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, "algorithm": {"modulation": given}}))
    chosen = algorithm_of(file, "algorithm.modulation.k=3")
    assert (chosen.modulation.name, chosen.modulation.k) == ("empg", 3)


def test_a_key_of_a_part_is_set_where_nothing_was_said(bare: Path) -> None:
    chosen = algorithm_of(bare, "algorithm.modulation.k=3")
    assert (chosen.name, chosen.modulation.name, chosen.modulation.k) == ("grpo", "empg", 3)


@pytest.mark.parametrize(
    ("override", "name", "key", "value"),
    [
        ("algorithm.modulation=none", "none", None, None),
        ("algorithm.modulation=empg", "empg", "k", 1.0),
        ("algorithm.modulation.name=empg", "empg", "k", 3.0),
        ("algorithm.modulation.name=aem", "aem", "strength", 1.0),
        ("algorithm.modulation={name: aem, strength: 2}", "aem", "strength", 2.0),
        ("algorithm.modulation={zeta: 0.5}", "empg", "zeta", 0.5),
    ],
)
def test_a_part_is_named_or_given_with_its_keys(
    path: Path, override: str, name: str, key: str | None, value: float | None
) -> None:
    part = algorithm_of(path, override).modulation
    assert part.name == name
    assert key is None or getattr(part, key) == value


def test_of_two_overrides_of_one_key_the_last_holds(path: Path) -> None:
    assert algorithm_of(path, "algorithm.modulation=none", "algorithm.modulation=aem").modulation.name == "aem"


# Faults


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("algorithm.name=gipgo", ["algorithm.name: 'gipgo' is unknown", "did you mean 'gigpo'?", "sampo, igpo"]),
        ("algorithm.name=3", ["algorithm.name: '3' is unknown", "allowed: grpo, dapo"]),
        ("algorithm.modulation=emgp", ["algorithm.modulation.name: 'emgp'", "did you mean 'empg'?", "none, empg"]),
        ("algorithm.modulation.name=~", ["algorithm.modulation.name: 'None' is unknown", "none, empg, aem"]),
        (
            "algorithm.modulation=off",
            ["algorithm.modulation: False is neither a name nor keys; names: none, empg"],
        ),
        ("algorithm.regularizer=0.1", ["algorithm.regularizer: 0.1 is neither a name", "none, entropy, epo"]),
        ("algorithm=[dapo]", ["algorithm: ['dapo'] is neither a name nor keys; names: grpo, dapo"]),
        (
            "algorithm.kl=0.01",
            ["algorithm.kl: 0.01 is not a group of keys; give algorithm.kl.coefficient; keys: "],
        ),
        ("algorithm.masks=[cut_turns]", ["algorithm.masks: ['cut_turns'] is not a group", "truncated, cut_turns"]),
        ("run=~", ["run: None is not a group of keys; give run.folder; keys: folder, steps"]),
        ("algorithm.name=" + "x" * 9999, ["algorithm.name: 'xxx", "xx… is unknown; allowed: grpo"]),
        ("algorithm.name=GRPO", ["'GRPO' is unknown; did you mean 'grpo'?"]),
        ("algorithm.name.k=1", ["name is 'dapo', a value, not a section: correct the override"]),
        ("algorithm.name=empg", ["'empg' is unknown; it is one of algorithm.modulation; allowed: grpo, dapo"]),
        ("algorithm=tis", ["algorithm.name: 'tis' is unknown; it is one of algorithm.correction; allowed"]),
        ("algorithm.k=3", ["algorithm.k: unknown key; there is algorithm.modulation.k; allowed"]),
        ("algorithm.coefficient=1", ["there is algorithm.regularizer.coefficient and algorithm.kl.coefficient;"]),
        ("algorithm.truncated=true", ["there is algorithm.masks.truncated;"]),
        ("algorithm.modulation.zetta=1", ["algorithm.modulation.zetta", "did you mean 'zeta'?", "with name empg"]),
        ("algorithm.modulation.strength=1", ["algorithm.modulation.strength", "it is a key of aem", "name empg"]),
        ("algorithm.regularizer.coefficient=1", ["algorithm.regularizer.coefficient", "a key of entropy, epo"]),
        ("algorithm.omega=1", ["algorithm.omega: unknown key; it is a key of gigpo, sampo", "with name dapo"]),
        ("algorithm.overlong.bufer=1", ["algorithm.overlong.bufer", "did you mean 'buffer'?"]),
        ("algorithm.masks.truncatd=true", ["algorithm.masks.truncatd", "did you mean 'truncated'?"]),
        ("algorithm.dapo.clip_high=0.3", ["algorithm.dapo.clip_high is algorithm.clip_high now"]),
        ("algorithm.grpo={clip_low: 0.3}", ["algorithm.grpo.clip_low is algorithm.clip_low now"]),
        (
            "algorithm.empg={k: 3, zeta: 0.1}",
            [
                "algorithm.empg.k is algorithm.modulation.k now",
                "algorithm.empg.zeta is algorithm.modulation.zeta now",
            ],
        ),
        ("algorithm.empg=~", ["algorithm.empg: unknown key; its keys lie in algorithm.modulation now"]),
        ("algorithm.kl_coefficient=0.1", ["algorithm.kl_coefficient", "it is algorithm.kl.coefficient now"]),
        ("algorithm.entropy_coefficient=0.1", ["algorithm.regularizer, as {name: entropy, coefficient: ...}"]),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_fault_in_a_choice_is_refused_by_name(path: Path, override: str, named: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, [override])
    for part in named:
        assert part in str(refused.value)


def test_an_unknown_name_hides_no_other_fault(path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, ["algorithm.name=ppo", "algorithm.modulation.k=2", "run.steps=0"])
    assert "algorithm.name: 'ppo' is unknown" in str(refused.value)
    assert "run.steps: " in str(refused.value)


def test_a_recipe_is_read_without_torch() -> None:
    """Every command begins with it; torch takes seconds and 200 MB."""
    code = (
        "import sys; from pathlib import Path; from megatron_empg.recipe import load_recipe; "
        "load_recipe(Path('recipes/quickstart.yaml'), ['algorithm.name=sampo']); "
        "found = {'torch', 'numpy', 'jaxtyping'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
