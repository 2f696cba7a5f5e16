"""The chat template's own tool calls: both forms are read, and what is wrong is said."""

import json

import pytest

from megatron_empg.environments.calls.base import Example, MalformedCall, Tool, ToolCall
from megatron_empg.environments.calls.template_calls import TemplateCalls
from megatron_empg.environments.deep_search.agent_tools import SEARCH
from megatron_empg.environments.deep_search.prompt import syntax_for

SYNTAX = syntax_for("tools")
LLAMA = syntax_for("tools_llama3")
MEASURE = Tool(
    "measure",
    "shows a length.",
    {
        "type": "object",
        "properties": {
            "thing": {"type": "string"},
            "digits": {"type": "integer"},
            "scale": {"type": "number"},
            "exact": {"type": "boolean"},
        },
        "required": ["thing"],
    },
    "how long it is",
    {"thing": "a thing"},
    {"thing": "thing"},
)


def hermes(name="search", key="arguments", **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, key: arguments})}\n</tool_call>"


def bare(name="search", key="parameters", **arguments):
    return json.dumps({"name": name, key: arguments})


@pytest.mark.parametrize(
    "turn",
    [
        hermes(query="capital peru"),
        hermes(query="capital peru") + "<|im_end|>\n",
        "i need the capital.\n" + hermes(query="  capital peru\n"),
        "<think>\nlook it up: {maybe} <tool_call>?\n</think>\n\n" + hermes(query="capital peru"),
        "the template began the thought </think>\n" + hermes(query="capital peru"),
        "<think></think>" + bare(query="capital peru") + "<|eot_id|>",
        '<tool_call>{"name":"search","arguments":{"query":"capital peru"}}</tool_call>',
        hermes(key="parameters", query="capital peru"),
        bare(query="capital peru"),
        bare(key="arguments", query="capital peru"),
        "<|python_tag|>" + bare(query="capital peru") + "<|eom_id|>",
        "now then " + bare(query="capital peru"),
        'so <|python_tag|>{"type": "function", "name": "search", "parameters": {"query": "capital peru"}}',
    ],
)
def test_both_forms_are_read_by_either_style(turn):
    for syntax in (SYNTAX, LLAMA):
        assert syntax.parse(turn) == ToolCall("search", {"query": "capital peru"})


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        ("", "there is no call"),
        ("the capital is lima", "there is no call"),
        ("<|python_tag|>search.call(query='x')", "there is no call"),
        ("<think> and so on", "the thought is not closed with </think>"),
        ("<think>" + hermes(query="x"), "the thought is not closed"),
        (hermes(query="x") + hermes("answer", answer="y"), "more than one call"),
        (hermes(query="x") + "\n\n" + hermes(query="x"), "more than one call"),
        (bare(query="x") + "; " + bare(query="y"), "more than one call"),
        (bare(query="x") + bare(query="y"), "more than one call"),
        (hermes(query="x") + " and that is it", "something stands after the call"),
        (bare(query="x") + " and that is it", "something stands after the call"),
        ("<tool_call>" + bare(query="x"), "</tool_call> must follow"),
        ("<tool_call>" + bare(query="x") + "}</tool_call>", "</tool_call> must follow"),
        ("<tool_call></tool_call>", "a JSON object should begin at '</tool_call>'"),
        ("<tool_call>", "a JSON object should begin at the end"),
        ('<tool_call>["search"]</tool_call>', "a JSON object should begin"),
        ("<tool_call>{'name': 'search'}</tool_call>", "no valid JSON"),
        ('{"name": "search", "parameters": {"query": "x"}', "no valid JSON"),
        ('{"name": "search", "parameters": {"query": "x\ny"}}', "no valid JSON : Invalid control character"),
        ('{"name": "search", "name": "visit", "parameters": {"query": "x"}}', "'name' is given twice"),
        ('{"name": "search", "parameters": {"query": "x", "query": "y"}}', "'query' is given twice"),
        ('{"name": "search", "parameters": {"query": NaN}}', "NaN is no JSON"),
        ('{"name": "search", "parameters": {"query": ' + "7" * 9000 + "}}", "too many digits"),
        ("{" + '"a":{' * 50_000, "nested too deep"),
        ('{"name": ' + "[" * 50_000, "nested too deep"),
        (bare("browse", query="x"), "there is no tool 'browse' , only search , visit or answer"),
        (bare("Search", query="x"), "there is no tool 'Search'"),
        (bare("ｓearch", query="x"), "there is no tool"),
        (bare("\ud800" * 99, query="x"), "there is no tool"),
        ('{"parameters": {"query": "x"}}', '"name" must be the name of a tool'),
        ('{"name": ["search"], "parameters": {"query": "x"}}', '"name" must be'),
        ('{"name": "search"}', "no objects of arguments"),
        ('{"name": "search", "arguments": {"query": "x"}, "parameters": {"query": "x"}}', "two objects of"),
        ('{"name": "search", "query": "x", "parameters": {"query": "x"}}', "a call has no 'query'"),
        ('{"name": "search", "parameters": "{\\"query\\": \\"x\\"}"}', '"parameters" is a text , not an object'),
        ('{"name": "search", "parameters": null}', '"parameters" is null , not an object'),
        (bare(), "search needs query"),
        (bare(query="x", page=2), "search takes no 'page' , only query"),
        (bare(query=7), "the query of search is a number , not a text"),
        (bare(query=None), "the query of search is null"),
        (bare(query=True), "the query of search is true or false"),
        (bare(query=["x"]), "the query of search is a list"),
        (bare(query={"x": 1}), "the query of search is an object"),
        (bare(query=" \n"), "the query is empty"),
        (bare(query="x\ud83dy"), "the query holds half a surrogate pair"),
    ],
)
def test_what_is_wrong_is_said(turn, fault):
    for syntax in (SYNTAX, LLAMA):
        with pytest.raises(MalformedCall) as caught:
            syntax.parse(turn)
        assert str(caught.value).startswith("malformed call : ")
        assert fault in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        "a < b > c",
        "line\nbreak",
        "</tool_call><tool_call>",
        "<|im_end|> x",
        '"}}',
        "{{question}}",
        "</think>",
        "é東京",
    ],
)
def test_an_argument_may_hold_anything(text):
    for syntax in (SYNTAX, LLAMA):
        call = ToolCall("answer", {"answer": text})
        assert syntax.parse(syntax.write("so it is", call)) == call


def test_a_thought_that_looks_like_a_call_is_not_written():
    for thought in ("{", "<tool_call>", "<think>"):
        with pytest.raises(ValueError, match="would be read as a call"):
            SYNTAX.write(thought, ToolCall("search", {"query": "x"}))


def test_arguments_have_the_types_of_the_schema():
    syntax = TemplateCalls([MEASURE], Example("q", ()))
    full = {"thing": "rope", "digits": 2, "scale": 0.5, "exact": True}
    assert syntax.parse(bare("measure", **full)) == ToolCall("measure", full)
    assert syntax.parse(bare("measure", thing="rope")) == ToolCall("measure", {"thing": "rope"})
    for wrong in ({"digits": 2.5}, {"digits": True}, {"scale": "1"}, {"exact": 1}, {"digits": "2"}):
        with pytest.raises(MalformedCall, match=f"the {next(iter(wrong))} of measure is "):
            syntax.parse(bare("measure", thing="rope", **wrong))


def test_the_template_gets_the_schemas_and_the_message_leaves_the_format_to_it():
    function = SYNTAX.template_tools[0]["function"]
    assert function["name"] == "search"
    assert function["description"].startswith("Shows the first sentence")
    assert function["parameters"] == SEARCH.parameters
    assert json.loads(json.dumps(SYNTAX.template_tools)) == list(SYNTAX.template_tools)
    system, user = SYNTAX.messages("who ?", 3)
    assert "at most 3 turns" in system["content"]
    assert "1 turn," in SYNTAX.messages("who ?", 1)[0]["content"]
    assert "Only a call of answer ends the task" in system["content"]
    assert "{" not in system["content"] + user["content"]
    assert "<" not in system["content"]
    assert SYNTAX.observation_role == "tool"


def test_the_reminder_shows_a_call_that_is_read():
    for syntax in (SYNTAX, LLAMA):
        shown = syntax.reminder.partition("such as ")[2].removesuffix(" and nothing after it")
        assert syntax.parse(shown) == ToolCall("search", {"query": "words"})
