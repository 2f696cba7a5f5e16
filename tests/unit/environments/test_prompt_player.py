"""The prompts are complete and true: a player that learns the syntax from them alone wins."""

import asyncio
import json

import jinja2
import pytest

from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.prompt import syntax_for
from megatron_empg.environments.deep_search.scoring import GoldAnswerScore
from megatron_empg.environments.deep_search.search_service import LocalTools
from megatron_empg.environments.deep_search.tools import ImmediateTools
from megatron_empg.environments.registry import make_task_source
from tests.unit.environments.prompt_player import PURPOSES, Form, forms_in_message, forms_in_rendering, play

# Structures of published templates, written anew.
HERMES = """\
{{ '<|im_start|>system\\n' + messages[0]['content'] }}

# Tools

Functions can be called to help with the question. Their signatures are within <tools></tools>:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>

To call one, write a json object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
{{ messages[1]['content'] }}<|im_end|>
"""
LLAMA3 = """\
<|start_header_id|>system<|end_header_id|>

{{ messages[0]['content'] }}<|eot_id|><|start_header_id|>user<|end_header_id|>

Answer with a JSON call of one of the functions below.
The form is {"name": function name, "parameters": dictionary of argument name and its value}. Use no variables.

{% for tool in tools %}{{ tool | tojson }}

{% endfor %}{{ messages[1]['content'] }}<|eot_id|>
"""
OWN_FILE = """\
---
syntax: tags
---
You have {max_turns} turns. Each is a thought and a call:
{tools}

This is how it goes. {example}
"""
HANDWRITTEN = """\
---
syntax: tags
---
Look it up, in {max_turns} turns at most. JSON such as {"a": 1} is not read. Turns are
<think>your thought</think> <search>words to find</search>
<think>your thought</think> <visit>name of a page</visit>
<think>your thought</think> <answer>nothing else</answer>

Question: who wrote emma ?
<think>i need its page</think> <search>emma novel</search>
Result: found emma : a novel .
<think>open it</think> <visit>emma</visit>
Result: page : emma is a novel by jane austen .
<think>there</think> <answer>jane austen</answer>
"""


def shown(style, text, question, tmp_path):
    """The syntax, and the text from which the player learns."""
    if style == "file":
        path = tmp_path / "prompt.txt"
        path.write_text(text, encoding="utf-8")
        syntax = syntax_for(path)
    else:
        syntax = syntax_for(style)
    messages = syntax.messages(question, 8)
    if not syntax.template_tools:
        return syntax, messages[0]["content"]
    template = jinja2.Environment(keep_trailing_newline=True).from_string(text)
    # Jinja's own tojson escapes HTML and sorts keys; neither matters to a reader of JSON.
    return syntax, template.render(messages=messages, tools=syntax.template_tools)


def rewards(source, syntax, forms):
    """Of three questions."""
    tools = ImmediateTools(LocalTools(source.corpus, source.retriever))
    won = []
    for task in source.fixed("train", 3):
        episode = DeepSearchEnvironment(tools, GoldAnswerScore((task.payload["answer"],)), syntax)
        won.append(asyncio.run(play(episode, forms, task, source.corpus)))
    return won


CASES = [
    pytest.param("tags", "", id="tags"),
    pytest.param("tools", HERMES, id="hermes"),
    pytest.param("tools_llama3", LLAMA3, id="llama3"),
    pytest.param("tools", LLAMA3, id="llama3, whatever is written"),
    pytest.param("file", OWN_FILE, id="file with places"),
    pytest.param("file", HANDWRITTEN, id="file by hand"),
]


def learned(syntax, text):
    return forms_in_rendering(text) if syntax.template_tools else forms_in_message(text)


@pytest.mark.parametrize(("style", "text"), CASES)
def test_the_prompt_teaches_its_syntax(style, text, source, tmp_path):
    syntax, told = shown(style, text, "what is it ?", tmp_path)
    forms = learned(syntax, told)
    assert set(forms) == set(PURPOSES)
    assert sum(rewards(source, syntax, forms)) >= 1


@pytest.mark.parametrize("tool", PURPOSES)
@pytest.mark.parametrize(("style", "text"), CASES)
def test_without_a_tools_line_the_player_loses(style, text, tool, source, tmp_path):
    syntax, told = shown(style, text, "what is it ?", tmp_path)
    forms = learned(syntax, without_line(told, tool, bool(syntax.template_tools)))
    assert set(forms) == set(PURPOSES) - {tool}
    assert rewards(source, syntax, forms) == [0.0, 0.0, 0.0]


def without_line(told, tool, in_schemas):
    """Without the first line that shows a call of the tool, or its schema."""
    mark = f'"name": "{tool}"' if in_schemas else f"<{tool}>"
    lines = told.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if mark in line)
    return "".join(lines[:first] + lines[first + 1 :])


def test_a_syntax_that_is_not_what_is_read_loses(source):
    """The player does follow what it learned."""
    wrong = {tool: Form("", f" [{tool}] ", "") for tool in PURPOSES}
    for style in ("tags", "tools", "tools_llama3"):
        assert rewards(source, syntax_for(style), wrong) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("style", ["tools", "tools_llama3"])
def test_a_task_carries_what_the_template_needs_and_its_own_source_plays_it(style, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    page = {"title": "Peru", "entity": "Peru", "type": "country", "sentences": ["Its capital is Lima."]}
    corpus.write_text(json.dumps(page | {"facts": [["capital", "Lima", None]]}), encoding="utf-8")
    source = make_task_source("deep_search", corpus=corpus, prompt=style)
    task = source.tasks("train")[0]
    assert [tool["function"]["name"] for tool in task.tools] == list(PURPOSES)
    assert task.observation_role == "tool"
    template = jinja2.Environment(keep_trailing_newline=True).from_string(HERMES)
    forms = forms_in_rendering(template.render(messages=task.prompt, tools=task.tools))
    assert asyncio.run(play(source.make(task), forms, task, source.corpus)) == 1.0
    turns = source.walkthrough(task, 0).turns
    assert turns[-1].observation is None
    assert turns[0].action.endswith("</tool_call>" if style == "tools" else "}}")
