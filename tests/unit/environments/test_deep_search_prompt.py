"""The system message: its format is the one that is read, and every shipped recipe says whether it wants it."""

from pathlib import Path

import pytest
import yaml

from megatron_empg.environments.deep_search.actions import TAGS, SearchToolCall, gold_action, parse_action
from megatron_empg.environments.deep_search.agent_tools import ANSWER, SEARCH
from megatron_empg.environments.deep_search.prompt import EXAMPLE, EXAMPLE_QUESTION, syntax_for
from megatron_empg.environments.registry import make_task_source
from tests.support.acting import begun, step

ROOT = Path(__file__).resolve().parents[3]


def system_message(max_turns):
    return syntax_for("tags").messages("q", max_turns)[0]["content"]


@pytest.fixture(scope="module")
def told(miniature):
    return make_task_source("deep_search", corpus=miniature / "corpus.jsonl", max_turns=24)


def test_every_turn_that_it_shows_can_be_read():
    lines = [line for line in system_message(24).splitlines() if line.startswith("<think>")]
    calls = [parse_action(line) for line in lines]
    assert [call.tool for call in calls[:3]] == ["search", "visit", "answer"], "one line for each tool"
    assert [call.general for call in calls[3:]] == [turn.call for turn in EXAMPLE.turns]
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
    bare = step(begun(source.make(task)), "lima").observation
    assert bare == "malformed call : think , then one search , visit or answer"
    reminded = step(begun(told.make(task)), "lima").observation
    assert reminded.startswith(bare)
    assert "<search> words</search>" in reminded


def test_an_unknown_prompt_is_refused(miniature):
    with pytest.raises(ValueError, match="prompt 'json' is unknown; allowed: tags, none, tools"):
        make_task_source("deep_search", corpus=miniature / "corpus.jsonl", prompt="json")


def test_tools_that_are_not_there_are_not_told():
    """A search service may have no visit: its example then shows in the search what the page says."""
    syntax = syntax_for("tags", tools=(SEARCH, ANSWER))
    message = syntax.messages("q", 8)[0]["content"]
    assert "visit" not in message + syntax.reminder
    assert "Result: found the hobbit : a novel" not in message
    assert "Result: found : the author of the hobbit is j. r. r. tolkien ." in message
    assert "visit" not in str(syntax_for("tools", tools=(SEARCH, ANSWER)).template_tools)


@pytest.mark.parametrize("style", ["tags", "none", "tools", "tools_llama3"])
def test_the_gold_turn_is_one_that_is_read_as_the_answer(style):
    syntax = syntax_for(style)
    assert parse_action(gold_action("done", "são  tomé", syntax), syntax).argument.split() == ["são", "tomé"]


def test_an_answer_that_the_syntax_cannot_say_has_no_gold_turn():
    for style in ("tags", "none"):
        assert gold_action("done", "a < b", syntax_for(style)) is None
    for style in ("tools", "tools_llama3"):
        syntax = syntax_for(style)
        assert parse_action(gold_action("done", "a < b", syntax), syntax) == SearchToolCall("answer", "a < b")
    assert gold_action("done", "", syntax_for("tools")) is None


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'xml' is unknown; allowed: tags, none, tools, tools_llama3"):
        syntax_for("xml")


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SEARCHES = [path for path in RECIPES if "name: deep_search" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_recipes_say_which_prompt_they_want(path):
    """A policy of this repository was warmed up on bare questions; any other must be told how to act."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    ours = recipe["model"]["path"].startswith(("recipes/miniature/", "runs/miniature_"))
    assert (recipe["environment"]["settings"]["prompt"] == "none") is ours
