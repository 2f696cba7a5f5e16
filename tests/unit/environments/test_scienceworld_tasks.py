"""Tasks of ScienceWorld and their splits, which are known without Java."""

import subprocess
import sys

import pytest

from megatron_empg.environments.base import SPLITS, EpisodeLimits
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.scienceworld import source as source_module
from megatron_empg.environments.scienceworld.java_installation import JavaInstallation
from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings
from megatron_empg.environments.scienceworld.source import ScienceWorld
from megatron_empg.environments.scienceworld.splits import UNSEEN_BY_RLVMR, variations_of
from megatron_empg.environments.scienceworld.variations import PARTS, all_tasks


@pytest.fixture(autouse=True)
def _no_java(monkeypatch, tmp_path):
    """No Java is looked for, and none could be started."""
    monkeypatch.setattr(source_module, "installed", lambda: JavaInstallation("no java", tmp_path / "no.jar"))


def source_of(**settings):
    return ScienceWorld(ScienceWorldSettings(**settings), EpisodeLimits(30))


def counts(splits):
    return [len(variations_of(split, splits, None)) for split in SPLITS]


def test_the_parts_are_as_large_as_the_papers_say():
    # 30 tasks and 7,207 variations: arXiv 2203.07540 and the engine's README.
    assert len(all_tasks()) == 30
    assert counts("published") == [3592, 1796, 1819]
    assert sum(counts("published")) == 7207


def test_epos_splits_are_as_large_as_its_files_say():
    # L0_idx.json and L1_idx.json of WujiangXu/EPO: train and test of L0, test of L1.
    assert counts("epo") == [3322, 1661, 1684]


def test_unseen_tasks_are_as_many_as_the_file_of_rlvmr_says():
    # L2_idx.json: train and test. Its test_id is the dev part of the tasks that are trained on.
    train, test_id, test_ood = counts("unseen_tasks")
    assert (train, test_ood) == (2242, 549)
    seen = {variation.task for variation in variations_of("train", "unseen_tasks", None)}
    assert seen == {variation.task for variation in variations_of("test_id", "unseen_tasks", None)}
    assert test_id == sum(len(all_tasks()[name].parts["dev"]) for name in seen)
    unseen = {variation.task for variation in variations_of("test_ood", "unseen_tasks", None)}
    assert unseen == set(UNSEEN_BY_RLVMR)
    assert not seen & unseen


@pytest.mark.parametrize("splits", ["published", "epo", "unseen_tasks"])
def test_splits_share_no_variation(splits):
    drawn = [set(variations_of(split, splits, None)) for split in SPLITS]
    assert len(set.union(*drawn)) == sum(map(len, drawn))


def test_every_variation_asks_something():
    for task in all_tasks().values():
        for part in PARTS:
            for variation in task.variations(part):
                assert task.goal(variation.number).startswith("Your task is to "), variation


def test_a_task_says_what_is_asked_and_of_what_kind_it_is():
    task = source_of().tasks("train")[0]
    assert task.id == "boil 0"
    assert task.kind == "boil"
    assert task.prompt == []
    assert task.payload["goal"].startswith("Your task is to boil ")
    assert (task.payload["task"], task.payload["variation"]) == ("boil", 0)


def test_tasks_can_be_kept_to_some():
    source = source_of(tasks=["find-plant", "find-animal"])
    kinds = {task.kind for split in SPLITS for task in source.tasks(split)}
    assert kinds == {"find-plant", "find-animal"}


def test_drawing_by_task_gives_each_the_same_share_and_by_variation_does_not():
    largest = max(all_tasks().values(), key=lambda task: len(task.parts["train"]))
    by_task = [task.kind for task in source_of().sample("train", 3000, seed=0)]
    assert max(by_task.count(kind) for kind in set(by_task)) < 500
    by_variation = [task.kind for task in source_of(drawn="variations").sample("train", 3000, seed=0)]
    share = by_variation.count(largest.name) / len(by_variation)
    assert share == pytest.approx(len(largest.parts["train"]) / 3592, abs=0.03)


def test_the_same_seed_draws_the_same_tasks():
    one, other = source_of(), source_of()
    assert one.sample("train", 50, seed=3) == other.sample("train", 50, seed=3)
    assert one.fixed("test_ood", 20) == other.fixed("test_ood", 30)[:20]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev' is unknown; allowed: train"):
        source_of().tasks("dev")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"simplifications": "easy,openDoors"}, "stands alone"),
        ({"simplifications": "openDoors, openContainers"}, "' openContainers' is unknown; allowed, separated"),
        ({"tasks": ["cook"]}, "'cook' is not a task; there are boil, "),
        ({"tasks": []}, "must name a task"),
        ({"choices": "all"}, "choices 'all' is unknown; allowed: none, templates, valid"),
        ({"observation_characters": 3}, "observation_characters is 3"),
        ({"heap": 1}, "there is no such setting"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_can_be(settings, message):
    with pytest.raises(ValueError, match=message):
        make_task_source("megatron_empg.environments.scienceworld.source:ScienceWorld", **settings)


def test_neither_the_module_nor_a_source_loads_the_engines_packages():
    program = (
        "import sys, megatron_empg.environments.scienceworld.source as m\n"
        "m.installed = lambda: None\n"
        "source = m.ScienceWorld(m.ScienceWorldSettings(), m.EpisodeLimits(30))\n"
        "source.make(source.sample('train', 1, 0)[0])\n"
        "print({'py4j', 'scienceworld', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
