"""Every recipe in recipes/, run small from its own kind of start with its own flags, on real ranks and engines.

Of each class of recipe one goes the whole way: steps, checkpoints, killed, resumed, exported, evaluated. The
others train two steps and export; `make test-recipes-all` takes them all the whole way. `scaling` says what is
made small, `stand_ins` where a run starts.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.common.jsonl import read_lines
from megatron_empg.recipe import Recipe, SftRecipe, load_recipe
from megatron_empg.recipe.identity import take_up
from tests.distributed.ranks import run_ranks
from tests.recipes.launches import KILLED, Launches
from tests.recipes.recipe_files import RECIPES, SEARCHES, read
from tests.recipes.rehearsal import ALL_THE_WAY, RANKS, WHOLE_STEPS, check_export, check_steps, rehearse
from tests.recipes.scaling import DEGREES, Overrides, Size, scaled, words
from tests.recipes.stand_ins import data_of, is_published, start_of


@dataclass(frozen=True)
class Case:
    """One pass of one recipe, and whether it goes the whole way."""

    path: Path
    number: int
    overrides: Overrides
    whole: bool

    @property
    def name(self) -> str:
        return f"{self.path.stem}-{self.number}" + ("-whole" if self.whole else "")


def class_of(recipe: Recipe | SftRecipe) -> str:
    if isinstance(recipe, SftRecipe):
        return "warm-up"
    return "training on a cluster" if is_published(recipe) else "small training"


def processes(overrides: Overrides) -> int:
    """How many a pass takes, as a measure of its cost."""
    ranks = prod(overrides[f"actor.{name}"] for name in DEGREES)
    return ranks + overrides.get("engines.count", 0) * (1 + overrides.get("engines.tensor_parallel", 0))


def cases() -> list[Case]:
    """All passes of all recipes; of each class the one that takes the fewest processes goes the whole way."""
    passes = [(path, number) for path in SEARCHES for number in range(len(scaled(read(path), RANKS)))]
    cheapest: dict[str, tuple[Path, int]] = {}
    for path, number in sorted(passes, key=lambda one: processes(scaled(read(one[0]), RANKS)[one[1]])):
        cheapest.setdefault(class_of(read(path)), (path, number))
    return [case_of(path, number, (path, number) in cheapest.values()) for path, number in passes]


def case_of(path: Path, number: int, chosen: bool) -> Case:
    whole = chosen or ALL_THE_WAY
    size = Size(steps=WHOLE_STEPS) if whole else Size()
    return Case(path, number, scaled(read(path), RANKS, size)[number], whole)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_recipe_runs_from_its_own_kind_of_start(case: Case, prepared: Path, tmp_path: Path) -> None:
    written = read(case.path)
    data = dict(word.split("=", 1) for word in data_of(written, prepared))
    ours = {"model.path": start_of(written), "run.folder": tmp_path / "run"}
    rehearse(case.path, {**case.overrides, **data, **ours}, whole=case.whole)


def cluster_layouts() -> list[Path]:
    """Of the recipes for clusters one for each layout that they come down to."""
    published = [path for path in RECIPES if is_published(read(path))]
    return list({str(small_actor(path)): path for path in published}.values())


def small_actor(path: Path) -> dict[str, Any]:
    """What a recipe's actor section says of the layout, made small."""
    small = load_recipe(path, words(scaled(read(path), RANKS)[0]))
    return small.actor.model_dump(exclude={"optimizer", "max_tokens_per_microbatch"}, exclude_defaults=True)


def warm_up(path: str, overrides: list[str]) -> None:
    """What each rank of `empg sft` does."""
    from megatron_empg.trainer.sft import run_sft

    run_sft(load_recipe(Path(path), overrides, SftRecipe))


@pytest.mark.parametrize("path", cluster_layouts(), ids=lambda path: path.stem)
def test_a_warm_up_in_a_clusters_layout_exports(path: Path, tmp_path: Path) -> None:
    """The layout and flags of a recipe for a cluster serve `empg sft` too; ranks that wait for ever are named."""
    written = RECIPES[0].with_name("miniature_sft.yaml")
    overrides = words({
        **scaled(read(written), RANKS, Size(steps=1))[0],
        "actor.data_parallel": 1,
        **{f"actor.{name}": value for name, value in small_actor(path).items()},
        "model.dtype": read(path).model.dtype,
        "run.folder": tmp_path / "run",
    })  # fmt: skip
    recipe = load_recipe(written, overrides, SftRecipe)
    folder = take_up(recipe)
    run_ranks(warm_up, recipe.actor.world_size, str(written), overrides)
    check_steps(recipe, read_lines(folder.metrics))
    check_export(recipe, folder.policy, start_of(recipe))
    folder.close()


@pytest.mark.slow
def test_the_first_command_with_every_flag_of_data_parallelism(tmp_path: Path) -> None:
    """Overlap and the distributed optimizer over two data-parallel ranks: killed, resumed, exported.

    In `make test-recipes-all`: the recipes for clusters have the same flags, and one of them goes the whole way.
    """
    folder = tmp_path / "run"
    overrides = [
        *("actor.tensor_parallel=1", "actor.data_parallel=2", "actor.overlap=true"),
        *("actor.distributed_optimizer=true", "run.steps=2", "evaluation.questions=0"),
        *("run.checkpoint_every=1", f"run.folder={folder}"),
    ]
    path = str(RECIPES[0].with_name("quickstart.yaml"))
    launches = Launches(folder)
    launches.run("train", path, *overrides, kill_after_step=1)
    launches.run("train", path, *overrides)
    assert launches.exits == [KILLED, 0], launches.output
    recipe = load_recipe(Path(path), overrides)
    check_steps(recipe, launches.logged)
    check_export(recipe, folder / "policy", start_of(recipe))
