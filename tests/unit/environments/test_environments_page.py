"""The example of docs/environments.md runs as it stands there: checked, played, and packaged."""

import asyncio
import re
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

from megatron_empg.environments.conformance import check_environment
from megatron_empg.environments.registry import installed, make_task_source, origins, plugin
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.rollout.episode import Episode, run_episode
from tests.support.limited import limited
from tests.support.stub_engine import StubEngine
from tests.support.tokenizers_for_tests import make_tokenizer

PAGE = (Path(__file__).resolve().parents[3] / "docs/environments.md").read_text(encoding="utf-8")


def block(language: str, word: str) -> str:
    """The page's block of code that holds a word."""
    (found,) = [code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in code]
    return found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages in which the example lies, without an entry point."""
    (tmp_path / "guess.py").write_text(block("python", "class GuessTheNumber"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "guess", raising=False)
    return tmp_path


def install(package: Path) -> None:
    """What an installer makes of the page's pyproject.toml."""
    project = tomllib.loads(block("toml", "entry-points"))["project"]
    info = package / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    ((group, points),) = project["entry-points"].items()
    named = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{named}", encoding="utf-8")


@pytest.mark.usefixtures("package")
def test_the_example_keeps_every_rule() -> None:
    found = check_environment("guess:GuessTheNumber", {"largest": 50})
    assert [finding for finding in found if finding.verdict == "broken"] == []
    assert len([finding for finding in found if finding.verdict == "kept"]) > 15


@pytest.mark.usefixtures("package")
def test_the_example_is_played_by_an_engine() -> None:
    chat = ChatTokens(make_tokenizer("chatml"))
    source = make_task_source("guess:GuessTheNumber", largest=60)
    task = next(task for task in source.tasks("train") if task.payload["number"] == 42)
    said = ["I have no idea", "guess 30", "guess 50", "guess 42"]
    turns = [[*chat._tokenizer(text, add_special_tokens=False)["input_ids"], chat.end_of_turn] for text in said]

    async def play(url: str) -> Episode:
        async with EngineClient(url, "0123456789abcdef") as client:
            make, limits = partial(source.make, task), limited(8, 60, 2000)
            return await run_episode(client, chat, make, task, Sampling(1.0), *limits, lambda turn: turn)

    with StubEngine(lambda body: turns[len(engine.bodies) - 1]) as engine:
        episode = asyncio.run(play(engine.url))
    assert (episode.outcome, episode.reward, episode.error) == ("success", 1.0, None)
    assert [turn.malformed for turn in episode.turns] == [True, False, False, False]
    told = [turn.observation for turn in episode.turns]
    assert told == ["write: guess NUMBER", "it is higher", "it is lower", None]


def test_the_example_of_an_opening_keeps_every_rule_and_names_the_states(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "lamp", raising=False)
    (package / "lamp.py").write_text(block("python", "class TwoRooms"), encoding="utf-8")
    found = check_environment("lamp:Lamp", {})
    assert [finding for finding in found if finding.verdict in ("broken", "doubtful")] == []
    source = make_task_source("lamp:Lamp")
    (task,) = source.tasks("test_id")
    chat = ChatTokens(make_tokenizer("chatml"))
    said = ["look", "go", "go", "take"]
    turns = [[*chat._tokenizer(text, add_special_tokens=False)["input_ids"], chat.end_of_turn] for text in said]

    async def play(url: str) -> Episode:
        async with EngineClient(url, "0123456789abcdef") as client:
            make, limits = partial(source.make, task), limited(8, 60, 2000)
            return await run_episode(client, chat, make, task, Sampling(1.0), *limits, lambda turn: turn)

    with StubEngine(lambda body: turns[len(engine.bodies) - 1]) as engine:
        episode = asyncio.run(play(engine.url))
    assert (episode.outcome, episode.error) == ("failure", None)
    anchors = [turn.anchor for turn in episode.turns]
    assert anchors[0] == anchors[1] == anchors[3], "the hall, whatever was said before"
    assert anchors[2] != anchors[0], "the kitchen"


def test_the_example_of_a_text_world_keeps_every_rule(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "climb", raising=False)
    (package / "climb.py").write_text(block("python", "class Climb"), encoding="utf-8")
    for history_length in (2, "all"):
        found = check_environment("climb:Climb", {"history_length": history_length})
        assert [finding for finding in found if finding.verdict in ("broken", "doubtful")] == []
        assert "demonstrations can be played as they are told" in [
            finding.rule for finding in found if finding.verdict == "kept"
        ]


def test_the_example_of_a_text_world_is_played_by_hand_and_earns_the_reward_that_is_set(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "climb", raising=False)
    (package / "climb.py").write_text(block("python", "class Climb"), encoding="utf-8")
    exec(compile(block("python", "climb:Climb"), "docs/environments.md", "exec"), {})
    told = capsys.readouterr().out
    assert "You are in a tower." in told
    assert "reward=1.0, success=True" in told


def test_a_package_gives_the_example_a_name(package: Path) -> None:
    assert "guess" not in installed()
    install(package)
    assert installed()["guess"] == "guess:GuessTheNumber"
    assert origins()["guess"] == "guess 1.0"
    assert plugin("guess").__name__ == "GuessTheNumber"
    assert len(make_task_source("guess", largest=50).tasks("train")) == 40
    with pytest.raises(ValueError, match=r"guess largest is 'many': Input should be a valid integer"):
        make_task_source("guess", largest="many")


def test_a_recipe_may_name_the_package(package: Path) -> None:
    from megatron_empg.recipe import RecipeError, load_recipe

    given = ["environment.settings={largest: 50}"]
    with pytest.raises(RecipeError, match="environment name 'guess' is unknown; allowed: alfworld, deep_search"):
        load_recipe(Path("recipes/quickstart.yaml"), [*given, "environment.name=guess"])
    install(package)
    for name in ("guess", "guess:GuessTheNumber"):
        recipe = load_recipe(Path("recipes/quickstart.yaml"), [*given, f"environment.name={name}"])
        assert recipe.environment.name == name
