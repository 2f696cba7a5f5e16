"""The system message: its format is the one that is read, and every shipped recipe says whether it wants it."""

from pathlib import Path

import pytest
import yaml

from megatron_empg.environments.deep_search.actions import TAGS, parse_action
from megatron_empg.environments.deep_search.prompt import EXAMPLE, EXAMPLE_QUESTION, system_message
from megatron_empg.environments.deep_search.source import DeepSearchTaskSource
from megatron_empg.environments.registry import make_task_source

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def told(miniature):
    return make_task_source("deep_search", corpus=miniature / "corpus.jsonl", max_turns=24)


def test_every_turn_that_it_shows_can_be_read():
    lines = [line for line in system_message(24).splitlines() if line.startswith("<think>")]
    calls = [parse_action(line) for line in lines]
    assert [call.tool for call in calls[:3]] == ["search", "visit", "answer"], "one line for each tool"
    assert calls[3:] == [call for _, call, _ in EXAMPLE]
    assert calls[-1].tool == "answer"


def test_it_names_tools_tags_turns_and_the_example():
    message = system_message(24)
    for part in (*TAGS, "at most 24 turns", EXAMPLE_QUESTION):
        assert part in message
    assert "{" not in message, "nothing is left to fill in"
    assert "1 turn," in system_message(1)


def test_it_stands_before_the_question_unless_switched_off(told, source):
    task, bare = told.sample("train", 1, seed=3)[0], source.sample("train", 1, seed=3)[0]
    assert [message["role"] for message in task.prompt] == ["system", "user"]
    assert task.prompt[0]["content"] == system_message(24)
    assert task.prompt[1:] == bare.prompt
    assert task.payload == bare.payload
    assert told.tasks("test_id")[5:7][1].prompt[0] == task.prompt[0]
    assert told.fixed("test_ood", 1)[0].prompt[0] == task.prompt[0]


def test_a_malformed_turn_is_reminded_of_the_format_where_there_is_a_prompt(told, source):
    task = source.sample("train", 1, seed=3)[0]
    bare = source.make(task).step("lima").observation
    assert bare == "malformed call : think , then one search , visit or answer"
    reminded = told.make(task).step("lima").observation
    assert reminded.startswith(bare)
    assert "<search> words</search>" in reminded


def test_an_unknown_prompt_is_refused(miniature):
    with pytest.raises(ValueError, match="prompt 'json' is unknown; allowed: tags, none"):
        DeepSearchTaskSource(miniature / "corpus.jsonl", prompt="json")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_say_which_prompt_they_want(path):
    """A policy of this repository was warmed up on bare questions; any other must be told how to act."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    ours = recipe["model"]["path"].startswith(("recipes/miniature/", "runs/miniature_"))
    assert recipe["environment"]["settings"]["prompt"] == ("none" if ours else "tags")
