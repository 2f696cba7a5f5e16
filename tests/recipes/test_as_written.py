"""Every recipe as it is written, at its true size: what can be known of it without weights."""

import asyncio
import json
import shutil
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import AutoTokenizer

from megatron_empg.cluster.watchdog import Watchdog
from megatron_empg.common.gpus import GPUS
from megatron_empg.environments.base import SPLITS
from megatron_empg.environments.deep_search.actions import SearchToolCall, Tool
from megatron_empg.environments.deep_search.corpus import load_corpus
from megatron_empg.environments.deep_search.source import DeepSearch
from megatron_empg.environments.registry import make_task_source
from megatron_empg.planner.search import GIB, plan
from megatron_empg.recipe import Recipe, SftRecipe, load_recipe
from megatron_empg.recipe.check import check_recipe, layout_faults
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.chat_use import ChatUse
from megatron_empg.rollout.client import Generation, Sampling
from megatron_empg.rollout.episode import run_episode
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.run.heartbeat import Beat
from megatron_empg.trainer.loop import Training
from megatron_empg.trainer.phase_limits import phase_limits
from megatron_empg.trainer.phases import Phases
from megatron_empg.weights.mapping.known_models import known_model
from megatron_empg.weights.mapping.model_config import ModelConfig
from tests.recipes.prepared_miniature import CORPUS
from tests.recipes.recipe_files import RECIPES, ROOT, SEARCHES, read
from tests.recipes.scaling import scaled, words
from tests.recipes.stand_ins import INSTRUCT, INSTRUCT_TOOLS, data_of, is_published, start_of

CONFIGS = ROOT / "tests/unit/weights/configs"
TRAINING = [path for path in RECIPES if isinstance(read(path), Recipe)]
PUBLISHED = [path for path in RECIPES if is_published(read(path))]
ASKING = [path for path in TRAINING if path in SEARCHES]

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
every_training = pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
every_search = pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
every_asking = pytest.mark.parametrize("path", ASKING, ids=lambda path: path.stem)
every_published = pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)


def published_config(recipe: Recipe | SftRecipe, folder: Path) -> Path:
    """A folder with the config.json of the model that a recipe names, which is kept for its size."""
    name = recipe.model.path.name.lower().removesuffix("-instruct")
    kept, known = CONFIGS / f"{name}.json", known_model(recipe.model.path)
    if kept.exists():
        shutil.copy(kept, folder / "config.json")
    else:
        assert known is not None, f"{recipe.model.path}: put its config.json there as {kept.relative_to(ROOT)}"
        (folder / "config.json").write_text(json.dumps(dict(known.shape)), encoding="utf-8")
    return folder


def tasks_of(path: Path, prepared: Path) -> DeepSearch:
    """What a recipe asks when it is rehearsed."""
    written = read(path)
    acting = load_recipe(path, data_of(written, prepared), type(written)).environment
    return _tasks(acting.name, acting.max_turns, json.dumps(acting.settings))


@cache
def _tasks(name: str, max_turns: int, settings: str) -> DeepSearch:
    source = make_task_source(name, max_turns=max_turns, **json.loads(settings))
    assert isinstance(source, DeepSearch)
    return source


@every_recipe
def test_model_and_layout_fit_each_other(path: Path, tmp_path: Path) -> None:
    recipe = read(path)
    model = published_config(recipe, tmp_path) if is_published(recipe) else start_of(recipe)
    assert not layout_faults(recipe, ModelConfig.from_folder(model))


@every_published
def test_a_recipe_for_a_cluster_fits_the_gpus_that_it_asks_for(path: Path, tmp_path: Path) -> None:
    model = published_config(read(path), tmp_path)
    recipe = load_recipe(path, [f"model.path={model}"])
    engines = recipe.engines.count * recipe.engines.tensor_parallel
    found = plan(
        recipe, ModelConfig.from_folder(model), gpus=recipe.actor.world_size + engines, gpu=GPUS["H100"],
        gpu_memory=GPUS["H100"].memory_gib * GIB,
    )  # fmt: skip
    assert not found.own_faults, found.own_faults


def test_published_models_are_told_by_tags_and_by_their_templates_tools() -> None:
    assert {start_of(read(path)) for path in PUBLISHED if path in SEARCHES} == {INSTRUCT, INSTRUCT_TOOLS}


@every_search
def test_the_policy_is_told_how_to_act_unless_it_was_taught(path: Path, prepared: Path) -> None:
    recipe = read(path)
    (task,) = tasks_of(path, prepared).sample("train", 1, seed=0)
    if not is_published(recipe):
        alone = len(task.prompt) == 1 and not task.tools
        assert alone, "the miniature's policies were taught without instructions"
        return
    tokenizer = AutoTokenizer.from_pretrained(start_of(recipe))
    told = tokenizer.apply_chat_template(task.prompt, tools=list(task.tools) or None, tokenize=False)
    missing = [tool for tool in get_args(Tool) if not is_shown(tool, told)]
    assert not missing, f"{path.name} does not tell its model how to {', '.join(missing)}"


def is_shown(tool: str, told: str) -> bool:
    """In tags, or by its schema and how calls are written."""
    in_tags = f"<{tool}>" in told and f"</{tool}>" in told
    return in_tags or (f'"name": "{tool}"' in told and "<tool_call>" in told)


@every_search
def test_what_stands_for_its_model_knows_the_prompt_and_bears_the_layout(
    path: Path, prepared: Path, tmp_path: Path
) -> None:
    recipe = read(path)
    start = start_of(recipe)
    (task,) = tasks_of(path, prepared).sample("train", 1, seed=0)
    length = len(ChatTokens(AutoTokenizer.from_pretrained(start)).prompt(task.prompt, ChatUse.of(task)))
    positions = json.loads((start / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    for overrides in scaled(recipe, 4):
        given = [*words(overrides), *data_of(recipe, prepared), f"model.path={start}", f"run.folder={tmp_path}"]
        small = load_recipe(path, given, type(recipe))
        check_recipe(small)
        if isinstance(small, Recipe):
            assert length + small.rollout.max_turn_tokens < small.rollout.max_episode_tokens <= positions


def test_what_a_recipe_with_tools_asks_and_searches_is_what_was_prepared(prepared: Path) -> None:
    """Whose questions, pages and model a job would be given: in their published formats."""
    (path,) = (path for path in PUBLISHED if start_of(read(path)) == INSTRUCT_TOOLS)
    source = tasks_of(path, prepared)
    kinds = {split: {task.kind for task in source.fixed(split, 20)} for split in SPLITS}
    assert kinds == {"train": {"hotpotqa"}, "test_id": {"hotpotqa"}, "test_ood": {"musique"}}
    (task,) = source.sample("train", 1, seed=0)
    assert task.observation_role == "tool"
    title = load_corpus(CORPUS).documents[0].title
    look = source.make(task).syntax.write("look", SearchToolCall("visit", title).general)
    seen = asyncio.run(source.make(task).step(look)).observation
    assert seen == f"page {title} : {load_corpus(CORPUS).documents[0].text}"


@dataclass
class Visitor:
    """Visits the longest page, again and again; a client of no engine."""

    turn: list[int]

    async def generate(self, tokens: list[int], sampling: Sampling, *, max_tokens: int, seed: int) -> Generation:
        assert max_tokens > 0, f"an observation carried the episode past its limit, to {len(tokens)} tokens"
        own = self.turn[:max_tokens]
        finish = "stop" if len(own) == len(self.turn) else "length"
        return Generation(own, [-0.5] * len(own), finish, [])


@every_asking
def test_no_observation_carries_an_episode_past_its_limit(path: Path, prepared: Path) -> None:
    recipe = read(path)
    tokenizer = AutoTokenizer.from_pretrained(start_of(recipe))
    source, chat = tasks_of(path, prepared), ChatTokens(tokenizer)
    (task,) = source.sample("train", 1, seed=0)
    longest = max(load_corpus(CORPUS).documents, key=lambda page: len(page.text)).title
    text = source.make(task).syntax.write("look", SearchToolCall("visit", longest).general)
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    visitor = Visitor([*own, chat.end_of_turn])
    prompt, sampling = len(chat.prompt(task.prompt, ChatUse.of(task))), Sampling(temperature=1.0)
    for limit in range(prompt + 2, prompt + 200):
        rollout = recipe.rollout.model_copy(update={"max_episode_tokens": limit})
        limits = (rollout, recipe.waits, recipe.environment.max_turns)
        play = run_episode(visitor, chat, partial(source.make, task), task, sampling, *limits, lambda turn: turn)
        episode = asyncio.run(play)
        assert episode.outcome == "truncated", episode.error
        assert len(episode.tokens) <= limit, "an observation carried the episode past its limit"
        assert episode.turns[-1].end <= limit


@dataclass
class SlowEvaluation:
    """Rank 0's driver and heartbeat in an evaluation each pass of which takes just what it may; time is told."""

    limits: dict[str, float]
    seconds: float
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(silence=1e9))
    now: float = 0.0
    phase: str = "start"
    collectives: int = 0
    hanging: list[str] = field(default_factory=list)

    def enter(self, phase: str) -> None:
        self.phase = phase

    def agree(self, flag: bool) -> bool:
        self.collectives += 1
        return flag

    def evaluate(self, split: Any, greedy: bool) -> Evaluation:
        for _ in range(20):
            self.now += self.seconds / 20
            limit = self.limits[self.phase]
            beat = Beat(0, "node", 1, int(self.now), 0, self.phase, self.collectives, "evaluate", limit)
            self.watchdog.read([beat], self.now)
            self.hanging += self.watchdog.verdict(self.now)
        return Evaluation(split, greedy, success=0.5, questions=4, errors=0, seconds=self.seconds)


@every_training
def test_an_evaluation_may_take_what_all_of_its_passes_take(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read(path)
    assert isinstance(recipe, Recipe)
    slow: Any = SlowEvaluation(phase_limits(recipe), recipe.waits.batch)
    monkeypatch.setattr(Training, "_agree", lambda training, flag: slow.agree(flag))
    training: Any = object.__new__(Training)
    training.recipe, training.phases, training.driver = recipe, Phases(slow), slow
    training.folder = None  # the stand-in notes no question
    training._evaluate(0)
    assert not slow.hanging, f"an evaluation longer than its limit: {slow.hanging[0]}"
    passes = len(recipe.evaluation.splits) * (1 + recipe.evaluation.greedy)
    assert slow.now == pytest.approx(passes * recipe.waits.batch)
